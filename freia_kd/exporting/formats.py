"""Formats of other runtimes: how a classifier is written in each, and how the file is run."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..compression import load_classifier
from ..compression.method import Trusted
from ..config import ExportFormat
from ..runtimes import LIBRARIES, InOnnxRuntime, explained, onnx_model, traced
from ..teachers import Classifier, save_classifier
from ..teachers.loading import META_KEY
from .int8 import is_quantised, onnx_translations, with_integer_weights

Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """How a classifier is written in one format, and how the file is run.

    Arguments:
        suffixes: How its files may end; the first by default.
        runtime: What runs them.
        write: Writes a classifier and metadata to a path.
        load: Reads a file of a classifier of an architecture, compressed by methods of which some
            are of the user's own; gives a function from pixels to logits.
        needs: The libraries of the extra `onnx` that both take.
        rounds_alike: Whether quantised layers round every value as they do in torch.
    """

    suffixes: tuple[str, ...]
    runtime: str
    write: Callable[[Classifier, Path, dict[str, Any]], None]
    load: Callable[[Path, str, Trusted], Answer]
    needs: tuple[str, ...] = ()
    rounds_alike: bool = True

    def require(self) -> None:
        """Raises `ImportError`, which names the extra to install, if a library is missing."""
        from ..optional import require

        for module in self.needs:
            require(module, "onnx")


class _Deployed(nn.Module):
    """A classifier whose normalisation is in buffers, which go where the net goes."""

    def __init__(self, classifier: Classifier, onnx: bool = False) -> None:
        super().__init__()
        domain, net = classifier.domain, classifier.net
        self.net = with_integer_weights(net, onnx) if is_quantised(net) else net
        self.mean: Tensor
        self.std: Tensor
        view = (-1,) + (1,) * (len(domain.shape) - 1)
        self.register_buffer("mean", torch.tensor(domain.mean).view(view))
        self.register_buffer("std", torch.tensor(domain.std).view(view))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net((pixels - self.mean) / self.std)


def _example(classifier: Classifier) -> Tensor:
    return torch.zeros(2, *classifier.domain.shape)


def _write_program(classifier: Classifier, path: Path, own: dict[str, Any]) -> None:
    with explained(classifier.arch):
        program = traced(_Deployed(classifier).eval(), _example(classifier))
    buffer = io.BytesIO()  # torch's own writer turns a full disk into a RuntimeError
    torch.export.save(program, buffer, extra_files={f"{META_KEY}.json": json.dumps(own)})
    path.write_bytes(buffer.getbuffer())


def _load_program(path: Path, arch: str, trusted: Trusted) -> Answer:
    with warnings.catch_warnings():
        # torch 2.4 and 2.5 warn of their own reader; the file was written a moment ago.
        warnings.filterwarnings("ignore", "You are using `torch.load` with", FutureWarning)
        module = torch.export.load(path).module()
    return lambda x: module(x)


def _write_onnx(classifier: Classifier, path: Path, own: dict[str, Any]) -> None:
    import onnx

    translations = onnx_translations() if is_quantised(classifier) else None
    with explained(classifier.arch):
        net, x = _Deployed(classifier, onnx=True).eval(), _example(classifier)
        model = onnx_model(net, x, translations=translations)
    # "classes" beside the rest, for readers who look for that alone.
    entries = {META_KEY: json.dumps(own), "classes": str(classifier.domain.classes)}
    onnx.helper.set_model_props(model, entries)
    path.write_bytes(model.SerializeToString())


def _load_onnx(path: Path, arch: str, trusted: Trusted) -> Answer:
    import onnx

    onnx.checker.check_model(os.fspath(path), full_check=True)
    return InOnnxRuntime(os.fspath(path))


def _write_checkpoint(classifier: Classifier, path: Path, own: dict[str, Any]) -> None:
    save_classifier(path, classifier, own)


def _load_checkpoint(path: Path, arch: str, trusted: Trusted) -> Answer:
    return load_classifier(path, arch, trusted=trusted)


FORMATS: dict[ExportFormat, Format] = {
    "torch": Format((".pt", ".pth"), "torch", _write_checkpoint, _load_checkpoint),
    "safetensors": Format((".safetensors",), "torch", _write_checkpoint, _load_checkpoint),
    "onnx": Format(
        (".onnx",),
        "onnxruntime",
        _write_onnx,
        _load_onnx,
        LIBRARIES,
        False,
    ),
    "torch-export": Format((".pt2",), "torch.export", _write_program, _load_program),
}
