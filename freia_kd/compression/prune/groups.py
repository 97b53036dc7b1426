"""Which channels of a net can be removed together, and how much each of them matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...modes import evaluating
from ..cost import CONVOLUTIONS
from ..modules import copied, matches, same_outputs

Importance = Literal["taylor", "magnitude"]

LAYERS = (*CONVOLUTIONS, nn.Linear)
PRUNABLE = (*LAYERS, _BatchNorm)
MIN_KEPT = 0.1  # of a group's channels stay, so that no layer becomes a bottleneck
DIRECTIONS = 8  # random ones, of which the gradients are averaged
PROBES = 8  # inputs that a pruned net is compared on


@dataclass(frozen=True)
class Group:
    """Channels of several layers that can only be removed together.

    Arguments:
        root: The name of the layer that makes them.
        scores: Their importance, with mean 1.
        sides: How many channels each layer would lose for one of the group, by the layer's name
            and side, `"in"` or `"out"`.
    """

    root: str
    scores: Tensor
    sides: Mapping[tuple[str, str], float]

    @property
    def removable(self) -> int:
        """How many may be removed at most."""
        return len(self.scores) - max(1, round(MIN_KEPT * len(self.scores)))


def _graph(net: nn.Module, inputs: Tensor) -> Any:
    """The dependency graph of a net, which is traced by its gradients."""
    import torch_pruning

    net.eval().requires_grad_(True)
    try:
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(
                net, example_inputs=inputs[:1], verbose=False
            )
    except Exception as error:
        raise ValueError(
            f"Expected a net that torch-pruning can trace; {type(net).__name__} cannot be "
            f"({type(error).__name__}: {error})."
        ) from error


def find_groups(
    net: nn.Module,
    inputs: Tensor,
    importance: Importance,
    keep: Sequence[str],
    generator: torch.Generator,
) -> tuple[list[Group], dict[str, str]]:
    """The groups of channels that can be removed, and the layers that must stay, with reasons."""
    copy = copied(net)
    graph = _graph(copy, inputs)
    names = {id(module): name for name, module in copy.named_modules()}
    tied: dict[str, tuple[Any, dict[tuple[str, str], float]]] = {}
    skipped: dict[str, str] = {}
    for group in graph.get_all_groups(root_module_types=[*LAYERS]):
        root, sides = names[id(group[0].dep.target.module)], _sides(graph, group, names)
        reason = _unsupported_reason([dep.target.module for dep, _ in group], sides, keep)
        if reason is None:
            tied[root] = group, sides
        else:
            skipped[root] = reason
    if not tied:
        return [], skipped
    scores = _scores(copy, [group for group, _ in tied.values()], inputs, importance, generator)
    groups = [
        Group(root, score, sides)
        for (root, (_, sides)), score in zip(tied.items(), scores, strict=True)
    ]
    return _proved(net, groups, inputs, skipped), skipped


def _scores(
    net: nn.Module,
    groups: Sequence[Any],
    inputs: Tensor,
    importance: Importance,
    generator: torch.Generator,
) -> list[Tensor]:
    """The importance of each channel of each group, relative to the mean of the group."""
    from torch_pruning import importance as measures

    if importance == "magnitude":
        magnitude = measures.GroupMagnitudeImportance(normalizer=None)
        return [_relative(magnitude(group)) for group in groups]
    taylor = measures.GroupTaylorImportance(normalizer=None)
    sums = [torch.zeros(len(group[0].idxs)) for group in groups]
    for _ in range(DIRECTIONS):
        _backward(net, inputs, generator)
        sums = [total + taylor(group).cpu() for total, group in zip(sums, groups, strict=True)]
    return [_relative(total) for total in sums]


def _relative(scores: Tensor) -> Tensor:
    scores = scores.double().cpu()
    mean = scores.mean()
    return scores / mean if mean > 0 else torch.ones_like(scores)


def _backward(net: nn.Module, inputs: Tensor, generator: torch.Generator, batch: int = 256) -> None:
    """Leaves the gradient of all outputs, each with a random sign."""
    net.zero_grad()
    for part in inputs.split(batch):
        outputs = net(part)
        signs = torch.randint(2, outputs.shape, generator=generator) * 2 - 1
        (outputs * signs.to(outputs)).sum().backward()


def _sides(graph: Any, group: Any, names: Mapping[int, str]) -> dict[tuple[str, str], float]:
    sides: dict[tuple[str, str], float] = {}
    for dep, channels in group:
        module = dep.target.module
        if isinstance(module, LAYERS):
            side = "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in"
            key = names[id(module)], side
            sides[key] = sides.get(key, 0.0) + len(channels) / len(group[0].idxs)
    return sides


def _unsupported_reason(
    modules: Sequence[Any], sides: Mapping[tuple[str, str], float], keep: Sequence[str]
) -> str | None:
    """Why a group of channels must stay, or `None`."""
    for module in modules:
        if isinstance(module, nn.Parameter):
            return "its channels meet a parameter that belongs to no layer"
        weights = list(module.parameters(recurse=False))
        if any(len(w) > 1 for w in weights if w.ndim) and not isinstance(module, PRUNABLE):
            return f"its channels go through a {type(module).__name__}"
        if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
            return f"its channels go through a convolution of {module.groups} groups"
    if any(matches(name, keep) for name, side in sides if side == "out"):
        return "it is to be kept"
    if not any(side == "in" for _, side in sides):
        return "no layer reads its channels: they are the net's output"
    return None


def _proved(
    net: nn.Module, groups: list[Group], inputs: Tensor, skipped: dict[str, str]
) -> list[Group]:
    """The groups of which channels can be removed without changing what the others compute."""
    if without(net, {group.root: _every_other(group) for group in groups}, inputs)[1]:
        return groups
    proved = []
    for group in groups:
        if without(net, {group.root: _every_other(group)}, inputs)[1]:
            proved.append(group)
        else:
            skipped[group.root] = "without its channels the net would compute something else"
    return proved


def _every_other(group: Group) -> list[int]:
    return list(range(len(group.scores)))[1::2]


def without(
    net: nn.Module, channels: Mapping[str, list[int]], inputs: Tensor
) -> tuple[nn.Module, bool]:
    """A copy without channels of given layers, and whether it computes what it should.

    That is what the net computes if no layer reads these channels.
    """
    copy = copied(net)
    graph = _graph(copy, inputs)
    modules = dict(copy.named_modules())

    def group(name: str) -> Any:
        handler = graph.get_pruner_of_module(modules[name]).prune_out_channels
        return graph.get_pruning_group(modules[name], handler, channels[name])

    channels = {name: which for name, which in channels.items() if which}
    try:
        with evaluating(copy):
            for name in channels:
                _mask(graph, group(name))
            expected = copy(inputs[:PROBES])
            for name in channels:
                group(name).prune()
            got = copy(inputs[:PROBES])
    except Exception:  # torch-pruning checks little before it fails
        return copy, False
    return copy, same_outputs(got, expected)


def _mask(graph: Any, group: Any) -> None:
    """Sets the weights that read channels of a group to zero."""
    for dep, channels in group:
        module = dep.target.module
        reads = graph.is_in_channel_pruning_fn(dep.handler) and not is_depthwise(module)
        if reads and isinstance(module, LAYERS):
            module.weight.data[:, channels] = 0


def is_depthwise(module: nn.Module) -> bool:
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == module.in_channels == module.out_channels
