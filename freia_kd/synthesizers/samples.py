"""The few real inputs alone, augmented; repeated as they are, the row T+Sample of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..data.datasets import LabelledData
from ..errors import UsageError
from ..teachers.classifier import Classifier, Teacher
from ..training import Checkpoints
from .bank import AugmentedBank, BankOptions


@dataclass(frozen=True)
class SamplesOptions(BankOptions):
    """What becomes of a few real inputs: nothing else than of any bank."""

    title: ClassVar[str] = "samples"


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
