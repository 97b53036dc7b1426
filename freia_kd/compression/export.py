"""Classifiers as files of other runtimes, each compared with the classifier before it counts."""

from __future__ import annotations

import inspect
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..files import atomic
from ..modes import evaluating
from ..teachers.classifier import Classifier
from ..teachers.loading import META_KEY, load_classifier, save_classifier
from .cost import measure_latencies
from .export_int8 import is_quantised, onnx_translations, with_integer_weights

PathLike = str | os.PathLike[str]
Answer = Callable[[Tensor], Tensor]

# What torch's exporter is written for; ONNX 1.13 of 2022, onnxruntime 1.14 and newer run it.
OPSET = 18
TOLERANCE = 1e-4  # of the largest logit: single precision through a deep net loses less
TIE = 1e-5  # of the largest logit: two logits nearer than this may change places
# The same two where a runtime divides to round to eight bits and torch multiplies: a value between
# two integers may fall to either side, and all layers after it see that.
INT8_TOLERANCE = 0.03
SINGLES = 8  # inputs that are compared one by one as well


@dataclass(frozen=True)
class Exported:
    """A file that was written, read back in its own runtime, and found to agree.

    Arguments:
        file: The file.
        format: A name of `FORMATS`.
        runtime: What read it back and ran it.
        bytes: Its size.
        inputs: How many inputs the logits were compared on, in one batch; the first few of them
            also one by one.
        max_difference: The largest absolute difference of a logit.
        tolerance: What that may be at most.
        same_top1: The share of inputs that get the same class.
        latency_ms: The median time of one input in that runtime, in milliseconds.
        eager_latency_ms: The same of the classifier in torch, measured in turn with it.
    """

    file: str
    format: str
    runtime: str
    bytes: int
    inputs: int
    max_difference: float
    tolerance: float
    same_top1: float
    latency_ms: float
    eager_latency_ms: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Format:
    """How a classifier is written in one format, and how the file is run.

    Arguments:
        suffixes: How its files may end; the first by default.
        runtime: What runs them.
        write: Writes a classifier and metadata to a path.
        load: Reads a file of a classifier of an architecture; gives a function from pixels to
            logits.
        needs: The libraries of the extra `onnx` that both take.
        rounds_alike: Whether quantised layers round every value as they do in torch.
    """

    suffixes: tuple[str, ...]
    runtime: str
    write: Callable[[Classifier, Path, dict[str, Any]], None]
    load: Callable[[Path, str], Answer]
    needs: tuple[str, ...] = ()
    rounds_alike: bool = True

    def require(self) -> None:
        """Raises `ImportError`, which names the extra to install, if a library is missing."""
        from ..flows.adapters.common import require

        for module in self.needs:
            require(module, "onnx")


def export_classifier(
    classifier: Classifier,
    path: PathLike,
    format: str,
    inputs: Tensor,
    meta: dict[str, Any] | None = None,
    seconds: float = 0.2,
) -> Exported:
    r"""Writes a classifier for another runtime, and compares what that makes of the file.

    The exported net takes pixels with shape `(B, *domain.shape)`, named `pixels`, with any number
    `B` of inputs, and gives `logits`. The file is read back in a fresh session of its runtime. It
    stays only if, on all inputs :math:`x`,

    .. math:: |f_\mathrm{file}(x) - f(x)| \le 10^{-4} \max |f|

    and the class is the same wherever the two logits are further apart than
    :math:`10^{-5} \max |f|`. Otherwise what was at `path` before stays there. In ONNX, both
    bounds are :math:`0.03 \max |f|` for a net with quantised layers
    (:func:`~freia_kd.compression.quantize.quantize`), which it holds as int8 with QuantizeLinear
    and DequantizeLinear.

    Arguments:
        classifier: The classifier, on the CPU; put back into the mode it was in.
        path: The file, replaced as a whole.
        format: A name of `FORMATS`: `"torch"` and `"safetensors"`, which
            :func:`freia_kd.load_student` reads; `"onnx"`; or `"torch-export"`, an
            `ExportedProgram`.
        inputs: Pixels to compare on, with shape `(N, *domain.shape)`, at least 2.
        meta: Metadata of JSON types; a compressed net needs its `{"compression": ...}` in the
            first two formats. Architecture and domain are added.
        seconds: About how long to measure the latency.

    Raises:
        ExportError: If the net cannot be exported with a batch of any size, or the file does not
            agree with it.
        ImportError: If a library is missing; the message names the extra.
        OSError: If the file cannot be written.
        ValueError: If there is no such format, or the inputs do not fit.

    References:
        | ONNX: Open Neural Network Exchange, operator set 18

    Example:
        >>> import tempfile
        >>> from freia_kd.domain import Domain
        >>> from freia_kd.teachers.mlp import MLP
        >>> classifier = Classifier(MLP(2, 3), Domain((2,), 3), "mlp")
        >>> file = Path(tempfile.mkdtemp()) / "mlp.safetensors"
        >>> export_classifier(classifier, file, "safetensors", torch.randn(16, 2)).same_top1
        1.0
    """
    if format not in FORMATS:
        raise ValueError(f"Expected one of the formats {', '.join(FORMATS)}; got {format!r}.")
    if len(inputs) < 2:
        raise ValueError(f"Expected 2 inputs or more to compare on; got {len(inputs)}.")
    kind = FORMATS[format]
    kind.require()
    own = {**(meta or {}), "arch": classifier.arch, "domain": classifier.domain.to_dict()}
    with evaluating(classifier), atomic(path) as temporary:
        kind.write(classifier, temporary, own)
        answer = _reload(kind, temporary, classifier.arch)
        limits = TOLERANCE, TIE
        if is_quantised(classifier) and not kind.rounds_alike:
            limits = INT8_TOLERANCE, INT8_TOLERANCE
        difference, tolerance, same = _compare(classifier, answer, inputs, kind.runtime, limits)
        ours, theirs = measure_latencies(
            [_Net(answer), classifier], classifier.domain.shape, seconds=seconds
        )
        size = temporary.stat().st_size
    return Exported(
        os.fspath(path), format, kind.runtime, size, len(inputs), difference, tolerance, same,
        ours.median, theirs.median,
    )  # fmt: skip


def _reload(kind: Format, path: Path, arch: str) -> Answer:
    try:
        return kind.load(path, arch)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ExportError(f"{kind.runtime} does not take the file: {_first_line(error)}") from error


def _compare(
    classifier: Classifier,
    answer: Answer,
    inputs: Tensor,
    runtime: str,
    limits: tuple[float, float],
) -> tuple[float, float, float]:
    """The largest difference, what it may be, and the share of inputs with the same class."""
    batches = [*inputs[:SINGLES].split(1), inputs]
    expected = torch.cat([classifier(x) for x in batches])
    got = torch.cat([_run(answer, x, runtime) for x in batches])
    if got.shape != expected.shape:
        raise ExportError(
            f"Expected logits of shape {tuple(expected.shape)}; {runtime} gives {tuple(got.shape)}."
        )
    tolerance, tie = (limit * expected.abs().max().item() for limit in limits)
    difference = (got - expected).abs().max().item()
    if not difference <= tolerance:  # also where it is NaN
        raise ExportError(
            f"The file's logits differ from the student's by up to {difference:.3g} in {runtime}; "
            f"expected {tolerance:.3g} at most. It was not kept."
        )
    chosen = got.argmax(1, keepdim=True)
    margin = expected.amax(1) - expected.gather(1, chosen)[:, 0]
    if (margin > tie).any():
        raise ExportError(
            f"The file gives other classes than the student to {int((margin > tie).sum())} "
            f"of {len(expected)} inputs in {runtime}, beyond ties. It was not kept."
        )
    same = (chosen[:, 0] == expected.argmax(1))[-len(inputs) :]
    return difference, tolerance, same.double().mean().item()


def _run(answer: Answer, x: Tensor, runtime: str) -> Tensor:
    try:
        return answer(x)
    except MemoryError:
        raise
    except Exception as error:
        raise ExportError(
            f"{runtime} does not run the file on a batch of {len(x)}: {_first_line(error)}"
        ) from error


class _Net(nn.Module):
    """A function as a net, for :func:`measure_latencies`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = [answer]  # not a submodule: exported graphs have no eval mode to change

    def forward(self, x: Tensor) -> Tensor:
        return self.answer[0](x)


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
            f"({type(error).__name__}: {_first_line(error)}). A net whose steps depend on the "
            "values or the number of its inputs can only be exported to torch or safetensors."
        ) from error


def _write_program(classifier: Classifier, path: Path, own: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch's own writer turns a full disk into a RuntimeError
    torch.export.save(
        _program(classifier), buffer, extra_files={f"{META_KEY}.json": json.dumps(own)}
    )
    path.write_bytes(buffer.getbuffer())


def _load_program(path: Path, arch: str) -> Answer:
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


def _load_onnx(path: Path, arch: str) -> Answer:
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


def _load_checkpoint(path: Path, arch: str) -> Answer:
    return load_classifier(path, arch)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


FORMATS: dict[str, Format] = {
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
