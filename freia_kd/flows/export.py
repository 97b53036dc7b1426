"""Flows as programs for other runtimes: a decoder by `torch.export`, and as an ONNX file."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..optional import require
from .blocks import Conv1x1
from .contract import ConditionalFlow


class Decoder(nn.Module):
    r"""The map from latents to inputs alone, of a copy of the flow in eval mode.

    Learned 1x1 convolutions are inverted once and for all, as runtimes have no inverse.

    Arguments:
        flow: The flow.

    Example:
        >>> from freia_kd.flows import NICE
        >>> decoder = Decoder(NICE((2,), classes=3))
        >>> decoder(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])).shape
        torch.Size([4, 2])
    """

    def __init__(self, flow: ConditionalFlow) -> None:
        super().__init__()
        self.flow = copy.deepcopy(flow).eval().requires_grad_(False)
        for module in self.flow.modules():
            if isinstance(module, Conv1x1):
                module.fix()
        self.eval()

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps latents `(B, *shape)` and conditions to inputs with the shape of the latents."""
        return self.flow.decode(z, c)[0]


def export_decoder(flow: ConditionalFlow, path: str | Path) -> Path:
    """Writes an ONNX file that maps latents `z` and class indices `c` to inputs `x`.

    The batch is dynamic. Draw `z` by any generator of Gaussian numbers (or by `flow.sample_base`),
    and the file is a sampler without PyTorch.

    Arguments:
        flow: The flow.
        path: The file.

    Returns:
        The path.

    Raises:
        ExportError: If this torch is too old.
        ImportError: If the extra `onnx` is missing.
    """
    require("onnxscript", "onnx")  # what PyTorch's exporter needs
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise ExportError(f"Flows go to ONNX with torch 2.6 or newer; this is {torch.__version__}.")
    decoder = Decoder(flow)
    z = torch.zeros(2, *flow.shape, dtype=flow.dtype, device=flow.device)
    batch = torch.export.Dim("batch", min=1)
    names, arguments, dynamic = ["z"], [z], [{0: batch}]
    if flow.classes:
        names.append("c")
        arguments.append(torch.arange(2, device=flow.device) % flow.classes)
        dynamic.append({0: batch})
    with warnings.catch_warnings():  # PyTorch's own: deprecations, and one name for two axes
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            decoder,
            tuple(arguments),
            input_names=names,
            output_names=["x"],
            dynamic_shapes=tuple(dynamic),
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter of PyTorch's dynamo gives a program"
    program.save(str(path))
    return Path(path)
