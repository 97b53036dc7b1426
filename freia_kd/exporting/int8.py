"""Quantised layers in the form that other runtimes know: integer weights, QuantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compression.modules import copied, swapped
from ..compression.quantize.layers import LEVELS, FakeQuantized


def is_quantised(net: nn.Module) -> bool:
    """Whether a net has layers that compute with eight-bit integers."""
    return any(isinstance(m, FakeQuantized) for m in net.modules())


def with_integer_weights(net: nn.Module, onnx: bool) -> nn.Module:
    """A copy of a net whose quantised layers hold int8 weights and constant scales.

    torch's own fake quantisation with scales in tensors cannot be traced.

    Arguments:
        net: The net, which is not modified.
        onnx: Whether to round by operations that :func:`onnx_translations` turns into
            QuantizeLinear and DequantizeLinear, rather than by arithmetic.
    """
    copy = copied(net)
    quantised = {id(m): m for m in copy.modules() if isinstance(m, FakeQuantized)}
    return swapped(copy, {key: _IntegerLayer(m, onnx) for key, m in quantised.items()})


class _IntegerLayer(nn.Module):
    """A quantised layer that holds its weight as int8, each output channel with its scale."""

    def __init__(self, layer: Any, onnx: bool) -> None:
        super().__init__()
        self.weight: Tensor
        self.scale: Tensor
        self.input_scale: Tensor
        self.input_zero_point: Tensor
        self.register_buffer("weight", layer.integer_weight())
        self.register_buffer("scale", layer.weight_scale.float())
        self.register_buffer("input_scale", layer.input_scale.float())
        self.register_buffer("input_zero_point", layer.input_zero_point.to(torch.uint8))
        self.bias = layer.bias
        self.onnx = onnx
        self.layer = layer  # for what a convolution does besides: strides, padding
        layer._parameters.clear()
        layer._buffers.clear()

    def forward(self, x: Tensor) -> Tensor:
        if self.onnx:
            round_input, dequantise = _operations()
            x = round_input(x, self.input_scale, self.input_zero_point)
            weight = dequantise(self.weight, self.scale)
        else:
            x = _round_input(x, self.input_scale, self.input_zero_point)
            weight = _dequantise(self.weight, self.scale)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.bias)
        return self.layer._conv_forward(x, weight, self.bias)


def _round_input(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    zero = zero_point.to(x.dtype)
    # torch's own kernels multiply by the inverse as well, which decides some roundings.
    return ((torch.round(x * scale.reciprocal()) + zero).clamp(0, LEVELS) - zero) * scale


def _dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    return weight.to(scale.dtype) * scale.view(-1, *(1,) * (weight.ndim - 1))


@lru_cache(maxsize=1)
def _operations() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The two functions as operations that stay whole when a net is traced."""

    def empty_like(x: Tensor, *rest: Tensor) -> Tensor:
        return torch.empty_like(x, dtype=torch.float32)

    made = []
    for name, function, schema in (
        ("round_input", _round_input, "(Tensor x, Tensor scale, Tensor zero_point) -> Tensor"),
        ("dequantise", _dequantise, "(Tensor weight, Tensor scale) -> Tensor"),
    ):
        operation = torch.library.custom_op(
            f"freia_kd::{name}", function, mutates_args=(), schema=schema
        )
        operation.register_fake(empty_like)
        made.append(operation)
    return made[0], made[1]


def onnx_translations() -> dict[Any, Any]:
    """How the operations are written in ONNX, for `torch.onnx.export`."""
    from onnxscript import opset18 as op

    _operations()

    def round_input(x: Any, scale: Any, zero_point: Any) -> Any:
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)

    def dequantise(weight: Any, scale: Any) -> Any:
        return op.DequantizeLinear(weight, scale, axis=0)

    operations = torch.ops.freia_kd
    return {
        operations.round_input.default: round_input,
        operations.dequantise.default: dequantise,
    }
