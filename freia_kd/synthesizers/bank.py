"""Synthesizers that keep a bank: inputs made once, each by its own optimisation, or given."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..config import Config, Probability
from ..data.augment import Augmentation
from ..domain import Domain
from ..errors import CheckpointError
from ..training import Checkpoints
from .contract import Synthesizer

HELDOUT = 5  # one input of so many is held out
FEW = 1_000  # inputs below which they are augmented
Augment = Literal["few", "always", "never"]


@dataclass(frozen=True)
class BankOptions(Config):
    """What becomes of a bank's inputs before a teacher answers them.

    Arguments:
        augment: Whether they are augmented (:class:`~freia_kd.data.augment.Augmentation`): where
            they are fewer than 1,000 (`"few"`), `"always"` or `"never"`.
        mixing: The share of inputs that are mixed with another, where no label is asked for.
        natural: Whether they may be mirrored and change colours, as natural images may; `None`
            goes by the domain (:meth:`~freia_kd.data.augment.Augmentation.for_domain`).

    Raises:
        ConfigError: If a value makes no sense.
    """

    augment: Augment = "few"
    mixing: Probability = 0.5
    natural: bool | None = None

    def augmentation(self, domain: Domain, count: int) -> Augmentation | None:
        """How so many inputs of a domain are augmented, or `None` if they are not."""
        if self.augment == "never" or (self.augment == "few" and count >= FEW):
            return None
        return Augmentation.for_domain(domain, self.natural, mixing=self.mixing)


class Bank(Synthesizer):
    """A synthesizer with only so many inputs, from which `sample` draws.

    No input comes a second time before every one of its part (and label) has come once. A
    subclass fills `inputs` `(N, *shape)` and `labels` `(N,)` in `fit`, and may keep them in the
    run by :meth:`keep`.
    """

    spared: ClassVar[int] = 2 * HELDOUT  # how many there must be to spare some for that
    inputs: Tensor
    labels: Tensor

    @property
    def distinct(self) -> int | None:
        return len(self.inputs)

    def part(self, heldout: bool) -> Bank:
        """Every fifth input is held out; a bank of fewer than `spared` serves as both."""
        part = copy.copy(self)
        if len(self.inputs) >= self.spared:
            rows = torch.arange(len(self.inputs), device=self.inputs.device)
            chosen = (rows % HELDOUT == HELDOUT - 1) == heldout
            part.inputs, part.labels = self.inputs[chosen], self.labels[chosen]
        return part

    def keep(self, checkpoints: Checkpoints | None) -> None:
        """Writes the bank into a run's folder."""
        if checkpoints is not None:
            parts = {"bank": {"inputs": self.inputs.cpu(), "labels": self.labels.cpu()}}
            checkpoints.part("bank").save({"parts": parts})

    def take_kept(self, checkpoints: Checkpoints) -> bool:
        """Takes the bank from a run's folder; whether there is one."""
        state: dict[str, Any] | None = checkpoints.part("bank").load()
        if state is None:
            return False
        bank = state["parts"]["bank"]
        self.inputs, self.labels = bank["inputs"], bank["labels"]
        return True

    def restore(self, domain: Domain, checkpoints: Checkpoints) -> None:
        if not self.take_kept(checkpoints):
            raise CheckpointError(
                f"The run in {checkpoints.folder} has no bank of {self.name!r} yet."
            )

    @torch.no_grad()
    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws from the bank; labels that it does not have come from all of it.

        Soft labels count as their largest entry.
        """
        if labels is not None and len(labels) != n:
            raise ValueError(f"Expected {n} labels; got {len(labels)}.")
        if labels is None:
            rows = _shuffle(torch.arange(len(self.inputs)), n, generator)
            return self.inputs[rows.to(self.inputs.device)], self.labels[
                rows.to(self.labels.device)
            ]
        wanted = (labels if labels.ndim == 1 else labels.argmax(1)).cpu()
        rows = torch.empty(n, dtype=torch.long)
        for label in wanted.unique():
            have = torch.nonzero(self.labels.cpu() == label).flatten()
            have = have if len(have) else torch.arange(len(self.inputs))
            at = wanted == label
            rows[at] = _shuffle(have, int(at.sum()), generator)
        return self.inputs[rows.to(self.inputs.device)], labels


class AugmentedBank(Bank):
    """A bank whose inputs, where they are few, come differently every time.

    Its options are :class:`BankOptions`. Where labels are asked for nothing is mixed, so that each
    input is still of its label.
    """

    domain: Domain

    def restore(self, domain: Domain, checkpoints: Checkpoints) -> None:
        super().restore(domain, checkpoints)
        self.domain = domain

    @property
    def distinct(self) -> int | None:
        """How many different inputs there are, or `None` where they are augmented."""
        return None if self._augmentation() else super().distinct

    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        x, y = super().sample(n, labels, generator)
        change = self._augmentation()
        if change is not None:
            change = change if labels is None else change.without_mixing()
            x = change(x, generator, self.domain)
        return x, y

    def _augmentation(self) -> Augmentation | None:
        options: Any = self.options
        return options.augmentation(self.domain, len(self.inputs))


def _shuffle(rows: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """`n` of the rows in a random order, all of them before any comes again."""
    device = generator.device if generator else None
    rounds = [
        torch.randperm(len(rows), generator=generator, device=device).cpu()
        for _ in range(-(-n // len(rows)))
    ]
    return rows[torch.cat(rounds)[:n]]
