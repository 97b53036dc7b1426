"""What compression bought: costs before and after, in all and per layer, and plain warnings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from .cost import (
    Latency,
    count_macs,
    count_parameters,
    file_bytes,
    measure_latencies,
    peak_bytes,
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
    """

    name: str
    ranks: tuple[int, ...]
    change: str
    parameters: tuple[int, int]
    macs: tuple[int, int]
    latency: tuple[Latency, Latency]


@dataclass(frozen=True)
class Comparison:
    """Costs before and after compression.

    Arguments:
        before: The costs of the teacher.
        after: The costs of the student.
        layers: The costs of each compressed layer.
        warnings: What fewer multiply-accumulates did not buy here, in plain words.
    """

    before: Costs
    after: Costs
    layers: tuple[LayerCosts, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; batch sizes become text."""
        return json.loads(json.dumps(asdict(self)))


def compare_costs(
    before: nn.Module,
    after: nn.Module,
    shape: Sequence[int],
    batches: Sequence[int] = (1, 64),
    seconds: float = 0.5,
    by_layer: bool = True,
) -> Comparison:
    """Measures two nets side by side, and every layer that differs.

    Arguments:
        before: The teacher.
        after: The student that compression made of it: layers keep their names. Or another net.
        shape: The shape of one input, without the batch.
        batches: The batch sizes at which to measure latency and memory.
        seconds: About how long to time each net at each batch size; a fifth of it per layer.
        by_layer: Whether to compare layers, which makes sense only of the same architecture.

    Raises:
        ValueError: If a net rejects inputs of that shape.

    Example:
        >>> import torch
        >>> from freia_kd.compression import Tucker
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = Tucker(layers={"0": 8}).apply(net, torch.zeros(1, 64)).net
        >>> compared = compare_costs(net, small, (64,), seconds=0.01)
        >>> compared.before.macs, compared.after.macs, compared.layers[0].ranks
        (4736, 1664, (8,))
        >>> compared.layers[0].change
        'low rank'
    """
    latency = {
        batch: measure_latencies([before, after], shape, batch, seconds) for batch in batches
    }
    costs = [
        Costs(
            count_parameters(net),
            count_macs(net, shape),
            file_bytes(net),
            {batch: peak_bytes(net, shape, batch) for batch in batches},
            {batch: latency[batch][i] for batch in batches},
        )
        for i, net in enumerate((before, after))
    ]
    layers = _compare_layers(before, after, shape, seconds / 5) if by_layer else ()
    return Comparison(costs[0], costs[1], layers, _warnings(costs[0], costs[1], layers))


def _compare_layers(
    before: nn.Module, after: nn.Module, shape: Sequence[int], seconds: float
) -> tuple[LayerCosts, ...]:
    rows = []
    uses = trace_layers(after, shape)
    for name, use in trace_layers(before, shape).items():
        old, new = before.get_submodule(name), after.get_submodule(name)
        change = _change(old, new)
        if not use.calls or not change:
            continue
        first = uses[f"{name}.0" if isinstance(new, nn.Sequential) else name]
        inputs = [s[1:] for s in first.inputs]
        before_ms, after_ms = (
            measure_latencies([layer], size, seconds=seconds / 2)[0]
            for layer, size in ((old, use.inputs[0][1:]), (new, inputs[0]))
        )
        rows.append(
            LayerCosts(
                name,
                _ranks(old, new) if isinstance(new, nn.Sequential) else (),
                change,
                (count_parameters(old), count_parameters(new)),
                (use.macs, sum(count_macs(new, s) for s in inputs)),
                (before_ms, after_ms),
            )
        )
    return tuple(rows)


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


def _warnings(before: Costs, after: Costs, layers: Sequence[LayerCosts]) -> tuple[str, ...]:
    """Where fewer multiply-accumulates do not mean faster, or fewer parameters not smaller."""
    found = []
    share = after.macs / before.macs if before.macs else 1.0
    if any("int8" in row.change for row in layers):
        return (
            "Its integers are computed in floating point here, so that these times and this memory "
            "say nothing of eight-bit hardware: a file by `freiakd export` does, in its runtime.",
        )
    for batch, old in before.latency.items():
        new = after.latency[batch]
        times = f"{old.median:.2f} ms before, {new.median:.2f} ms after"
        if share < 1 and new.median >= old.median:
            why = "its layers are more and smaller, and each" if layers else "each layer"
            found.append(
                f"The student needs {share:.0%} of the multiply-accumulates but is not faster here "
                f"at batch {batch} ({times}): {why} has a cost of its own."
            )
        elif share < 1 and new.high > old.low:
            found.append(
                f"At batch {batch} the student's gain in speed is within the spread of the "
                f"measurements here ({times})."
            )
    if share > 1:
        found.append(f"The student needs {share:.0%} of the teacher's multiply-accumulates: more.")
    slower = [
        f"{row.name} ({row.latency[0].median:.3f} to {row.latency[1].median:.3f} ms)"
        for row in layers
        if row.latency[1].low > row.latency[0].high
    ]
    if slower:
        found.append(
            f"Slower than before on their own here: {', '.join(slower)}. Where speed matters more "
            "than size, leave them alone (rank 'keep')."
        )
    return tuple(found)
