"""Structured pruning: whole channels are removed, the least important first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .channels import Group, Importance, find_groups, is_depthwise, without
from .cost import CONVOLUTIONS, count_macs, trace_layers
from .quantize import FakeQuantized
from .surgery import copied, require_finite, require_inputs

MOST_PRUNED = 100  # times fewer weights than before, as far as is believed of a file
MOST_CHANNELS = 2**24
MOST_DIMENSIONS = 5


def prune(
    net: nn.Module,
    inputs: Tensor,
    share: float = 0.5,
    *,
    importance: Importance = "magnitude",
    keep: Sequence[str] = (),
    generator: torch.Generator | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    r"""A copy of a net with a share of its multiply-accumulates, its least important channels gone.

    Channels that residual connections or depthwise convolutions tie together go together
    (torch-pruning's dependency graph). What it proposes is proved first: a group of channels is
    removed only if the smaller net gives the same outputs as one in which nothing reads those
    channels. All other groups, such as that of the output layer, stay as they are and are listed.

    The importance of a channel is

    .. math:: \sum_w |w|\ \Bigl|\frac{\partial}{\partial w} \sum_{n,c} v_{nc} f_c(x_n)\Bigr|
              \quad \text{(taylor)} \quad \text{or} \quad \sum_w w^2 \quad \text{(magnitude)}

    over the weights that make and read it, relative to the mean of its group. The channels of all
    groups are ranked together; a tenth of each group stays. Molchanov et al. take the gradient of
    the training loss. Here the loss is the divergence from the net itself, which has none, so
    that the logits' own change counts, in 8 directions of random signs :math:`v`.

    Arguments:
        net: The net, which is not modified.
        inputs: What the net eats (normalised), with shape `(N, *shape)`; may be synthetic.
        share: The share of the multiply-accumulates to keep at most, between 0 and 1.
        importance: `"taylor"`, the first-order change of the logits, or `"magnitude"`. The first
            leaves a better net, the second one that is at least as good once it is distilled.
        keep: Names or shell-style patterns of layers whose output channels stay.
        generator: The source of the signs, on the CPU; the same ones by default.

    Returns:
        The copy, in the net's mode, and how it was made as plain JSON types, for
        :func:`restructure_pruned`: the `shapes` that changed, old and new, the `macs` before and
        after, and the `skipped` layers with reasons.

    Raises:
        ImportError: If torch-pruning is missing; the message names the extra.
        ValueError: If the share is out of range or cannot be reached, the net is not sound,
            cannot be copied or traced, or rejects the inputs.

    References:
        | DepGraph: Towards Any Structural Pruning (Fang et al., 2023)
        | https://arxiv.org/abs/2301.12900
        | Importance Estimation for Neural Network Pruning (Molchanov et al., 2019)
        | Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion (Yin et al., 2020),
        | for pruning on synthetic images

    Example:
        >>> import torch
        >>> from freia_kd.teachers.lenet5 import LeNet5
        >>> net = LeNet5()
        >>> student, step = prune(net, torch.rand(4, 1, 32, 32), share=0.5)
        >>> step["macs"][1] <= 0.5 * step["macs"][0], student.fc2.out_features
        (True, 10)
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ValueError(f"Expected a share of the computation between 0 and 1; got {share!r}.")
    if importance not in ("taylor", "magnitude"):
        raise ValueError(f"Expected the importance taylor or magnitude; got {importance!r}.")
    from ..flows.adapters.common import require

    require("torch_pruning", "prune")
    require_finite(net)
    inputs = require_inputs(net, inputs)
    if any(isinstance(module, FakeQuantized) for module in net.modules()):
        raise ValueError("Expected a net in floating point: prune before you quantise.")
    generator = generator or torch.Generator().manual_seed(0)
    groups, skipped = find_groups(net, inputs, importance, keep, generator)
    chosen = _choose(net, groups, inputs.shape[1:], share, skipped)
    smaller, same = without(net, chosen, inputs)
    if not same:
        raise ValueError(
            "The pruned net does not compute what it should: its groups of channels, each proved "
            "alone, depend on one another. Name some of their layers in `keep`."
        )
    step = {
        "method": "prune",
        "shapes": _changed_shapes(net, smaller),
        "share": share,
        "importance": importance,
        "macs": [count_macs(n, inputs.shape[1:]) for n in (net, smaller)],
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped.items()],
    }
    student = restructure_pruned(net, step)  # a clean copy, with the net's modes and flags
    student.load_state_dict(smaller.state_dict())
    return student, step


def restructure_pruned(net: nn.Module, step: Mapping[str, Any]) -> nn.Module:
    """A copy of a net with the shapes of a pruned one, to load a state dict into.

    Arguments:
        net: A net of the architecture that was pruned. It is not modified.
        step: The dictionary that :func:`prune` made.

    Raises:
        ValueError: If the dictionary is malformed or does not fit the net.
    """
    shapes = {name: new for name, (_, new) in _shapes(step).items()}
    state = net.state_dict()
    for name, (old, _) in _shapes(step).items():
        found = tuple(state[name].shape) if name in state else None
        if found != old:
            raise ValueError(f"Expected a net whose {name!r} has the shape {old}; got {found}.")
    net = copied(net)
    for path, module in net.named_modules():
        names = [n for n in (*module._parameters, *module._buffers) if _join(path, n) in shapes]
        for name in names:
            _truncate(module, name, shapes[_join(path, name)])
        if names:
            _set_sizes(path, module)
    return net


def unpruned_state(state: Mapping[str, Tensor], step: Mapping[str, Any]) -> dict[str, Tensor]:
    """A pruned net's state with the shapes it had before, for nets that read their widths off it.

    The tensors that had other shapes have no values (they are on the device `meta`).

    Raises:
        ValueError: If the dictionary is malformed, or the shapes are beyond what pruning leaves.
    """
    shapes = _shapes(step)
    before = {name: torch.empty(old, device="meta") for name, (old, _) in shapes.items()}
    after = sum(value.numel() for value in state.values())
    if sum(math.prod(old) for old, _ in shapes.values()) > MOST_PRUNED * after:
        raise ValueError(f"Expected a net that lost less than {MOST_PRUNED - 1} of {MOST_PRUNED}.")
    return {**state, **before}


def _shapes(step: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes of tensors before and after, checked.

    Raises:
        ValueError: If the dictionary is malformed.
    """
    try:
        shapes = {str(n): (tuple(old), tuple(new)) for n, (old, new) in step["shapes"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"Not a pruning: {step!r} ({error!r}).") from error
    for name, (old, new) in shapes.items():
        integers = all(isinstance(n, int) and not isinstance(n, bool) for n in (*old, *new))
        fits = integers and len(old) == len(new) and len(old) <= MOST_DIMENSIONS
        if not fits or not all(1 <= n <= m <= MOST_CHANNELS for n, m in zip(new, old, strict=True)):
            raise ValueError(f"Expected shapes before and after for {name!r}; got {old} and {new}.")
    return shapes


def _truncate(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
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


def _changed_shapes(net: nn.Module, smaller: nn.Module) -> dict[str, list[list[int]]]:
    before = net.state_dict()
    return {
        name: [list(before[name].shape), list(value.shape)]
        for name, value in smaller.state_dict().items()
        if value.shape != before[name].shape
    }


def _choose(
    net: nn.Module,
    groups: Sequence[Group],
    shape: Sequence[int],
    share: float,
    skipped: Mapping[str, str],
) -> dict[str, list[int]]:
    """The least important channels whose removal leaves a share of the computation."""
    ledger = _Ledger(net, shape)
    total, most = ledger.macs, share * ledger.macs
    removed: list[tuple[int, int]] = []
    for index, channel in _ranked(groups):
        if ledger.macs <= most:
            break
        ledger.add(groups[index], -1)
        removed.append((index, channel))
    if ledger.macs > most or not removed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ValueError(
            f"Expected a share that can be reached; got {share}, but at least "
            f"{ledger.macs / total if total else 1:.3f} of the computation must stay ({reasons})."
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
