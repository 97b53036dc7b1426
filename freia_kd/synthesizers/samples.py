"""The few real inputs alone, the row T+Sample of the paper's tables."""

from __future__ import annotations

import torch

from ..data.datasets import LabelledData
from ..errors import UsageError
from ..teachers.classifier import Classifier, Teacher
from ..training import Checkpoints
from .bank import Bank


class Samples(Bank):
    """The real inputs given, over and over, with their own labels; nothing is made.

    It is the baseline that a method with real samples has to beat. The student sees each input
    equally often. Fewer than fifty inputs train the student and measure its agreement as well.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), T+Sample
    """

    name = "samples"
    needs_samples = True
    spared = 50  # of ten, one of each class, none can be spared

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
        self.inputs, self.labels = x.to(device), y.to(device)
        self.keep(checkpoints)

    def diagnose(self, teacher: Teacher, generator: torch.Generator | None = None) -> None:
        """Nothing: nothing was learned that could have failed."""
