"""Plans that meet a target, found by agreement with the teacher on given inputs only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ...config import Runtime, Target
from ...runtimes import in_runtime
from ..cost import Speed, count_macs, count_parameters, time_rounds, trace_layers, undisturbed_clock
from ..modules import candidates, require_sound
from .plan import LayerPlan, Plan, apply_plan, restructure
from .sensitivity import (
    SHARES,
    Judge,
    LowRank,
    Sensitivity,
    levels,
    measure_sensitivity,
    saved,
)

CONFIRM = 1.0  # seconds for which each net is timed before a plan is taken
# Of the goal, what a latency is to be where it can: the ratio of two nets hangs on what else the
# machine does (of one pair, 1.38 to 1.52 within minutes, as its memory was busy or not).
MARGIN = 0.95
EPS = 1e-12  # nats: no layer is free
WHAT = {"params": "parameters", "macs": "multiply-accumulates", "latency": "latency"}
Layers = Mapping[str, LayerPlan]
Worth = Callable[[Sensitivity], float]


@dataclass(frozen=True)
class Budget:
    """A plan that meets a target, and how it was found.

    Arguments:
        plan: The plan, with the layers left alone and why.
        net: The net by that plan.
        target: What was bounded.
        goal: The bound: a share of the teacher's cost, or a drop in percentage points.
        reached: What the plan reaches, in the same unit.
        agreement: The share of inputs to which the compressed net gives the teacher's class,
            before any distillation.
        sensitivity: What each layer loses and saves on its own.
        batches: How many batches the search has run through the net.
        runtime: Where a latency was measured.
    """

    plan: Plan
    net: nn.Module
    target: Target
    goal: float
    reached: float
    agreement: float
    sensitivity: tuple[Sensitivity, ...]
    batches: int = 0
    runtime: Runtime = "torch"

    def to_dict(self) -> dict[str, Any]:
        """The fields without the plan and the net as plain JSON types."""
        fields = {name: found for name, found in vars(self).items() if name not in ("plan", "net")}
        return dict(json.loads(json.dumps(fields, default=asdict)))


def search_plan(
    net: nn.Module,
    inputs: Tensor,
    target: Target,
    goal: float,
    shares: Sequence[float] = SHARES,
    runtime: Runtime = "torch",
) -> Budget:
    r"""Finds the plan that meets a target and disturbs the net least.

    Every layer is tried alone at several ranks (:func:`measure_sensitivity`). From no
    compression, the layer that diverges least for what it saves goes down a step,
    again and again, as if divergences added up; that gives a path of plans. The first of them
    that meets the target is taken, and its layers, from the one moved last, are given back as
    much rank as the target allows. For `"drop"`, where the path saves parameters and
    multiply-accumulates alike, it is the last whose measured agreement is high enough.

    Agreement is that before distillation, which wins back most of what is lost: bounds on cost
    may be tight, and `"drop"` is careful.

    Arguments:
        net: The trained net, which is not modified.
        inputs: The calibration set, with shape `(N, *shape)`: synthetic images, normalised.
        target: `"params"`, `"macs"` or `"latency"` (at batch 1, measured here, with a margin where
            there is one), to be at most `goal` times the net's own; or `"drop"`, in agreement, to
            be at most `goal` percentage points.
        goal: The bound.
        shares: The shares of a layer's weights at which it is tried.
        runtime: Where latencies are measured, of layers alone and of the whole net.

    Raises:
        ExportError: If torch cannot export the net to that runtime.
        ImportError: If the extra `onnx` is missing and that runtime needs it.
        ValueError: If the net is not sound or rejects the inputs, or no plan meets the target;
            the message says the best found.
    """
    judge = Judge(net, inputs)
    rows = measure_sensitivity(judge, None, shares, runtime if target == "latency" else None)
    search = _Search(net, judge, target, goal, rows, runtime)
    chosen = search.run()
    plan = Plan(chosen, _left_alone(net, chosen, rows))
    small = apply_plan(net, plan)
    agreement, reached = judge.judge(small)[0], search.measure(chosen)
    return Budget(
        plan, small, target, goal, reached, agreement, tuple(rows), judge.batches, runtime
    )


class _Search:
    """The choice of a plan that meets a target, along a path of plans that save ever more."""

    def __init__(
        self,
        net: nn.Module,
        judge: Judge,
        target: Target,
        goal: float,
        rows: Sequence[Sensitivity],
        runtime: Runtime,
    ) -> None:
        self.runtime: Runtime = runtime
        self.net, self.judge, self.target, self.goal, self.rows = net, judge, target, goal, rows
        self.shape = tuple(judge.inputs.shape[1:])
        self.bound = goal
        self.totals = count_parameters(net), count_macs(net, self.shape)
        self.path = _descend(rows, self.worth)
        self.own = in_runtime(runtime, [net], self.shape) if target == "latency" else []
        self.measured: dict[frozenset[tuple[str, LayerPlan]], float] = {}

    def worth(self, row: Sensitivity) -> float:
        """What a row saves, in a unit of what the target bounds."""
        if self.target == "params":
            return row.parameters
        if self.target == "macs":
            return row.macs
        if self.target == "latency":
            return row.milliseconds or 0.0
        return row.parameters / self.totals[0] + row.macs / max(self.totals[1], 1)

    def run(self) -> Layers:
        """The layers of the plan to take.

        Raises:
            ValueError: If no plan meets the target.
        """
        if not self.path:
            raise ValueError(
                f"Cannot meet the target {self.target} {self.goal:g}: no layer of the net gains "
                "by a lower rank."
            )
        if self.target == "drop":
            return self._last_on_path() or self._single()
        if self.target == "latency" and self.measure(self.path[-1]) <= MARGIN * self.goal:
            self.bound = MARGIN * self.goal
        chosen = self._first_on_path()
        return self._confirmed(chosen) if self.target == "latency" else self._give_back(chosen)

    def measure(self, layers: Layers) -> float:
        """What the target bounds, for a plan, in the unit of the goal; measured once."""
        key = frozenset(layers.items())
        if key not in self.measured:
            self.measured[key] = self._measure(layers)
        return self.measured[key]

    def _measure(self, layers: Layers) -> float:
        if self.target == "drop":
            return 100 * (1 - self.judge.judge(apply_plan(self.net, Plan(layers)))[0])
        if self.target == "latency":
            return self._latency(layers, 0.3)
        which = 0 if self.target == "params" else 1
        gained = sum(
            saved(self.judge.layers[name], plan, self.judge.uses[name])[which]
            for name, plan in layers.items()
        )
        return 1 - gained / self.totals[which]

    def _latency(self, layers: Layers, seconds: float) -> float:
        """The net's latency by a plan, of its own: the median over passes that took turns."""
        small = restructure(self.net, Plan(layers))
        nets = [*self.own, *in_runtime(self.runtime, [small], self.shape)]
        clock = undisturbed_clock(self.runtime, self.judge.inputs.device)
        before, after = time_rounds(nets, [self.shape, self.shape], 1, seconds, clock)
        return 1 / Speed.of(before, after).ratio

    def _confirmed(self, layers: Layers) -> Layers:
        """The plan, or one after it on the path that meets the target in a longer look.

        The search may have seen a good moment of a busy machine. Steps along the path become
        longer, so that few plans are looked at.

        Raises:
            ValueError: If none does.
        """
        at, step, last = self.path.index(layers), 1, len(self.path) - 1
        while True:
            plan = self.path[at]
            self.measured[frozenset(plan.items())] = self._latency(plan, CONFIRM)
            if at == last:
                self.bound = self.goal  # there is no more to give for a margin
            if self._meets(plan):
                return plan
            if at == last:
                raise ValueError(self._too_costly())
            at, step = min(at + step, last), 2 * step

    def _meets(self, layers: Layers) -> bool:
        return self.measure(layers) <= self.bound

    def _first_on_path(self) -> Layers:
        """The first plan that meets a bound on cost, by bisection."""
        low, high = -1, len(self.path) - 1  # the last known to miss, the first known to meet
        if not self._meets(self.path[high]):
            raise ValueError(self._too_costly())
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._meets(self.path[middle]) else (middle, high)
        return self.path[high]

    def _last_on_path(self) -> Layers | None:
        """The last plan within a bound on the drop, by bisection."""
        low, high = -1, len(self.path)  # the last known to meet, the first known to miss
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._meets(self.path[middle]) else (low, middle)
        return None if low < 0 else self.path[low]

    def _single(self) -> Layers:
        """The one layer that saves most within a bound on the drop."""
        for row in sorted(self.rows, key=self.worth, reverse=True):
            if 100 * (1 - row.agreement) <= self.goal and self._meets({row.name: row.plan}):
                return {row.name: row.plan}
        mildest = max(self.rows, key=lambda row: row.agreement)
        raise ValueError(
            f"Cannot keep the drop within {self.goal:g} percentage points: the mildest found, "
            f"{mildest.name} at ranks {', '.join(map(str, mildest.plan.ranks))}, already costs "
            f"{100 * (1 - mildest.agreement):.2f} before distillation. Allow more, or bound the "
            "cost instead."
        )

    def _give_back(self, layers: Layers) -> Layers:
        """Raises ranks as far as the goal allows: of the layer moved last, then of the others."""
        at = self.path.index(layers)
        before = self.path[at - 1] if at else {}
        now = dict(layers)
        for name in sorted(now, key=lambda n: layers[n] == before.get(n)):
            for plan in self.judge.low_rank[name].descent():
                if plan == now[name]:
                    break
                if self._meets({**now, name: plan}):
                    now[name] = plan
                    break
        return now

    def _too_costly(self) -> str:
        best = self.path[-1]
        agreement = self.judge.judge_layers(best)[0]
        where = f" in {self.runtime}" if self.target == "latency" else ""
        return (
            f"Cannot reach {self.goal:.1%} of the {WHAT[self.target]}{where}: the best found is "
            f"{self.measure(best):.1%}, with an agreement of {agreement:.1%} before distillation. "
            "Ask for less, or for another architecture."
        )


def expect_reachable(
    net: nn.Module,
    shape: Sequence[int],
    target: Target,
    goal: float,
    shares: Sequence[float] = SHARES,
) -> None:
    """Raises if no plan can meet a bound on parameters or MACs, which takes no inputs to tell.

    Bounds on latency and drop are only measured in the search itself.

    Arguments:
        net: The trained net, which is not modified.
        shape: The shape of one input, without the batch.
        target: What is bounded, as for :func:`search_plan`.
        goal: The bound.
        shares: The shares of a layer's weights at which the search tries it.

    Raises:
        ValueError: If the goal cannot be met, the net is not sound, or no layer gains; the
            message says how far one can go.
    """
    layers = require_sound(net)
    uses, most = trace_layers(net, shape), [0, 0]
    gaining = False
    for name, layer in layers.items():
        plans = levels(LowRank(layer), uses[name], shares)
        gains = [saved(layer, plan, uses[name]) for plan in plans]
        gaining = gaining or bool(gains)
        for i in (0, 1):
            most[i] += max((gain[i] for gain in gains), default=0)
    if not gaining:
        raise ValueError(f"Cannot bound the {target}: no layer of the net gains by a lower rank.")
    if target not in ("params", "macs"):
        return
    which = 0 if target == "params" else 1
    total = (count_parameters(net), count_macs(net, shape))[which]
    lowest = 1 - most[which] / total
    if lowest > goal:
        raise ValueError(
            f"Cannot reach {goal:.1%} of the {WHAT[target]}: the lowest ranks tried leave "
            f"{lowest:.1%}. Ask for less, or for another architecture."
        )


def _descend(rows: Sequence[Sensitivity], worth: Worth) -> list[Layers]:
    """Plans that save ever more, each by a step of the layer that diverges least for its worth.

    A layer's price is that of its best lower rank, but it goes there one step at a time.
    """
    now: dict[str, Sensitivity] = {}
    path: list[Layers] = []
    while True:
        prices = []
        for name in dict.fromkeys(row.name for row in rows):
            lower = _lower([row for row in rows if row.name == name], now.get(name), worth)
            if lower:
                prices.append((min(price for price, _ in lower), lower[0][1]))
        if not prices:
            return path
        step = min(prices, key=lambda price: price[0])[1]
        now[step.name] = step
        path.append({name: row.plan for name, row in now.items()})


def _lower(
    rows: Sequence[Sensitivity], held: Sensitivity | None, worth: Worth
) -> list[tuple[float, Sensitivity]]:
    """A layer's rows that save more than the one held, with their divergence per worth."""
    worth_now, harm_now = (worth(held), held.divergence) if held else (0.0, 0.0)
    return [
        (max(row.divergence - harm_now, EPS) / (worth(row) - worth_now), row)
        for row in rows
        if worth(row) > worth_now
    ]


def _left_alone(net: nn.Module, chosen: Layers, rows: Sequence[Sensitivity]) -> dict[str, str]:
    found, skipped = candidates(net)
    for name in found:
        times = [row.milliseconds for row in rows if row.name == name]
        if not times:
            skipped[name] = "would not gain at any rank, or is never called"
        elif all(time is not None and time <= 0 for time in times):
            skipped[name] = "no lower rank of it was measured to be faster"
        elif name not in chosen:
            skipped[name] = "not needed for the target"
    return skipped
