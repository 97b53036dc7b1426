"""What an objective takes and returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..flows.contract import ConditionalFlow


@dataclass(frozen=True)
class Batch:
    """One training batch: latents and conditions to decode, and real samples if there are any.

    Arguments:
        z: Latents drawn from the flow's base, with shape `(B, *shape)`.
        c: The conditions, class indices `(B,)` or soft labels `(B, classes)`.
        x: Real samples with shape `(S, *shape)` (pixels in [0, 1] for images), or `None`.
        y: Their classes with shape `(S,)`, or `None`.
        generator: The source of all random numbers of the objective (dequantisation, contrast).
    """

    z: Tensor
    c: Tensor
    x: Tensor | None = None
    y: Tensor | None = None
    generator: torch.Generator | None = None


class Terms:
    """Named, weighted summands of a loss, each a scalar tensor; `total` is to be minimised.

    Example:
        >>> terms = Terms(cls=torch.tensor(2.0), volume=torch.tensor(-0.5))
        >>> terms.total.item()
        1.5
    """

    def __init__(self, **terms: Tensor) -> None:
        self.terms = terms

    @property
    def total(self) -> Tensor:
        """The sum of all terms, a scalar."""
        return torch.stack(list(self.terms.values())).sum()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """The named summands, for logs."""
        return iter(self.terms.items())

    def __add__(self, other: Terms) -> Terms:
        return Terms(**self.terms, **other.terms)


class Objective(Protocol):
    """A frozen dataclass of weights, called on a flow, a teacher and a batch."""

    def __call__(self, flow: ConditionalFlow, teacher: nn.Module, batch: Batch) -> Terms:
        """Evaluates the loss; `Terms.total` is to be minimised."""
