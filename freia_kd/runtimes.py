"""Where a net runs: in PyTorch, or exported to ONNX and run by onnxruntime."""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .config import Runtime
from .errors import ExportError
from .modes import evaluating
from .optional import require

# What torch's exporter is written for; ONNX 1.13 of 2022, onnxruntime 1.14 and newer run it.
OPSET = 18
BY_PROGRAM = {"dynamic_shapes", "custom_translation_table"}  # of the exporter since torch 2.6
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class InOnnxRuntime(nn.Module):
    """A model that onnxruntime computes, as a net, on the CPU with as many threads as torch has.

    Arguments:
        model: A file, or what would be in it, with one input and one output.
    """

    def __init__(self, model: str | bytes) -> None:
        super().__init__()
        onnxruntime = require("onnxruntime", "onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        (self.input,) = (given.name for given in self.session.get_inputs())

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.input: x.numpy()})[0])


class _Together(nn.Module):
    """Nets that take the same input as one."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(net(pixels) for net in self.nets)


def in_runtime(runtime: Runtime, nets: Sequence[nn.Module], shape: Sequence[int]) -> list[Any]:
    """Nets as a runtime runs them, to be timed.

    Arguments:
        runtime: The runtime; `"onnxruntime"` takes float32 inputs on the CPU.
        nets: The nets, which are not modified.
        shape: The shape of an input of theirs, without the batch.

    Raises:
        ExportError: If torch cannot export them.
        ImportError: If the extra `onnx` is missing.

    Example:
        >>> [fast] = in_runtime("onnxruntime", [nn.Linear(3, 2)], (3,))
        >>> fast(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    if runtime == "torch":
        return list(nets)
    require_runtime(runtime)
    together = _Together([_on_cpu(net) for net in nets])
    names = [f"logits{i}" for i in range(len(nets))]  # one export, which takes its time, for all
    with evaluating(together), explained("the net"):
        model = onnx_model(together, torch.zeros(2, *shape), names)
    if len(nets) == 1:
        return [InOnnxRuntime(model.SerializeToString())]
    from onnx.utils import Extractor

    parts = Extractor(model)
    return [
        InOnnxRuntime(parts.extract_model(["pixels"], [name]).SerializeToString()) for name in names
    ]


def _on_cpu(net: nn.Module) -> nn.Module:
    """The net itself, or a copy where it computes in something else than float32 on the CPU."""
    values = [v for v in (*net.parameters(), *net.buffers()) if v.is_floating_point()]
    if all(v.device.type == "cpu" and v.dtype == torch.float32 for v in values):
        return net
    return copy.deepcopy(net).cpu().float()


def require_runtime(runtime: Runtime) -> None:
    """Raises `ImportError`, which names the extra to install, if a library is missing."""
    for library in LIBRARIES if runtime == "onnxruntime" else ():
        require(library, "onnx")


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0]


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what torch's exporters raise into one line, about a net that is called so."""
    try:
        yield
    except (MemoryError, ExportError):
        raise
    except Exception as error:
        raise ExportError(
            f"torch cannot export {what} for a batch of any size "
            f"({type(error).__name__}: {first_line(error)}). A net whose steps depend on the "
            "values or the number of its inputs can only be exported to torch or safetensors."
        ) from error


def any_batch() -> dict[str, Any]:
    """For torch.export: the first dimension of `pixels` varies."""
    return {"pixels": {0: torch.export.Dim("batch", min=1)}}


def traced(net: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """A net as a graph for any batch, from two inputs: a batch of one is taken to be always one.

    Arguments:
        net: The net in eval mode, whose `forward` calls its input `pixels`.
        x: The inputs.
    """
    program = torch.export.export(net, (x,), dynamic_shapes=any_batch())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def onnx_model(
    net: nn.Module,
    x: Tensor,
    outputs: Sequence[str] = ("logits",),
    translations: dict[Any, Any] | None = None,
) -> Any:
    """The `ModelProto` of a net, by the exporter on top of torch.export if this torch has it.

    Arguments:
        net: As of :func:`traced`, as is
        x: the inputs.
        outputs: The names of the outputs.
        translations: What operations of the net's own are in ONNX, for `torch.onnx.export`.
    """
    import onnx

    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": list(outputs)}
    if set(inspect.signature(torch.onnx.export).parameters) >= BY_PROGRAM:
        exported: Any = torch.onnx.export(
            traced(net, x),
            (x,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=any_batch(),  # for the dimension's name
            custom_translation_table=translations,
            opset_version=OPSET,
            **names,
        )
        return exported.model_proto
    if translations is not None:
        raise ExportError(
            f"Quantised nets go to ONNX with torch 2.6 or newer; this is {torch.__version__}."
        )
    buffer: Any = io.BytesIO()
    axes = {name: {0: "batch"} for name in ("pixels", *outputs)}
    with warnings.catch_warnings():
        # Values that Python sees become constants; comparing at two batch sizes tells if it hurts.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        torch.onnx.export(net, (x,), buffer, dynamic_axes=axes, opset_version=OPSET, **names)
    return onnx.load_from_string(buffer.getvalue())
