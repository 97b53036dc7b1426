"""Both directions at once: the paper's eq. (9)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ..flows.contract import ConditionalFlow
from .contract import Batch, Objective, Terms
from .distill import Distill
from .reverse_likelihood import ReverseLikelihood


@dataclass(frozen=True)
class Bidirectional:
    r"""The data-free objective plus gamma times the likelihood of real samples, eq. (9).

    The terms are those of `distill` and `reverse`, the latter already times gamma. Each is a mean
    over a batch of its own, as in the paper's code, where eq. (4) and (8) print sums. Too high a
    gamma copies the samples, too low a gamma ignores them (the paper's figure 4).

    Arguments:
        distill: The data-free objective (from z to x).
        gamma: The weight of the real samples' negative log-likelihood per image (the paper 1e-2,
            its code 1e-3 to 1e-2).
        reverse: The objective of real samples (from x to z).

    Raises:
        ValueError: If gamma is negative; when called, if there are no real samples.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), eq. (9)
    """

    distill: Objective = field(default_factory=Distill)
    gamma: float = 1e-2
    reverse: Objective = field(default_factory=ReverseLikelihood)

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"Expected a gamma of at least 0; got {self.gamma}.")

    def __call__(self, flow: ConditionalFlow, teacher: nn.Module, batch: Batch) -> Terms:
        """Evaluates both directions on one batch; the total is to be minimised."""
        reverse = self.reverse(flow, teacher, batch)
        weighted = {name: self.gamma * term for name, term in reverse.items()}
        return self.distill(flow, teacher, batch) + Terms(**weighted)
