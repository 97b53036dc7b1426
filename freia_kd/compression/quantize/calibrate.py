"""Which layers can be quantised, and the ranges of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...modes import evaluating
from ..modules import KINDS, hooked, matches, parameter_owners, unsupported_reason
from .layers import EPS, FakeQuantized

Observer = Literal["histogram", "minmax"]
BATCH = 256  # inputs that are run at once


def eligible_layers(
    net: nn.Module, keep: Sequence[str] = ()
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that can be quantised by name, and those with weights that cannot, and why."""
    found: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    owners = parameter_owners(net)
    for name, layer in net.named_modules():
        if not any(p.ndim > 1 for p in layer.parameters(recurse=False)):
            continue
        reason = _unsupported_reason(name, layer, owners, keep)
        if reason is None:
            found[name] = layer
        else:
            skipped[name] = reason
    return found, skipped


def _unsupported_reason(
    name: str, layer: nn.Module, owners: Mapping[int, list[str]], keep: Sequence[str]
) -> str | None:
    if isinstance(layer, FakeQuantized):
        return "it is quantised already"
    if not isinstance(layer, KINDS):
        return f"a {type(layer).__name__} uses its weights in its own way"
    if matches(name, keep):
        return "it is to be kept in floating point"
    return unsupported_reason(layer, owners)


def unfolded_norms(net: nn.Module) -> dict[str, str]:
    """The batch normalisations of a net, with the reason why they are left."""
    reason = "no layer feeds it alone into which it could be folded"
    return {name: reason for name, m in net.named_modules() if isinstance(m, _BatchNorm)}


def input_ranges(
    net: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, observer: Observer
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

    hooks = (layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items())
    with evaluating(net), hooked(hooks):
        for part in inputs.split(BATCH):
            net(part)
    return {name: _range(observers[name]) for name in layers if name in called}


def _range(observer: Any) -> tuple[Tensor, Tensor]:
    scale, zero_point = observer.calculate_qparams()
    return scale.reshape(()).clamp(min=EPS), zero_point.reshape(())
