"""What makes inputs from a teacher alone: two verbs, `fit` and `sample`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from .. import ranks
from ..config import Config, PresetName
from ..data.datasets import LabelledData
from ..domain import Domain
from ..errors import ConfigError, UsageError, unknown
from ..flows.bases import GaussianBase, SpectralBase
from ..objectives.batchnorm import normalization_layers
from ..objectives.monitors import Diagnostics, Sign, diagnose
from ..teachers.classifier import Classifier, Teacher
from ..training import Checkpoints


class Synthesizer(ABC):
    """Learns from a teacher (and a few real samples, if given) to make inputs for it.

    All random numbers come from the generators given, so the same seed gives the same inputs.
    A subclass states what it needs, so that a teacher it cannot work with is refused before any
    work (:meth:`unsupported_reason`).

    Arguments:
        options: The hyper-parameters, of the class `Options`; the paper's if `None`.

    Raises:
        TypeError: If the options are those of another method.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Config] | None] = None  # with the paper's values as defaults
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # options that differ, by preset
    needs_batchnorm: ClassVar[bool] = False  # statistics that the teacher's layers remember
    needs_samples: ClassVar[bool] = False  # a few real inputs
    needs_student: ClassVar[bool] = False  # it learns from a student, so each has its own inputs
    needs_images: ClassVar[bool] = False  # it cannot make vectors
    is_shared: ClassVar[bool] = False  # processes under torchrun fit it together, by freia_kd.ranks
    takes_samples: ClassVar[bool] = False  # real inputs help it, but it works without
    family: ClassVar[str | None] = None  # methods whose inputs are alike; by default its own
    real_images: str | None = None  # images of the real world that it shows, for reports

    # By what to multiply its options if its inputs are too much alike, or not of their classes.
    varying: ClassVar[Mapping[str, float]] = {}
    directing: ClassVar[Mapping[str, float]] = {"steps": 2}

    options: Any

    def __init__(self, options: Config | None = None) -> None:
        expected = type(None) if self.Options is None else self.Options
        if options is None and self.Options is not None:
            options = self.Options()
        if not isinstance(options, expected):
            raise TypeError(
                f"Expected options of {self.name}, {expected.__name__}; got "
                f"{type(options).__name__}."
            )
        self.options = options

    @classmethod
    def build(
        cls, preset: str = "standard", options: Mapping[str, Any] | None = None
    ) -> Synthesizer:
        """Makes the synthesizer with a preset's options, some of them changed.

        Raises:
            ConfigError: If there is no such preset or option, or values make no sense.
        """
        if preset not in get_args(PresetName):
            raise ConfigError([unknown(preset, get_args(PresetName), "preset")])
        if cls.Options is None:
            if options:
                raise ConfigError([unknown(f"{cls.name}.{name}", ()) for name in options])
            return cls()
        try:
            return cls(cls.Options(**cls.presets.get(preset, {})).changed(**(options or {})))
        except ConfigError as error:  # methods that share a class of options, each by its own name
            shared, own = cls.Options.title, cls.name
            if not shared:
                raise
            faults = (fault.replace(f"{shared}.", f"{own}.") for fault in error.faults)
            raise ConfigError(faults) from error

    @classmethod
    def known_options(cls) -> list[str]:
        """The names of its options."""
        return cls.Options.known_options() if cls.Options else []

    @classmethod
    def unsupported_reason(
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
            return "learns from a student, and there is none"
        return None

    def check(self, teacher: Teacher) -> None:
        """Raises, before any work, unless the options make sense for a teacher.

        Raises:
            UsageError: If they do not, or processes cannot share the batches evenly.
        """
        del teacher
        if self.is_shared and "batch_size" in self.known_options():
            ranks.share(self.options.batch_size, f"{self.name}.batch_size")

    @abstractmethod
    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        """Trains, if there is anything to train.

        Arguments:
            teacher: The frozen classifier.
            samples: A few real samples, for the methods that can use them.
            checkpoints: Where states and metrics are kept; training resumes from what is there.
            generator: The source of all random numbers, on the teacher's device; by default one
                that torch's global generator seeds.
            student: The student before its training, for methods that learn from one; they train
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

    def unanswered(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs for a teacher that has yet to answer them.

        Arguments:
            n: How many, at least 1.
            generator: As of :meth:`sample`.

        Returns:
            As :meth:`sample` without labels; but `None` for labels that are what the teacher says,
            since it would be asked twice.
        """
        return self.sample(n, generator=generator)

    def diagnose(
        self, teacher: Teacher, generator: torch.Generator | None = None
    ) -> Diagnostics | None:
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
        return diagnose(logits.cpu(), x.cpu(), c, reference)

    def advice(self) -> dict[Sign, str]:
        """What to change about each sign of :meth:`diagnose`: options of the command, with values.

        Example:
            >>> from freia_kd.synthesizers.bdnf import BDNF
            >>> BDNF().advice()["variety"]
            'try --set bdnf.alpha=0.02, --set bdnf.steps=300, or another --synthesizer'
        """
        known = self.known_options()

        def change(factors: Mapping[str, float]) -> str:
            said = ["another --synthesizer"]
            for option in reversed([name for name in factors if name in known]):
                old = getattr(self.options, option)
                new = old * factors[option]
                text = str(round(new)) if isinstance(old, int) else f"{new:g}"
                said[:0] = [f"--set {self.name}.{option}={text}"] if old else []
            *first, last = said
            return f"try {', '.join([*first, 'or ' + last])}" if first else f"try {last}"

        return {
            "finite": change({"learning_rate": 0.1}),
            "variety": change(self.varying),
            "classes": change(self.directing),
            "confidence": change(self.directing),
        }

    @property
    def min_probability(self) -> float:
        """The mean probability of the classes asked for under which no one relies on its inputs.

        For methods that optimise inputs until the teacher sees a class in them: where it does not,
        they have failed. The others promise no class.
        """
        return 0.0

    @property
    def chosen(self) -> str | None:
        """A sentence for reports on what it has chosen by itself for the teacher, if anything."""
        return None

    @property
    def distinct(self) -> int | None:
        """How many different inputs there are, for methods that keep a bank; else `None`."""
        return None

    def part(self, heldout: bool) -> Synthesizer:
        """What to draw training inputs from, or held-out ones; they differ for a bank only."""
        return self

    def restore(self, domain: Domain, checkpoints: Checkpoints) -> None:
        """Takes what :meth:`fit` learned and kept, without the teacher.

        Raises:
            CheckpointError: If nothing of the kind was kept.
            UsageError: If the method cannot sample without its teacher.
        """
        raise UsageError(
            f"The synthesizer {self.name!r} cannot sample without its teacher; the picture "
            f"inputs-{self.name}.png and the folder synthetic/ of a run have what it made."
        )


TEACHER_BATCH_SIZE = 128  # larger batches are slower on CPUs


def families_of(synthesizers: Iterable[Synthesizer]) -> set[str]:
    """The families of inputs that they make."""
    return {each.family or each.name for each in synthesizers}


def sample_labels(
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
