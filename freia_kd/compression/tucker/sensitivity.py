"""How much each layer loses by a lower rank: agreement with the teacher on given inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Runtime
from ...modes import evaluating
from ...runtimes import in_runtime
from ..cost import (
    LayerUse,
    Speed,
    affordable,
    count_parameters,
    time_rounds,
    trace_layers,
    undisturbed_clock,
)
from ..method import shown
from ..modules import candidates, copied, require_sound
from .decompose import Convolution, is_matrix, left_factor, usable_ranks
from .plan import LayerPlan, fresh_layer, no_gain_reason, planned_macs, planned_weights

# The shares of a layer's weights at which it is tried.
SHARES = (0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.12, 0.06)
MAX_BATCHES = 160  # forward batches of all trials of layers; more are estimated from these
JUDGED_MACS, MIN_JUDGED = 32e9, 8  # of a trial, which sees fewer inputs of a large net
BATCH, BATCH_VALUES = 256, 2**22  # inputs of a batch, and numbers in them
LARGE = 2**24  # weights of a layer whose forms are not all in memory at once
BLOCK = 16  # channels that a processor's kernels compute at once
TINY = 1e-12


@dataclass(frozen=True)
class Sensitivity:
    """What happens when one layer alone is compressed.

    Arguments:
        name: The layer.
        plan: Its method and ranks.
        share: The share of its weights that is left.
        parameters: The number of parameters saved.
        macs: The multiply-accumulates saved for one input.
        milliseconds: The time saved at batch 1, negative where the layer becomes slower, or
            `None` where it was not measured.
        agreement: The share of inputs to which the net still gives the same class.
        divergence: The mean KL divergence of its classes from those before, in nats.
        is_estimated: Whether both were told from other ranks of the layer, since a net of many
            layers is not tried at each.
    """

    name: str
    plan: LayerPlan
    share: float
    parameters: int
    macs: int
    milliseconds: float | None
    agreement: float
    divergence: float
    is_estimated: bool = False


class LowRank:
    """A layer's weight at every rank, by the truncated higher-order SVD.

    Quicker and hardly worse than the iteration that makes the final layers.

    Arguments:
        layer: A convolution or linear layer, which is not modified.
    """

    def __init__(self, layer: nn.Linear | Convolution) -> None:
        self.layer = layer
        self.weight = layer.weight.detach().to("cpu", torch.float64)
        outs, ins = self.weight.shape[:2]
        self.u_out: Tensor | None
        self.u_in: Tensor | None
        by_out, by_in = self.weight.flatten(1), self.weight.transpose(0, 1).flatten(1)
        # A matrix has the same singular values on both sides: one side is enough.
        self.u_out, s_out = left_factor(by_out) if not self.matrix or outs <= ins else _whole(outs)
        self.u_in, s_in = left_factor(by_in) if not self.matrix or outs > ins else _whole(ins)
        self.squares = (s_in, s_out)

    @property
    def matrix(self) -> bool:
        """Whether the layer is split by an SVD, and not by Tucker-2."""
        return is_matrix(self.layer)

    def at(self, plan: LayerPlan) -> Tensor:
        """The weight that the ranks of a plan leave, on the CPU in float64."""
        outs, ins = self.weight.shape[:2]
        if plan.method == "svd":
            rank = plan.ranks[0]
            in_rank, out_rank = (ins, rank) if outs <= ins else (rank, outs)
        else:
            in_rank, out_rank = plan.ranks
        found = self.weight
        for axis, (u, rank) in enumerate(((self.u_out, out_rank), (self.u_in, in_rank))):
            if u is not None:
                core = torch.tensordot(u[:, :rank], found, dims=([0], [axis]))
                found = torch.tensordot(u[:, :rank], core, dims=([1], [0])).movedim(0, axis)
        return found

    def lost(self, plan: LayerPlan) -> float:
        """About the squared norm that the weight loses by the ranks of a plan."""
        s_in, s_out = self.squares
        if plan.method == "svd":
            outs, ins = self.weight.shape[:2]
            return float((s_out if outs <= ins else s_in)[plan.ranks[0] :].sum())
        return float(s_in[plan.ranks[0] :].sum() + s_out[plan.ranks[1] :].sum())

    def descent(self) -> list[LayerPlan]:
        """Plans of ever lower rank: each drops the singular value that carries least."""
        s_in, s_out = self.squares
        if self.matrix:
            return [LayerPlan("svd", (r,)) for r in range(min(len(s_in), len(s_out)) - 1, 0, -1)]
        in_rank, out_rank = len(s_in), len(s_out)
        plans: dict[LayerPlan, None] = {}
        while in_rank > 1 or out_rank > 1:
            drop_in = out_rank == 1 or (in_rank > 1 and s_in[in_rank - 1] <= s_out[out_rank - 1])
            in_rank, out_rank = (in_rank - 1, out_rank) if drop_in else (in_rank, out_rank - 1)
            ranks = usable_ranks(self.layer, (in_rank, out_rank))  # type: ignore[arg-type]
            plans[LayerPlan("tucker2", ranks)] = None
        return list(plans)


def _whole(size: int) -> tuple[None, Tensor]:
    """A side of a weight that stays as it is; as a matrix it may be the size of gigabytes."""
    return None, torch.ones(size, dtype=torch.float64)


class Judge:
    """Compares a net with itself at lower ranks, on given inputs.

    Arguments:
        net: The net, which is copied.
        inputs: What the net takes, with shape `(N, *shape)`.
        batch: How many inputs to run at once; by default 256, and fewer large ones, of which CPUs
            take longer together.

    Raises:
        ValueError: If the net is not sound, it rejects the inputs, or its logits are not finite.
    """

    def __init__(self, net: nn.Module, inputs: Tensor, batch: int | None = None) -> None:
        if inputs.ndim < 2 or len(inputs) == 0:
            raise ValueError(f"Expected inputs with shape (N, ...); got {tuple(inputs.shape)}.")
        require_sound(net)
        self.net = copied(net)
        self.inputs = inputs
        self.batch = batch or max(1, min(BATCH, BATCH_VALUES // math.prod(inputs.shape[1:])))
        self.batches = 0  # that were run so far
        self.layers = candidates(self.net)[0]
        self.uses = trace_layers(self.net, inputs.shape[1:])  # refuses a wrong shape
        self.low_rank = {name: LowRank(layer) for name, layer in self.layers.items()}
        few = affordable(net, inputs.shape[1:], len(inputs), JUDGED_MACS, MIN_JUDGED)
        self.few = min(few, self.batch)
        self.truth = self.log_probs(self.net)
        if not bool(self.truth.isfinite().all()):
            raise ValueError("Expected finite logits from the net; got NaN or infinite ones.")

    def log_probs(self, net: nn.Module, count: int | None = None) -> Tensor:
        """The log-probabilities of the first inputs, or of all, with shape `(N, classes)`."""
        batches = self.inputs[:count].split(self.batch)
        self.batches += len(batches)
        with evaluating(net):
            parts = [net(x) for x in batches]
        return F.log_softmax(torch.cat(parts).flatten(1).double(), dim=1)

    def judge(self, net: nn.Module, count: int | None = None) -> tuple[float, float]:
        """A net's agreement in [0, 1] and KL divergence in nats, on the first inputs or on all."""
        seen, truth = self.log_probs(net, count), self.truth[:count]
        agreement = (seen.argmax(1) == truth.argmax(1)).double().mean().item()
        divergence = F.kl_div(seen, truth, reduction="batchmean", log_target=True).item()
        return agreement, max(divergence, 0.0)

    @torch.no_grad()
    def judge_layers(
        self, layers: Mapping[str, LayerPlan], count: int | None = None
    ) -> tuple[float, float]:
        """The agreement and divergence with some layers at lower ranks."""
        for name, plan in layers.items():
            self.layers[name].weight.copy_(self.low_rank[name].at(plan))
        try:
            return self.judge(self.net, count)
        finally:
            for name in layers:
                self.layers[name].weight.copy_(self.low_rank[name].weight)


def measure_sensitivity(
    judge: Judge,
    layers: Sequence[str] | None = None,
    shares: Sequence[float] = SHARES,
    runtime: Runtime | None = None,
) -> list[Sensitivity]:
    """Tries every layer at several ranks, the others left as they are.

    A trial is one batch, of fewer inputs where the net is large. Of a net of so many layers that
    all trials would be more than `MAX_BATCHES`, each layer is tried at fewer ranks, evenly from the
    highest to the lowest, and between them the logarithm of the divergence is taken to be linear in
    that of the squared norm which the weight loses; of more layers than that, those that would gain
    least are left alone.

    Arguments:
        judge: The net and the inputs.
        layers: The names of the layers to try, or `None` for all that can be compressed.
        shares: The shares of a layer's weights to try, in descending order.
        runtime: Where to measure the milliseconds that each would save, if at all; then ranks are
            those that cost no more than the next lower ones (:func:`usual_rank`).

    Returns:
        One row for each layer and share at which it would gain, from high to low ranks.

    Example:
        >>> x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        >>> rows = measure_sensitivity(Judge(nn.Linear(32, 32), x), shares=(0.5, 0.1))
        >>> [row.plan.ranks for row in rows], rows[0].divergence < rows[1].divergence
        ([(8,), (1,)], True)
    """
    names = list(judge.layers if layers is None else layers)
    plans = {
        name: levels(judge.low_rank[name], judge.uses[name], shares, runtime is not None)
        for name in names
    }
    tried = _tried(judge, plans)
    rows, total = [], sum(map(len, tried.values()))
    with shown().stage("try layers at lower ranks", total) as stage:
        done = 0
        for name in tried:
            layer, use, found = judge.layers[name], judge.uses[name], {}
            for plan in tried[name]:
                found[plan] = judge.judge_layers({name: plan}, judge.few)
                done += 1
                stage.update(done, {})
            times = _saved_milliseconds(layer, plans[name], use, runtime) if runtime else {}
            for plan in plans[name]:
                agreement, divergence = _told(judge.low_rank[name], plan, found)
                share = planned_weights(layer, plan) / layer.weight.numel()
                gains = saved(layer, plan, use)
                row = Sensitivity(name, plan, share, *gains, times.get(plan), agreement, divergence)
                rows.append(replace(row, is_estimated=plan not in found))
    return rows


def _tried(
    judge: Judge, plans: Mapping[str, Sequence[LayerPlan]]
) -> dict[str, Sequence[LayerPlan]]:
    """The plans of each layer that are tried, `MAX_BATCHES` in all at most."""
    gaining = {name: found for name, found in plans.items() if found}
    if sum(map(len, gaining.values())) <= MAX_BATCHES:
        return gaining

    def gain(name: str) -> float:
        return saved(judge.layers[name], gaining[name][-1], judge.uses[name])[1]

    largest = set(sorted(gaining, key=gain, reverse=True)[:MAX_BATCHES])
    each = MAX_BATCHES // len(largest.intersection(gaining))
    return {
        name: [found[i] for i in sorted(set(_evenly(len(found), each)))]
        for name, found in gaining.items()
        if name in largest
    }


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the indices below a count, the last one and the first one among them.

    Example:
        >>> _evenly(8, 3), _evenly(8, 1), _evenly(2, 3)
        ([0, 4, 7], [7], [0, 1])
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)] if most > 1 else [count - 1]


def _told(
    low_rank: LowRank, plan: LayerPlan, found: Mapping[LayerPlan, tuple[float, float]]
) -> tuple[float, float]:
    """The agreement and divergence of a plan, measured or told from those that were."""
    if plan in found:
        return found[plan]
    lost = {tried: math.log(max(low_rank.lost(tried), TINY)) for tried in (*found, plan)}
    known = sorted(found, key=lost.__getitem__)
    at = [lost[tried] for tried in known]
    divergences = [math.log(max(found[tried][1], TINY)) for tried in known]
    if len(known) == 1:  # half the loss has half the divergence
        divergence = divergences[0] + lost[plan] - at[0]
    else:
        divergence = float(np.interp(lost[plan], at, divergences))
    agreement = float(np.interp(lost[plan], at, [found[tried][0] for tried in known]))
    return agreement, math.exp(divergence)


def levels(
    low_rank: LowRank, use: LayerUse, shares: Sequence[float], fast: bool = False
) -> list[LayerPlan]:
    """The highest ranks within each share of the weights, where the layer gains at all.

    Arguments:
        low_rank: The layer.
        use: How the net uses it.
        shares: The shares, in descending order.
        fast: Whether to take only ranks that processors like (:func:`usual_rank`).
    """
    layer = low_rank.layer
    every = low_rank.descent()
    every = list(dict.fromkeys(_usual(layer, plan) for plan in every)) if fast else every
    descent = [plan for plan in every if no_gain_reason(layer, plan, use) is None]
    found: dict[LayerPlan, None] = {}
    for share in shares:
        limit = share * layer.weight.numel()
        found |= dict.fromkeys([p for p in descent if planned_weights(layer, p) <= limit][:1])
    return list(found)


def usual_rank(rank: int, largest: int) -> int:
    """The least number of channels from a rank on that costs no more time than one less.

    Kernels compute 16 channels at once (oneDNN's and onnxruntime's with AVX-512), and onnxruntime
    leaves its fast layout where the number of channels is no multiple of 4: of a convolution of 512
    channels on one pixel, the form with ranks 419 and 418 took 462 us there, that with 432 less
    than half.

    Example:
        >>> [usual_rank(rank, 60) for rank in (3, 8, 9, 33, 59)]
        [4, 8, 16, 48, 60]
    """
    step = BLOCK if rank > BLOCK // 2 else BLOCK // 4
    return min(largest, math.ceil(rank / step) * step)


def _usual(layer: nn.Linear | Convolution, plan: LayerPlan) -> LayerPlan:
    outs, ins = layer.weight.shape[:2]
    largest = (min(ins, outs),) if plan.method == "svd" else (ins, outs)
    ranks = tuple(usual_rank(r, most) for r, most in zip(plan.ranks, largest, strict=True))
    return replace(plan, ranks=ranks)


def saved(layer: nn.Linear | Convolution, plan: LayerPlan, use: LayerUse) -> tuple[int, int]:
    """The parameters and multiply-accumulates that a plan saves in one layer."""
    after = sum(planned_macs(layer, plan, i, o) for i, o in use.positions)
    return layer.weight.numel() - planned_weights(layer, plan), use.macs - after


def _saved_milliseconds(
    layer: nn.Module, plans: Sequence[LayerPlan], use: LayerUse, runtime: Runtime
) -> dict[LayerPlan, float]:
    """The measured milliseconds that each plan saves in one layer at batch 1, or loses.

    The median of differences of passes that took turns, which a busy machine hardly moves, and
    nothing where the interval of the speed leaves open whether any are saved; all forms of the
    layer take turns, so that none has the processor's caches to itself, which those of a large
    layer do not fit into.
    """
    found: dict[LayerPlan, float] = {}
    for some in (plans,) if count_parameters(layer) <= LARGE else ((plan,) for plan in plans):
        found.update(_saved_together(layer, some, use, runtime))
    return found


def _saved_together(
    layer: nn.Module, plans: Sequence[LayerPlan], use: LayerUse, runtime: Runtime
) -> Iterator[tuple[LayerPlan, float]]:
    if not plans:
        return
    shape = use.inputs[0][1:]
    forms = [layer, *(fresh_layer(layer, plan) for plan in plans)]
    clock = undisturbed_clock(runtime, next(layer.parameters()).device)
    nets = in_runtime(runtime, forms, shape)
    before, *afters = time_rounds(nets, [shape] * len(nets), 1, 0.03, clock)
    for plan, after in zip(plans, afters, strict=True):
        gained = use.calls * float(np.median(np.subtract(before, after)))
        yield plan, gained if Speed.of(before, after).low > 1 else min(gained, 0.0)
