"""What compression bought: costs before and after, in all and per layer, and plain warnings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from .cost import (
    Latency,
    LayerUse,
    Speed,
    count_macs,
    count_parameters,
    file_bytes,
    latency_of,
    peak_bytes,
    time_rounds,
    trace_layers,
)
from .quantize.layers import FakeQuantized
from .tucker.decompose import is_matrix


@dataclass(frozen=True)
class Costs:
    """What one net costs.

    Arguments:
        parameters: The number of parameters.
        macs: The multiply-accumulates for one input.
        bytes: The size of a file with its state dict.
        peak_bytes: The most memory that tensors take in a forward pass, by batch size.
        latency: The measured latency, by batch size.
    """

    parameters: int
    macs: int
    bytes: int
    peak_bytes: dict[int, int]
    latency: dict[int, Latency]


@dataclass(frozen=True)
class LayerCosts:
    """What one compressed layer cost before and after, for one input.

    Arguments:
        name: The layer's name in the net.
        ranks: The input and output rank, or the one rank of an SVD; none where the ranks stayed.
        change: What became of it: `"low rank"`, `"fewer channels"`, `"int8"`, joined by commas.
        parameters: Parameters before and after.
        macs: Multiply-accumulates before and after.
        latency: Latency of the layer alone before and after.
        speed: How much faster it is alone.
    """

    name: str
    ranks: tuple[int, ...]
    change: str
    parameters: tuple[int, int]
    macs: tuple[int, int]
    latency: tuple[Latency, Latency]
    speed: Speed | None = None


@dataclass(frozen=True)
class Comparison:
    """Costs before and after compression.

    Arguments:
        before: The costs of the teacher.
        after: The costs of the student.
        layers: The costs of each compressed layer.
        warnings: What fewer multiply-accumulates did not buy here, in plain words.
        speed: How much faster the student is, by batch size.
    """

    before: Costs
    after: Costs
    layers: tuple[LayerCosts, ...]
    warnings: tuple[str, ...]
    speed: dict[int, Speed] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; batch sizes become text."""
        return json.loads(json.dumps(asdict(self)))


def compare_costs(
    before: nn.Module,
    afters: Sequence[nn.Module],
    shape: Sequence[int],
    batches: Sequence[int] = (1, 64),
    seconds: float = 0.5,
    by_layer: Sequence[bool] | None = None,
) -> list[Comparison]:
    """Measures a net and what was made of it side by side, and every layer that differs.

    All nets, and then all forms of a layer, take turns; so the teacher has one latency, and a layer
    of it one, whatever it is compared with.

    Arguments:
        before: The teacher.
        afters: The students that compression made of it: layers keep their names. Or other nets.
        shape: The shape of one input, without the batch.
        batches: The batch sizes at which to measure latency and memory.
        seconds: About how long to time each net at each batch size; a tenth of it per layer.
        by_layer: For each student whether its layers are compared, which makes sense only of the
            teacher's own; by default they are.

    Returns:
        The costs of each student beside those of the teacher.

    Raises:
        ValueError: If a net rejects inputs of that shape.

    Example:
        >>> import torch
        >>> from freia_kd.compression import Tucker
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = Tucker(layers={"0": 8}).apply(net, torch.zeros(1, 64)).net
        >>> (compared,) = compare_costs(net, [small], (64,), seconds=0.01)
        >>> compared.before.macs, compared.after.macs, compared.layers[0].ranks
        (4736, 1664, (8,))
        >>> compared.layers[0].change
        'low rank'
    """
    by_layer = [True] * len(afters) if by_layer is None else by_layer
    nets = [before, *afters]
    times = {b: time_rounds(nets, [shape] * len(nets), b, seconds) for b in batches}
    costs = [
        Costs(
            count_parameters(net),
            count_macs(net, shape),
            file_bytes(net),
            {batch: peak_bytes(net, shape, batch) for batch in batches},
            {batch: latency_of(times[batch][i], batch) for batch in batches},
        )
        for i, net in enumerate(nets)
    ]
    similar = [after if same else before for after, same in zip(afters, by_layer, strict=True)]
    layers = _compare_layers(before, similar, shape, seconds / 10)
    found = []
    for i, own in enumerate(layers, 1):
        speed = {batch: Speed.of(times[batch][0], times[batch][i]) for batch in batches}
        said = _warnings(costs[0], costs[i], speed, own)
        found.append(Comparison(costs[0], costs[i], own, said, speed))
    return found


def _compare_layers(
    before: nn.Module, afters: Sequence[nn.Module], shape: Sequence[int], seconds: float
) -> list[tuple[LayerCosts, ...]]:
    """The layers that differ, of each student; those of the teacher are timed once."""
    rows: list[list[LayerCosts]] = [[] for _ in afters]
    traced = [trace_layers(after, shape) for after in afters]
    for name, use in trace_layers(before, shape).items():
        old = before.get_submodule(name)
        changed = [
            (i, new, uses[f"{name}.0" if isinstance(new, nn.Sequential) else name])
            for i, uses in enumerate(traced)
            if use.calls and _change(old, new := afters[i].get_submodule(name))
        ]
        if not changed:
            continue
        shapes = [u.inputs[0][1:] for u in (use, *(u for _, _, u in changed))]
        own, *times = time_rounds([old, *(new for _, new, _ in changed)], shapes, 1, seconds)
        for (i, new, new_use), measured in zip(changed, times, strict=True):
            rows[i].append(_compare_layer(name, (old, new), (use, new_use), (own, measured)))
    return [tuple(own) for own in rows]


def _compare_layer(
    name: str,
    layers: tuple[nn.Module, nn.Module],
    uses: tuple[LayerUse, LayerUse],
    times: tuple[Sequence[float], Sequence[float]],
) -> LayerCosts:
    """One layer before and after, from how the nets use it and how long it took in each round."""
    old, new = layers
    return LayerCosts(
        name=name,
        ranks=_ranks(old, new) if isinstance(new, nn.Sequential) else (),
        change=_change(old, new),
        parameters=(count_parameters(old), count_parameters(new)),
        macs=(uses[0].macs, sum(count_macs(new, s[1:]) for s in uses[1].inputs)),
        latency=(latency_of(times[0], 1), latency_of(times[1], 1)),
        speed=Speed.of(*times),
    )


def _change(old: Any, new: Any) -> str:
    """What became of a layer, in words; empty if nothing did."""
    parts: list[Any] = list(new) if isinstance(new, nn.Sequential) else [new]
    ends: Any = parts[0].weight.shape[1], parts[-1].weight.shape[0]
    found = {
        "low rank": isinstance(new, nn.Sequential),
        "fewer channels": ends != (old.weight.shape[1], old.weight.shape[0]),
        "int8": any(isinstance(part, FakeQuantized) for part in parts),
    }
    return ", ".join(change for change, there in found.items() if there)


def _ranks(old: Any, new: Any) -> tuple[int, ...]:
    """The ranks of the layers that replaced one."""
    if is_matrix(old):
        return (new[0].weight.shape[0],)
    kernel = old.weight.shape[2:]
    outs, ins = next(m.weight.shape[:2] for m in new if m.weight.shape[2:] == kernel)
    return ins, outs


def _warnings(
    before: Costs, after: Costs, speed: Mapping[int, Speed], layers: Sequence[LayerCosts]
) -> tuple[str, ...]:
    """Where fewer multiply-accumulates do not mean faster, or fewer parameters not smaller."""
    if any("int8" in row.change for row in layers):
        return (
            "Its integers are computed in floating point here, so that these times and this memory "
            "say nothing of eight-bit hardware: a file by `freiakd export` does, in its runtime.",
        )
    found = []
    share = after.macs / before.macs if before.macs else 1.0
    for batch, gain in speed.items():
        if share < 1 and gain.low <= 1:
            said = "is slower" if gain.high < 1 else "shows no measurable gain in speed"
            found.append(
                f"The student needs {share:.0%} of the multiply-accumulates but {said} here at "
                f"batch {batch}: {gain.low:.2f} to {gain.high:.2f} times the teacher's speed, in "
                f"{gain.rounds:,} rounds."
            )
    if share > 1:
        found.append(f"The student needs {share:.0%} of the teacher's multiply-accumulates: more.")
    slower = [
        f"{row.name} ({row.latency[0].median:.3f} to {row.latency[1].median:.3f} ms)"
        for row in layers
        if row.speed is not None and row.speed.high < 1
    ]
    if slower:
        found.append(
            f"Slower than before on their own here: {', '.join(slower)}. Where speed matters more "
            "than size, leave them alone (rank 'keep')."
        )
    return tuple(found)
