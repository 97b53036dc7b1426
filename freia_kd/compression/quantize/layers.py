"""Layers that compute as eight-bit integer hardware does."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOW, HIGH = -128, 127  # of weights; the scale makes the largest of a channel ±127
LEVELS = 255  # of inputs, which are unsigned
EPS = 1e-12  # a scale: of a channel or an input that is zero throughout


class FakeQuantized(nn.Module):
    r"""What quantised layers have in common: inputs and weights are rounded before they meet.

    .. math:: \hat x = s_x (\mathrm{clip}(\lfloor x / s_x \rceil + z, 0, 255) - z), \qquad
              \hat W_o = s_o\, \mathrm{clip}(\lfloor W_o / s_o \rceil, -128, 127)

    with one scale :math:`s_x` and zero point :math:`z` of the input and a scale :math:`s_o` of
    each output channel, all of them buffers. The bias stays as it is. Gradients pass straight
    through the rounding, and are zero where it clips. State dicts may hold the weight as int8.
    """

    weight: Tensor
    input_scale: Tensor
    input_zero_point: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int8"

    def quantised_input(self, x: Tensor) -> Tensor:
        """The input as the integer layer sees it."""
        scale, zero = self.input_scale.float(), self.input_zero_point
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LEVELS)

    def quantised_weight(self) -> Tensor:
        """The weight as the integer layer holds it, as floats."""
        return torch.fake_quantize_per_channel_affine(
            self.weight, self.weight_scale.float(), self.weight_zero_point, 0, LOW, HIGH
        )

    @torch.no_grad()
    def integer_weight(self) -> Tensor:
        """The weight as int8, to be multiplied by its scale."""
        weight = self.quantised_weight()
        return (weight / _column(self.weight_scale, weight)).round().to(torch.int8)

    def file_state(self) -> dict[str, Tensor]:
        """What files hold: the weight as int8, a quarter of the bytes.

        Loaded, the layer gives bit for bit the same outputs; what training had changed below the
        grid of the integers is gone.
        """
        return {"weight": self.integer_weight()}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Also takes a weight of int8; refuses scales that cannot be meant."""
        weight: Any = state_dict.get(prefix + "weight")
        scale: Any = state_dict.get(prefix + "weight_scale")
        packed = isinstance(weight, Tensor) and weight.dtype == torch.int8
        if packed and scale is not None and scale.shape == weight.shape[:1]:
            state_dict[prefix + "weight"] = weight.to(scale.dtype) * _column(scale, weight)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for loaded in (self.input_scale, self.weight_scale):
            if not bool((loaded.isfinite() & (loaded > 0)).all()):
                error_msgs.append(f"Expected positive scales in {prefix[:-1]!r}.")
        if not 0 <= int(self.input_zero_point) <= LEVELS:
            error_msgs.append(f"Expected a zero point from 0 to {LEVELS} in {prefix[:-1]!r}.")


def _column(scale: Tensor, weight: Tensor) -> Tensor:
    """The scales of output channels in a shape that multiplies the weight."""
    return scale.view(-1, *(1,) * (weight.ndim - 1))


class QuantizedConv1d(FakeQuantized, nn.Conv1d):
    """A `Conv1d` that computes with eight-bit integers."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.quantised_input(x), self.quantised_weight(), self.bias)


class QuantizedConv2d(FakeQuantized, nn.Conv2d):
    """A `Conv2d` that computes with eight-bit integers."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.quantised_input(x), self.quantised_weight(), self.bias)


class QuantizedLinear(FakeQuantized, nn.Linear):
    """A `Linear` that computes with eight-bit integers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.quantised_input(x), self.quantised_weight(), self.bias)


QUANTIZED: dict[type[nn.Module], type[FakeQuantized]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
}


def quantised_layer(layer: nn.Module) -> FakeQuantized:
    """Makes a layer of a copied net a quantised one, in all places where the net uses it.

    Its class is changed, as `torch.nn.utils.parametrize` does, which keeps everything else.
    """
    layer.__class__ = QUANTIZED[type(layer)]
    assert isinstance(layer, FakeQuantized)
    weight = layer.weight
    ones = torch.ones(len(weight), device=weight.device)
    layer.register_buffer("input_scale", ones.new_ones(()))
    layer.register_buffer("input_zero_point", ones.new_zeros((), dtype=torch.int32))
    layer.register_buffer("weight_scale", ones)
    zeros = torch.zeros_like(ones, dtype=torch.int32)
    layer.register_buffer("weight_zero_point", zeros, persistent=False)
    return layer


def symmetric_scale(weight: Tensor) -> Tensor:
    """The scale of each output channel, which makes its largest weight ±127."""
    return (weight.detach().flatten(1).abs().amax(1).float() / HIGH).clamp(min=EPS)
