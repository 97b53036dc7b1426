"""Eight-bit integers: layers that compute as int8 hardware does, calibrated without real data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..method import Compressed, Compression, as_usage
from ..modules import listed, require_finite, require_inputs
from .calibrate import Observer, eligible_layers, input_ranges, unfolded_norms
from .folding import fold_batchnorm, folded_layers
from .layers import quantised_layer, symmetric_scale

PROBES = 8  # inputs on which folding is proved


@dataclass(frozen=True)
class Quantize(Compression):
    """Layers compute as with eight-bit integers: post-training quantisation.

    Batch normalisation is folded into the layer before it first. Then weights are rounded to int8
    per output channel, symmetrically, and the inputs of each layer to uint8, as a whole, with
    ranges found on the calibration set, which may be synthetic. Sums, biases, and everything
    between the layers stay in floating point. What comes back can be trained further
    (quantisation-aware distillation): scales stay as they are, and gradients pass straight through
    the rounding.

    Arguments:
        observer: How the range of a layer's inputs is found: `"minmax"` takes all of it,
            `"histogram"` the part that loses least in the mean square (torch's observers).
            Synthetic inputs rather reach less far than real ones, so that clipping costs more.
        keep: Names or shell-style patterns of layers to leave in floating point.

    Raises:
        ConfigError: If a value makes no sense.

    References:
        | Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        | Inference (Jacob et al., 2018) https://arxiv.org/abs/1712.05877
        | The Knowledge Within: Methods for Data-Free Model Compression (Haroush et al., 2020)
        | https://arxiv.org/abs/1912.01274, for calibration on synthetic inputs

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> made = Quantize().apply(net, torch.rand(32, 4))
        >>> made.step["layers"], made.net[0]
        (['0', '2'], QuantizedLinear(in_features=4, out_features=8, bias=True, int8))
    """

    name: ClassVar[str] = "quantize"
    is_last: ClassVar[bool] = True
    skipped_verb: ClassVar[str] = "was not quantised"
    observer: Observer = "minmax"
    keep: tuple[str, ...] = ()

    @as_usage()
    def apply(self, net: nn.Module, inputs: Tensor, arch: str = "") -> Compressed:
        require_finite(net)
        inputs = require_inputs(net, inputs)
        found, skipped = eligible_layers(net, self.keep)
        copy, folded = fold_batchnorm(net, found, inputs[:PROBES])
        modules = dict(copy.named_modules())
        ranges = input_ranges(copy, {name: modules[name] for name in found}, inputs, self.observer)
        idle = {name: "no input reaches it" for name in found if name not in ranges}
        skipped = {**skipped, **idle, **unfolded_norms(copy)}
        if not ranges:
            raise ValueError(
                f"Expected a net with Conv1d, Conv2d or Linear layers to quantise; "
                f"{type(net).__name__} has none{f' ({listed(skipped)})' if skipped else ''}."
            )
        for name, (scale, zero_point) in ranges.items():
            layer = quantised_layer(modules[name])
            layer.input_scale.copy_(scale)
            layer.input_zero_point.copy_(zero_point)
            layer.weight_scale.copy_(symmetric_scale(layer.weight))
        step = {
            "method": self.name,
            "layers": list(ranges),
            "folded": [list(pair) for pair in folded],
            "skipped": skipped,
            **self.to_dict(),
            "inputs": len(inputs),
        }
        return Compressed(copy, step)

    @classmethod
    def rebuild(cls, net: nn.Module, step: Mapping[str, Any]) -> nn.Module:
        try:
            layers = [str(name) for name in step["layers"]]
            folded = [(str(layer), str(norm)) for layer, norm in step["folded"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Not a quantisation: {step!r} ({error!r}).") from error
        found, skipped = eligible_layers(net)
        for name in layers:
            if name not in found:
                reason = skipped.get(name, "the net has no such layer")
                raise ValueError(f"Layer {name!r} cannot be quantised: {reason}.")
        net = folded_layers(net, folded)
        modules = dict(net.named_modules())
        for name in dict.fromkeys(layers):
            quantised_layer(modules[name])
        return net

    @classmethod
    def describe(cls, step: Mapping[str, Any]) -> str:
        return f"{len(step['layers'])} layers of integers"
