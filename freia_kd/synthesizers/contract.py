"""What makes inputs from a teacher alone: two verbs, `fit` and `sample`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data.datasets import LabelledData
from ..domain import Domain
from ..errors import UsageError
from ..flows.bases import GaussianBase, SpectralBase
from ..objectives.batchnorm import normalization_layers
from ..objectives.monitors import Health, examine
from ..options import change
from ..runs.run import Run
from ..teachers.classifier import Classifier, Teacher


class Synthesizer(ABC):
    """Learns from a teacher (and a few real samples, if given) to make inputs for it.

    All random numbers come from the generators given, so the same seed gives the same inputs.
    A subclass states what it needs, so that a teacher it cannot work with is refused before any
    work (:meth:`check`).

    Arguments:
        options: The hyper-parameters, a frozen dataclass `Options`; the paper's if `None`.
    """

    name: ClassVar[str]
    Options: ClassVar[Any] = None  # a frozen dataclass with the paper's values as defaults
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # options that differ, by preset
    needs_batchnorm: ClassVar[bool] = False  # statistics that the teacher's layers remember
    needs_samples: ClassVar[bool] = False  # a few real inputs
    needs_student: ClassVar[bool] = False  # a student to play with, so each student has its inputs
    needs_images: ClassVar[bool] = False  # it cannot make vectors
    takes_samples: ClassVar[bool] = False  # real inputs help it, but it works without
    family: ClassVar[str | None] = None  # methods whose inputs are alike; by default its own
    real_images: ClassVar[str | None] = None  # images of the real world that it shows, for reports

    def __init__(self, options: Any = None) -> None:
        self.options = options if options is not None or self.Options is None else self.Options()
        self.stage = self.name  # under which `fit` keeps its states; the job adds the student's

    @classmethod
    def build(cls, preset: str = "best", settings: Mapping[str, Any] | None = None) -> Synthesizer:
        """Makes the synthesizer with a preset's options, changed by `settings`.

        Raises:
            UsageError: If it has no such option, or the value makes no sense.
        """
        if cls.Options is None:
            if settings:
                raise UsageError(f"The synthesizer {cls.name!r} has no options; got {settings}.")
            return cls()
        usual = replace(cls.Options(), **cls.presets.get(preset, {}))
        return cls(change(usual, settings or {}, cls.name))

    @classmethod
    def known_options(cls) -> list[str]:
        """The names of its options."""
        return [field.name for field in fields(cls.Options)] if cls.Options else []

    @classmethod
    def why_not(
        cls,
        teacher: Teacher,
        samples: LabelledData | None = None,
        student: bool = True,
        options: Any = None,
    ) -> str | None:
        """Why the method cannot work with a teacher, or `None` if it can.

        Arguments:
            teacher: The teacher.
            samples: The real samples that there are.
            student: Whether there will be a student.
            options: The options that it will have, for methods that need one given.
        """
        if cls.needs_images and not teacher.domain.is_image:
            return "makes images, and the teacher takes vectors"
        if cls.needs_batchnorm and not normalization_layers(teacher.net):
            return "needs the statistics of batch normalisation, and the teacher has no such layer"
        if cls.needs_samples and samples is None:
            return "needs real samples, and none are given"
        if cls.needs_student and not student:
            return "plays with a student, and there is none"
        return None

    @abstractmethod
    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        run: Run | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        """Trains, if there is anything to train.

        Arguments:
            teacher: The frozen classifier.
            samples: A few real samples, for the methods that can use them.
            run: Where states and metrics are kept, under `self.stage`; training resumes from
                what it holds.
            generator: The source of all random numbers, on the teacher's device; by default one
                that torch's global generator seeds.
            student: The student before its training, for methods that play with one; they train
                a copy.

        Raises:
            TrainingError: If the loss stays non-finite.
        """

    @abstractmethod
    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Makes inputs.

        Arguments:
            n: How many, at least 1.
            labels: Class indices with shape `(n,)`, or soft labels with shape `(n, classes)`; drawn
                uniformly if `None`.
            generator: The source of all random numbers, on the device of what was fitted; torch's
                global generator if `None`.

        Returns:
            Inputs with shape `(n, *shape)` (pixels in [0, 1] for images) and their labels.
        """

    def examine(self, teacher: Teacher, generator: torch.Generator | None = None) -> Health | None:
        """How 512 inputs look to the teacher and to each other; `None` where nothing was learned.

        Variety is relative to spectral noise, or normal noise for vectors.
        """
        domain = teacher.domain
        c = torch.arange(512) % domain.classes
        x, _ = self.sample(len(c), c, generator)
        base = SpectralBase.for_domain(domain) if domain.is_image else GaussianBase(domain.shape)
        reference = base.sample(len(c), generator=torch.Generator().manual_seed(0))
        reference = reference.sigmoid() if domain.is_image else domain.denormalize(reference)
        with torch.no_grad():
            logits = teacher(x.to(next(teacher.parameters()).device))
        return examine(logits.cpu(), x.cpu(), c, reference)

    @property
    def settings(self) -> dict[str, Any]:
        """Its options as a dictionary."""
        return {} if self.options is None else asdict(self.options)

    @property
    def distinct(self) -> int | None:
        """How many different inputs there are, for methods that keep a bank; else `None`."""
        return None

    def part(self, heldout: bool) -> Synthesizer:
        """What to draw training inputs from, or held-out ones; they differ for a bank only."""
        return self

    def restore(self, domain: Domain, run: Run) -> None:
        """Takes what :meth:`fit` learned from a run's folder, without the teacher.

        Raises:
            CheckpointError: If the run holds nothing of the kind.
            UsageError: If the method cannot sample without its teacher.
        """
        raise UsageError(f"The synthesizer {self.name!r} cannot sample without its teacher.")


ANSWERED = 128  # inputs that a teacher answers at a time: larger batches are slower on CPUs


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
