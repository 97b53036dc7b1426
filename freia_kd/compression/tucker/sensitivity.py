"""How much each layer loses by a lower rank: agreement with the teacher on given inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...modes import evaluating
from ..cost import LayerUse, measure_latencies, trace_layers
from ..modules import candidates, copied, require_sound
from .decompose import Convolution, is_matrix, left_factor, usable_ranks
from .plan import LayerPlan, fresh_layer, no_gain_reason, planned_macs, planned_weights

if TYPE_CHECKING:
    pass

# The shares of a layer's weights at which it is tried.
SHARES = (0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.12, 0.06)


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
    """

    name: str
    plan: LayerPlan
    share: float
    parameters: int
    macs: int
    milliseconds: float | None
    agreement: float
    divergence: float


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
        u_out, u_in = self.u_out[:, :out_rank], self.u_in[:, :in_rank]
        flat = self.weight.flatten(2) if self.weight.ndim > 2 else self.weight[..., None]
        core = torch.einsum("oik,op,iq->pqk", flat, u_out, u_in)
        return torch.einsum("pqk,op,iq->oik", core, u_out, u_in).reshape(self.weight.shape)

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


def _whole(size: int) -> tuple[Tensor, Tensor]:
    return torch.eye(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)


class Judge:
    """Compares a net with itself at lower ranks, on given inputs.

    Arguments:
        net: The net, which is copied.
        inputs: What the net takes, with shape `(N, *shape)`.
        batch: How many inputs to run at once.

    Raises:
        ValueError: If the net is not sound, it rejects the inputs, or its logits are not finite.
    """

    def __init__(self, net: nn.Module, inputs: Tensor, batch: int = 256) -> None:
        if inputs.ndim < 2 or len(inputs) == 0:
            raise ValueError(f"Expected inputs with shape (N, ...); got {tuple(inputs.shape)}.")
        require_sound(net)
        self.net = copied(net)
        self.inputs = inputs
        self.batch = batch
        self.layers = candidates(self.net)[0]
        self.uses = trace_layers(self.net, inputs.shape[1:])  # refuses a wrong shape
        self.low_rank = {name: LowRank(layer) for name, layer in self.layers.items()}
        self.truth = self.log_probs(self.net)
        if not bool(self.truth.isfinite().all()):
            raise ValueError("Expected finite logits from the net; got NaN or infinite ones.")

    def log_probs(self, net: nn.Module) -> Tensor:
        """The log-probabilities of all inputs, with shape `(N, classes)`."""
        with evaluating(net):
            parts = [net(x) for x in self.inputs.split(self.batch)]
        return F.log_softmax(torch.cat(parts).flatten(1).double(), dim=1)

    def judge(self, net: nn.Module) -> tuple[float, float]:
        """A net's agreement in [0, 1] and KL divergence in nats."""
        seen = self.log_probs(net)
        agreement = (seen.argmax(1) == self.truth.argmax(1)).double().mean().item()
        divergence = F.kl_div(seen, self.truth, reduction="batchmean", log_target=True).item()
        return agreement, max(divergence, 0.0)

    @torch.no_grad()
    def judge_layers(self, layers: Mapping[str, LayerPlan]) -> tuple[float, float]:
        """The agreement and divergence with some layers at lower ranks."""
        for name, plan in layers.items():
            self.layers[name].weight.copy_(self.low_rank[name].at(plan))
        try:
            return self.judge(self.net)
        finally:
            for name in layers:
                self.layers[name].weight.copy_(self.low_rank[name].weight)


def measure_sensitivity(
    judge: Judge,
    layers: Sequence[str] | None = None,
    shares: Sequence[float] = SHARES,
    latency: bool = False,
) -> list[Sensitivity]:
    """Tries every layer at several ranks, the others left as they are.

    Arguments:
        judge: The net and the inputs.
        layers: The names of the layers to try, or `None` for all that can be compressed.
        shares: The shares of a layer's weights to try, in descending order.
        latency: Whether to measure the milliseconds that each would save.

    Returns:
        One row for each layer and share at which it would gain, from high to low ranks.

    Example:
        >>> x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        >>> rows = measure_sensitivity(Judge(nn.Linear(32, 32), x), shares=(0.5, 0.1))
        >>> [row.plan.ranks for row in rows], rows[0].divergence < rows[1].divergence
        ([(8,), (1,)], True)
    """
    rows = []
    for name in judge.layers if layers is None else layers:
        layer, use = judge.layers[name], judge.uses[name]
        for plan in levels(judge.low_rank[name], use, shares):
            agreement, divergence = judge.judge_layers({name: plan})
            share = planned_weights(layer, plan) / layer.weight.numel()
            gains = saved(layer, plan, use)
            time = saved_milliseconds(layer, plan, use) if latency else None
            rows.append(Sensitivity(name, plan, share, *gains, time, agreement, divergence))
    return rows


def levels(low_rank: LowRank, use: LayerUse, shares: Sequence[float]) -> list[LayerPlan]:
    """The highest ranks within each share of the weights, where the layer gains at all."""
    layer = low_rank.layer
    descent = [plan for plan in low_rank.descent() if no_gain_reason(layer, plan, use) is None]
    found: dict[LayerPlan, None] = {}
    for share in shares:
        limit = share * layer.weight.numel()
        found |= dict.fromkeys([p for p in descent if planned_weights(layer, p) <= limit][:1])
    return list(found)


def saved(layer: nn.Linear | Convolution, plan: LayerPlan, use: LayerUse) -> tuple[int, int]:
    """The parameters and multiply-accumulates that a plan saves in one layer."""
    after = sum(planned_macs(layer, plan, i, o) for i, o in use.positions)
    return layer.weight.numel() - planned_weights(layer, plan), use.macs - after


def saved_milliseconds(layer: nn.Module, plan: LayerPlan, use: LayerUse) -> float:
    """The measured milliseconds that a plan saves in one layer at batch 1, or loses."""
    shape = use.inputs[0][1:]
    before, after = measure_latencies([layer, fresh_layer(layer, plan)], shape, seconds=0.03)
    return use.calls * (before.median - after.median)
