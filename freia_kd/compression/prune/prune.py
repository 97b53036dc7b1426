"""Which channels go, and nets that have lost some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..cost import CONVOLUTIONS, count_macs, trace_layers
from ..modules import copied, listed
from .groups import Group, is_depthwise

MAX_CHANNELS = 2**24
MAX_DIMENSIONS = 5
Shape = tuple[int, ...]


def truncated(net: nn.Module, changes: Mapping[str, tuple[Shape, Shape]]) -> nn.Module:
    """A copy of a net whose tensors have new shapes, with what is left of their values.

    Raises:
        ValueError: If the net's shapes before are others, or a layer cannot be pruned.
    """
    state = net.state_dict()
    for name, (old, _) in changes.items():
        found = tuple(state[name].shape) if name in state else None
        if found != old:
            raise ValueError(f"Expected a net whose {name!r} has the shape {old}; got {found}.")
    net = copied(net)
    for path, module in net.named_modules():
        names = [n for n in (*module._parameters, *module._buffers) if _join(path, n) in changes]
        for name in names:
            _truncate(module, name, changes[_join(path, name)][1])
        if names:
            _set_sizes(path, module)
    return net


def read_shapes(step: Mapping[str, Any]) -> dict[str, tuple[Shape, Shape]]:
    """The shapes of tensors before and after that a step records, checked.

    Raises:
        ValueError: If the dictionary is malformed.
    """
    try:
        shapes = {str(n): (tuple(old), tuple(new)) for n, (old, new) in step["shapes"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"Not a pruning: {step!r} ({error!r}).") from error
    for name, (old, new) in shapes.items():
        integers = all(isinstance(n, int) and not isinstance(n, bool) for n in (*old, *new))
        fits = integers and len(old) == len(new) and len(old) <= MAX_DIMENSIONS
        if not fits or not all(1 <= n <= m <= MAX_CHANNELS for n, m in zip(new, old, strict=True)):
            raise ValueError(f"Expected shapes before and after for {name!r}; got {old} and {new}.")
    return shapes


def _truncate(module: nn.Module, name: str, shape: Shape) -> None:
    rows = tuple(slice(0, n) for n in shape)
    old = module._parameters.get(name)
    if old is not None:
        new = nn.Parameter(old.detach()[rows].clone(), requires_grad=old.requires_grad)
        module._parameters[name] = new
    else:
        buffer = module._buffers[name]
        assert buffer is not None
        module._buffers[name] = buffer[rows].clone()


def _set_sizes(path: str, module: Any) -> None:
    """Makes the attributes of a layer those of its weights."""
    if isinstance(module, CONVOLUTIONS):
        if is_depthwise(module):
            module.groups = len(module.weight)
        module.out_channels = len(module.weight)
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        sized: Any = module.running_var if module.weight is None else module.weight
        module.num_features = len(sized)
    else:
        raise ValueError(f"Layer {path!r}: a {type(module).__name__} cannot be pruned.")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def changed_shapes(net: nn.Module, smaller: nn.Module) -> dict[str, list[list[int]]]:
    """The shapes of tensors before and after, where they differ."""
    before = net.state_dict()
    return {
        name: [list(before[name].shape), list(value.shape)]
        for name, value in smaller.state_dict().items()
        if value.shape != before[name].shape
    }


def choose_channels(
    net: nn.Module,
    groups: Sequence[Group],
    shape: Sequence[int],
    keep_ratio: float,
    skipped: Mapping[str, str],
) -> dict[str, list[int]]:
    """The least important channels whose removal leaves a share of the computation.

    Raises:
        ValueError: If they do not suffice; the message says why the others stay.
    """
    ledger = _Ledger(net, shape)
    total, most = ledger.macs, keep_ratio * ledger.macs
    removed: list[tuple[int, int]] = []
    for index, channel in _ranked(groups):
        if ledger.macs <= most:
            break
        ledger.add(groups[index], -1)
        removed.append((index, channel))
    if ledger.macs > most or not removed:
        raise ValueError(
            f"Expected a share that can be reached; got {keep_ratio}, but at least "
            f"{ledger.macs / total if total else 1:.3f} of the computation must stay "
            f"({listed(skipped)})."
        )
    chosen: dict[str, list[int]] = {}
    for index, channel in reversed(removed):  # the last channel may have saved more than needed
        ledger.add(groups[index], 1)
        if ledger.macs > most:
            ledger.add(groups[index], -1)
            chosen.setdefault(groups[index].root, []).append(channel)
    return {root: sorted(channels) for root, channels in chosen.items()}


class _Ledger:
    """The multiply-accumulates of a net while channels come and go.

    Arguments:
        net: The net.
        shape: The shape of one input.
    """

    def __init__(self, net: nn.Module, shape: Sequence[int]) -> None:
        self.macs = float(count_macs(net, shape))
        self.uses = trace_layers(net, shape)
        modules = dict(net.named_modules())
        self.layers = {name: modules[name] for name in self.uses}
        self.left = {
            (name, side): float(size)
            for name, layer in self.layers.items()
            for side, size in _sizes(layer).items()
        }

    def add(self, group: Group, channels: int) -> None:
        """Gives a group channels, or takes them if the number is negative."""
        touched = {name for name, _ in group.sides}
        self.macs -= sum(map(self._cost, touched))
        for key, each in group.sides.items():
            self.left[key] += channels * each
        self.macs += sum(map(self._cost, touched))

    def _cost(self, name: str) -> float:
        layer = self.layers[name]
        sides = {"out"} if is_depthwise(layer) else {"in", "out"}
        shares = [self.left[name, s] / size for s, size in _sizes(layer).items() if s in sides]
        return self.uses[name].macs * math.prod(shares)


def _ranked(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """The channels that may be removed, as group and channel, the least important first."""
    scored = []
    for index, group in enumerate(groups):
        order = group.scores.argsort(stable=True)[: group.removable]
        scored += [(group.scores[c].item(), index, int(c)) for c in order]
    return [(index, channel) for _, index, channel in sorted(scored)]


def _sizes(layer: Any) -> dict[str, int]:
    if isinstance(layer, nn.Linear):
        return {"in": layer.in_features, "out": layer.out_features}
    return {"in": layer.in_channels, "out": layer.out_channels}
