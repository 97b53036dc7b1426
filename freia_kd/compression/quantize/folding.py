"""Batch normalisation folded into the layer before it, where that is exact in eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ...modes import evaluating
from ..modules import KINDS, copied, hooked, same_outputs, swapped

Pair = tuple[str, str]


def fold_batchnorm(
    net: nn.Module, layers: Iterable[str], inputs: Tensor
) -> tuple[nn.Module, list[Pair]]:
    r"""A copy of a net whose batch normalisation is part of the layers that feed it.

    .. math:: \gamma\,\frac{W x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = W' x + b'

    A pair is folded if the net calls both once, the one with the very tensor that the other gave,
    and if its outputs are the same afterwards (the tensor may be used elsewhere, too).

    Arguments:
        net: The net, which is not modified.
        layers: Names of `Conv1d`, `Conv2d` and `Linear` layers that may be changed.
        inputs: A few inputs, with shape `(N, *shape)`.

    Returns:
        The copy, and the names of the layers with what was folded into them. Where a layer was
        folded, an `Identity` is left.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        >>> fold_batchnorm(net, ["0"], torch.zeros(1, 1, 4, 4))[1]
        [('0', '1')]
    """
    with evaluating(net):
        before = net(inputs)
        pairs = _adjacent(net, set(layers), inputs)
    folded = folded_layers(net, pairs, values=True)
    if not _unchanged(folded, inputs, before):
        pairs = [
            p for p in pairs if _unchanged(folded_layers(net, [p], values=True), inputs, before)
        ]
        folded = folded_layers(net, pairs, values=True)
    return folded, pairs


def folded_layers(net: nn.Module, pairs: Sequence[Pair], values: bool = False) -> nn.Module:
    """The copy of :func:`fold_batchnorm` for given pairs, by default with other weights.

    Raises:
        ValueError: If the pairs are not names of a layer and a batch normalisation that fits.
    """
    net = copied(net)
    modules = dict(net.named_modules())
    replacements: dict[int, nn.Module] = {}
    for name, norm_name in pairs:
        layer, norm = modules.get(name), modules.get(norm_name)
        if not _fits(layer, norm) or id(norm) in replacements:
            raise ValueError(
                f"{norm_name!r} cannot be folded into {name!r}: the net has no such pair."
            )
        _fold(layer, norm, values)
        replacements[id(norm)] = nn.Identity().train(net.training)
    return swapped(net, replacements)


def _fits(layer: Any, norm: Any) -> bool:
    return (
        isinstance(layer, KINDS)
        and isinstance(norm, _BatchNorm)
        and norm.running_var is not None
        and norm.num_features == len(layer.weight)
    )


@torch.no_grad()
def _fold(layer: Any, norm: Any, values: bool) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
        layer.bias.requires_grad_(layer.weight.requires_grad)
    if values:
        weight, bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, norm.running_mean, norm.running_var,
            norm.eps, norm.weight, norm.bias,
        )  # fmt: skip
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def _adjacent(net: nn.Module, layers: set[str], inputs: Tensor) -> list[Pair]:
    """Layers and the batch normalisations that the net applies to just what they give."""
    modules = {
        name: module
        for name, module in net.named_modules()
        if name in layers or isinstance(module, _BatchNorm)
    }
    calls: dict[str, list[tuple[Any, int, Any]]] = {name: [] for name in modules}

    def record(name: str) -> Any:
        def hook(_: nn.Module, x: tuple[Any, ...], y: Tensor) -> None:
            calls[name].append((x[0], x[0]._version, (y, y._version)))

        return hook

    with hooked(m.register_forward_hook(record(name)) for name, m in modules.items()):
        net(inputs)
    return _pairs(modules, layers, {n: c[0] for n, c in calls.items() if len(c) == 1})


def _pairs(
    modules: Mapping[str, nn.Module], layers: set[str], calls: Mapping[str, tuple[Any, int, Any]]
) -> list[Pair]:
    """Matches by identity; an operation in place in between gives the tensor a new version."""
    given = {(id(y), v): name for name, (_, _, (y, v)) in calls.items() if name in layers}
    pairs = []
    for norm, (x, version, _) in calls.items():
        layer = given.get((id(x), version))
        if norm not in layers and layer is not None and _fits(modules[layer], modules[norm]):
            pairs.append((layer, norm))
    return pairs


def _unchanged(net: nn.Module, inputs: Tensor, before: Tensor) -> bool:
    with evaluating(net):
        return same_outputs(net(inputs), before)
