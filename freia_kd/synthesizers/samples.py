"""The few real inputs alone, augmented; repeated as they are, the row T+Sample of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..config import Config, Probability
from ..data.augment import Augmentation
from ..data.datasets import LabelledData
from ..domain import Domain
from ..errors import UsageError
from ..teachers.classifier import Classifier, Teacher
from ..training import Checkpoints
from .bank import Bank

FEW = 1_000  # samples below which they are augmented
Augment = Literal["few", "always", "never"]


@dataclass(frozen=True)
class SamplesOptions(Config):
    """What becomes of a few real inputs.

    Arguments:
        augment: Whether they are augmented (:class:`~freia_kd.data.augment.Augmentation`): where
            they are fewer than 1,000 (`"few"`), `"always"` or `"never"`.
        mixing: The share of inputs that are mixed with another, where no label is asked for.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = "samples"
    augment: Augment = "few"
    mixing: Probability = 0.5

    def augmentation(self, domain: Domain, count: int) -> Augmentation | None:
        """How so many samples of a domain are augmented, or `None` if they are not."""
        if self.augment == "never" or (self.augment == "few" and count >= FEW):
            return None
        return Augmentation.for_domain(domain, mixing=self.mixing)


class AugmentedBank(Bank):
    """A bank of a few inputs that come differently every time, the base class of two kinds.

    Its options are :class:`SamplesOptions`. Where labels are asked for nothing is mixed, so that
    each input is still of its label.
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

    def diagnose(self, teacher: Teacher, generator: torch.Generator | None = None) -> None:
        """Nothing: nothing was learned that could have failed."""


class Samples(AugmentedBank):
    """The real inputs given, over and over, augmented where they are few.

    Each input comes equally often, and differently each time: turned, stretched, bent, and mixed
    with another one, for the teacher to answer. One image of each class is enough. Where labels are
    asked for nothing is mixed. `augment="never"` repeats them
    as they are: the paper's baseline T+Sample, which a method with real samples has to beat, and
    what the preset `paper` does. Fewer than fifty inputs train the student and measure its
    agreement as well.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), T+Sample
        | The Augmented Image Prior: Distilling 1000 Classes by Extrapolating from a Single Image
        | (Asano and Saeed, 2023), https://arxiv.org/abs/2112.00725
    """

    name = "samples"
    needs_samples = True
    real_images = "the real samples given"
    spared = 50  # of ten, one of each class, none can be spared
    Options = SamplesOptions
    presets: ClassVar = {"paper": {"augment": "never"}}

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        """Takes the samples, on the teacher's device.

        Raises:
            UsageError: If there are none.
            ValueError: If they do not fit the teacher's domain.
        """
        if samples is None:
            raise UsageError("The synthesizer 'samples' repeats real samples, and none are given.")
        samples.check(teacher.domain)
        device = next(teacher.parameters()).device
        x, y = samples.take(torch.arange(len(samples)))
        self.inputs, self.labels, self.domain = x.to(device), y.to(device), teacher.domain
        self.keep(checkpoints)

    def diagnose(self, teacher: Teacher, generator: torch.Generator | None = None) -> None:
        """Nothing: nothing was learned that could have failed."""
