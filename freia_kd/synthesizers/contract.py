"""What makes inputs from a teacher alone: two verbs, `fit` and `sample`."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..data.datasets import LabelledData
from ..runs.run import Run
from ..teachers.classifier import Teacher


class Synthesizer(ABC):
    """Learns from a teacher (and a few real samples, if given) to make inputs for it.

    All random numbers come from the generators given, so the same seed gives the same inputs.
    """

    name: str

    @abstractmethod
    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        run: Run | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Trains, if there is anything to train.

        Arguments:
            teacher: The frozen classifier.
            samples: A few real samples, for the methods that can use them.
            run: Where states and metrics are kept; training resumes from what it holds.
            generator: The source of all random numbers.

        Raises:
            TrainingError: If the loss stays non-finite.
        """

    @abstractmethod
    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Makes inputs.

        Arguments:
            n: How many.
            labels: Class indices with shape `(n,)`, or soft labels with shape `(n, classes)`; drawn
                uniformly if `None`.
            generator: The source of all random numbers.

        Returns:
            Inputs with shape `(n, *shape)` (pixels in [0, 1] for images) and their labels.
        """


def draw_labels(
    n: int, classes: int, labels: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """The labels given, or class indices drawn uniformly, with shape `(n,)`.

    Raises:
        ValueError: If `labels` has another length.
    """
    if labels is None:
        device = generator.device if generator else None
        return torch.randint(classes, (n,), generator=generator, device=device)
    if len(labels) != n:
        raise ValueError(f"Expected {n} labels; got {len(labels)}.")
    return labels
