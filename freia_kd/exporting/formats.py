"""Formats of other runtimes: how a classifier is written in each, and how the file is run."""

from __future__ import annotations

import inspect
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..compression import load_classifier
from ..compression.method import Trusted
from ..config import ExportFormat
from ..errors import ExportError
from ..teachers import Classifier, save_classifier
from ..teachers.loading import META_KEY
from .int8 import is_quantised, onnx_translations, with_integer_weights

Answer = Callable[[Tensor], Tensor]

# What torch's exporter is written for; ONNX 1.13 of 2022, onnxruntime 1.14 and newer run it.
OPSET = 18


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


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0]


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
    """Two inputs: torch takes a batch of one to be always one."""
    return torch.zeros(2, *classifier.domain.shape)


def _program(classifier: Classifier, onnx: bool = False) -> torch.export.ExportedProgram:
    with _explained(classifier):
        program = torch.export.export(
            _Deployed(classifier, onnx).eval(),
            (_example(classifier),),
            dynamic_shapes=_batches(),
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def _batches() -> dict[str, Any]:
    """For torch.export: the first dimension varies."""
    return {"pixels": {0: torch.export.Dim("batch", min=1)}}


@contextmanager
def _explained(classifier: Classifier) -> Iterator[None]:
    """Turns what torch's exporters raise into one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ExportError(
            f"torch cannot export {classifier.arch} for a batch of any size "
            f"({type(error).__name__}: {first_line(error)}). A net whose steps depend on the "
            "values or the number of its inputs can only be exported to torch or safetensors."
        ) from error


def _write_program(classifier: Classifier, path: Path, own: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch's own writer turns a full disk into a RuntimeError
    torch.export.save(
        _program(classifier), buffer, extra_files={f"{META_KEY}.json": json.dumps(own)}
    )
    path.write_bytes(buffer.getbuffer())


def _load_program(path: Path, arch: str, trusted: Trusted) -> Answer:
    with warnings.catch_warnings():
        # torch 2.4 and 2.5 warn of their own reader; the file was written a moment ago.
        warnings.filterwarnings("ignore", "You are using `torch.load` with", FutureWarning)
        module = torch.export.load(path).module()
    return lambda x: module(x)


def _write_onnx(classifier: Classifier, path: Path, own: dict[str, Any]) -> None:
    import onnx

    model = _onnx_model(classifier)
    # "classes" beside the rest, for readers who look for that alone.
    entries = {META_KEY: json.dumps(own), "classes": str(classifier.domain.classes)}
    onnx.helper.set_model_props(model, entries)
    path.write_bytes(model.SerializeToString())


def _onnx_model(classifier: Classifier) -> Any:
    """The `ModelProto`, by the exporter on top of torch.export if this torch has it."""
    import onnx

    x = _example(classifier)
    quantised = is_quantised(classifier)
    options = inspect.signature(torch.onnx.export).parameters
    if "dynamic_shapes" in options and "custom_translation_table" in options:
        program = _program(classifier, onnx=True)
        with _explained(classifier):
            exported: Any = torch.onnx.export(
                program,
                (x,),
                dynamo=True,
                verbose=False,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=_batches(),  # for the dimension's name
                custom_translation_table=onnx_translations() if quantised else None,
                opset_version=OPSET,
            )
        return exported.model_proto
    if quantised:
        raise ExportError(
            f"Quantised nets go to ONNX with torch 2.6 or newer; this is {torch.__version__}."
        )
    buffer = io.BytesIO()
    with warnings.catch_warnings(), _explained(classifier):
        # Values that Python sees become constants; comparing at two batch sizes tells if it hurts.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        torch.onnx.export(
            _Deployed(classifier).eval(),
            (x,),
            buffer,  # type: ignore[arg-type]
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
        )
    return onnx.load_from_string(buffer.getvalue())


def _load_onnx(path: Path, arch: str, trusted: Trusted) -> Answer:
    import onnx
    import onnxruntime

    onnx.checker.check_model(os.fspath(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: torch.from_numpy(session.run(["logits"], {"pixels": x.numpy()})[0])


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
        ("onnx", "onnxscript", "onnxruntime"),
        False,
    ),
    "torch-export": Format((".pt2",), "torch.export", _write_program, _load_program),
}
