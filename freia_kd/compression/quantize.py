"""Eight-bit integers: layers that compute as int8 hardware does, calibrated without real data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modes import evaluating
from .folding import fold_batchnorm, folded_layers
from .surgery import (
    KINDS,
    copied,
    parameter_owners,
    require_finite,
    require_inputs,
    why_irreplaceable,
)

Observer = Literal["histogram", "minmax"]

LOW, HIGH = -128, 127  # of weights; the scale makes the largest of a channel ±127
LEVELS = 255  # of inputs, which are unsigned
SMALLEST = 1e-12  # a scale: of a channel or an input that is zero throughout


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


def quantize(
    net: nn.Module,
    inputs: Tensor,
    *,
    observer: Observer = "minmax",
    keep: Sequence[str] = (),
    fold: bool = True,
    batch: int = 256,
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of a net that computes as with eight-bit integers: post-training quantisation.

    Batch normalisation is folded into the layer before it first. Then weights are rounded to int8
    per output channel, symmetrically, and the inputs of each layer to uint8, as a whole, with
    ranges found on the inputs given, which may be synthetic. Sums, biases, and everything between
    the layers stay in floating point. What comes back can be trained further (quantisation-aware
    distillation): scales stay as they are, and gradients pass straight through the rounding.

    Arguments:
        net: The net, which is not modified.
        inputs: What the net eats (normalised), with shape `(N, *shape)`; a few hundred will do.
        observer: How the range of a layer's inputs is found: `"minmax"` takes all of it,
            `"histogram"` the part that loses least in the mean square (torch's observers).
            Synthetic inputs rather reach less far than real ones, so that clipping costs more.
        keep: Names or shell-style patterns of layers to leave in floating point.
        fold: Whether to fold batch normalisation.
        batch: How many inputs to run at once.

    Returns:
        The copy, in the net's mode, and how it was made as plain JSON types, for
        :func:`restructure_quantized`: `layers`, `folded` pairs, and `skipped` ones with reasons.

    Raises:
        ValueError: If the net is not sound, cannot be copied, rejects the inputs or has no layer
            to quantise, or the inputs are not finite.

    References:
        | Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        | Inference (Jacob et al., 2018) https://arxiv.org/abs/1712.05877
        | The Knowledge Within: Methods for Data-Free Model Compression (Haroush et al., 2020)
        | https://arxiv.org/abs/1912.01274, for calibration on synthetic inputs

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> student, step = quantize(net, torch.rand(32, 4))
        >>> step["layers"], student[0]
        (['0', '2'], QuantizedLinear(in_features=4, out_features=8, bias=True, int8))
    """
    if observer not in ("histogram", "minmax"):
        raise ValueError(f"Expected the observer histogram or minmax; got {observer!r}.")
    require_finite(net)
    inputs = require_inputs(net, inputs)
    found, skipped = _eligible(net, keep)
    few = inputs[: min(8, len(inputs))]
    copy, folded = fold_batchnorm(net, found, few) if fold else (copied(net), [])
    modules = dict(copy.named_modules())
    ranges = _calibrated(copy, {name: modules[name] for name in found}, inputs, observer, batch)
    idle = {name: "no input reaches it" for name in found if name not in ranges}
    skipped = {**skipped, **idle, **_kept_norms(copy)}
    if not ranges:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ValueError(
            f"Expected a net with Conv1d, Conv2d or Linear layers to quantise; "
            f"{type(net).__name__} has none{f' ({reasons})' if reasons else ''}."
        )
    for name, (scale, zero_point) in ranges.items():
        layer = _converted(modules[name])
        layer.input_scale.copy_(scale)
        layer.input_zero_point.copy_(zero_point)
        layer.weight_scale.copy_(_weight_scale(layer.weight))
    return copy, {
        "method": "quantize",
        "layers": list(ranges),
        "folded": [list(pair) for pair in folded],
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped.items()],
        "observer": observer,
        "inputs": len(inputs),
    }


def restructure_quantized(net: nn.Module, step: Mapping[str, Any]) -> nn.Module:
    """A copy of a net with quantised layers but other values, to load a state dict into.

    Arguments:
        net: A net of the architecture that was quantised. It is not modified.
        step: The dictionary that :func:`quantize` made.

    Raises:
        ValueError: If the dictionary is malformed or does not fit the net.
    """
    try:
        layers = [str(name) for name in step["layers"]]
        folded = [(str(layer), str(norm)) for layer, norm in step["folded"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Not a quantisation: {step!r} ({error!r}).") from error
    found, skipped = _eligible(net)
    for name in layers:
        if name not in found:
            raise ValueError(
                f"Layer {name!r} cannot be quantised: "
                f"{skipped.get(name, 'the net has no such layer')}."
            )
    net = folded_layers(net, folded)
    modules = dict(net.named_modules())
    for name in dict.fromkeys(layers):
        _converted(modules[name])
    return net


@torch.no_grad()
def int8_state(net: nn.Module) -> dict[str, Tensor]:
    """A net's state dict with the weights of quantised layers as int8, a quarter of the bytes.

    It loads as any other does. The net then gives bit for bit the same outputs; what training
    had changed below the grid of the integers is gone.

    Example:
        >>> net, _ = quantize(nn.Sequential(nn.Linear(4, 8)), torch.rand(32, 4))
        >>> int8_state(net)["0.weight"].dtype
        torch.int8
    """
    state = dict(net.state_dict())
    for name, layer in net.named_modules(remove_duplicate=False):
        if isinstance(layer, FakeQuantized):
            state[f"{name}.weight".lstrip(".")] = integer_weight(layer)
    return state


@torch.no_grad()
def integer_weight(layer: FakeQuantized) -> Tensor:
    """The weight of a quantised layer as int8, to be multiplied by its scale."""
    weight = layer.quantised_weight()
    return (weight / _column(layer.weight_scale, weight)).round().to(torch.int8)


def _eligible(
    net: nn.Module, keep: Sequence[str] = ()
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that can be quantised by name, and those with weights that cannot, and why."""
    found: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    owners = parameter_owners(net)
    for name, layer in net.named_modules():
        if not any(p.ndim > 1 for p in layer.parameters(recurse=False)):
            continue
        reason = _refusal(name, layer, owners, keep)
        if reason is None:
            found[name] = layer
        else:
            skipped[name] = reason
    return found, skipped


def _refusal(
    name: str, layer: nn.Module, owners: Mapping[int, list[str]], keep: Sequence[str]
) -> str | None:
    if isinstance(layer, FakeQuantized):
        return "it is quantised already"
    if not isinstance(layer, KINDS):
        return f"a {type(layer).__name__} uses its weights in its own way"
    if any(name == pattern or fnmatchcase(name, pattern) for pattern in keep):
        return "it is to be kept in floating point"
    return why_irreplaceable(layer, owners)


def _kept_norms(net: nn.Module) -> dict[str, str]:
    reason = "no layer feeds it alone into which it could be folded"
    return {name: reason for name, m in net.named_modules() if isinstance(m, _BatchNorm)}


def _converted(layer: nn.Module) -> FakeQuantized:
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


def _weight_scale(weight: Tensor) -> Tensor:
    return (weight.detach().flatten(1).abs().amax(1).float() / HIGH).clamp(min=SMALLEST)


def _calibrated(
    net: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, observer: Observer, batch: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """The scale and zero point of the inputs of every layer that is called."""
    from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver

    kind: Any = HistogramObserver if observer == "histogram" else MinMaxObserver
    observers = {name: kind(dtype=torch.quint8).to(inputs.device) for name in layers}
    called: set[str] = set()

    def watch(name: str) -> Any:
        def hook(_: nn.Module, x: tuple[Any, ...]) -> None:
            called.add(name)
            observers[name](x[0].detach().float())

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with evaluating(net):
            for part in inputs.split(batch):
                net(part)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _range(observers[name]) for name in layers if name in called}


def _range(observer: Any) -> tuple[Tensor, Tensor]:
    scale, zero_point = observer.calculate_qparams()
    return scale.reshape(()).clamp(min=SMALLEST), zero_point.reshape(())
