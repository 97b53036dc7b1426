"""A run with all that it needs, and the options that it records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..config import (
    BatchNormMode,
    Config,
    Count,
    DistillationOptions,
    Positive,
    Precision,
    PresetName,
    Size,
)
from ..data.datasets import LabelledData
from ..data.sources import RealData
from ..errors import UsageError
from ..runs import Run
from ..students import StudentSpec
from ..synthesizers.contract import Synthesizer, families_of
from ..teachers import Teacher
from ..trust import Judge, make_judges


@dataclass(frozen=True)
class JobConfig(Config):
    """The resolved options of a run: what its record holds, and what a resumed run must equal.

    Arguments:
        teacher: The teacher's file, or `"in memory"`.
        teacher_sha256: The hash of its weights.
        arch: Its architecture.
        domain: Its input domain, as plain JSON types.
        samples: Where the real samples are, if there are any.
        samples_sha256: The hash of the samples and their labels.
        preset: The name of the preset.
        synthesizer: The synthesizers' names or paths, joined by `+`.
        synthesizers: Their options, by name.
        flow_sha256: The hash of a flow's YAML file, if there is one.
        training: How the students are trained.
        bn: What becomes of batch normalisation in students whose specs do not say.
        set_size: How many synthetic inputs the students learn from.
        heldout_size: How many more choose the weights and measure agreement.
        on_the_fly: Whether students see new inputs in every step, instead of a stored set.
        seed: The seed of all random numbers.
        device: Where to compute, as torch names it.
        precision: In what the teacher and the students compute while they work; `None` is float32.
        minutes: How long the run was to take in all, by which its steps were chosen, if that was
            said.
    """

    title: ClassVar[str] = "run"
    teacher: str
    teacher_sha256: str
    arch: str
    domain: dict[str, Any]
    preset: PresetName
    synthesizer: str
    synthesizers: dict[str, dict[str, Any]]
    training: DistillationOptions
    bn: BatchNormMode
    set_size: Count
    heldout_size: Size
    seed: int
    device: str
    samples: str | None = None
    samples_sha256: str | None = None
    flow_sha256: str | None = None
    on_the_fly: bool = False
    precision: Precision | None = None
    minutes: Positive | None = None

    @property
    def steps(self) -> int:
        """Training steps of a student, which a run never leaves open."""
        assert self.training.steps is not None
        return self.training.steps

    @property
    def batch_size(self) -> int:
        """Inputs in a step of a student."""
        assert self.training.batch_size is not None
        return self.training.batch_size

    @property
    def check_every(self) -> int:
        """A student's steps between checks."""
        assert self.training.check_every is not None
        return self.training.check_every


@dataclass(frozen=True)
class PlannedStage:
    """A stage that has not been done.

    Arguments:
        name: Its name.
        steps: Of how much: steps of training, or inputs that are made.
        seconds: About how long it takes; `None` where that is not known, since a synthesizer of the
            user's own may not be made of loops that can end early.
        fixed: How many of these seconds it takes for any number of steps.
    """

    name: str
    steps: int
    seconds: float | None
    fixed: float = 0.0


@dataclass(frozen=True)
class Job:
    """A run with all that it needs in memory.

    Arguments:
        teacher: The teacher, on its device.
        run: The run's folder.
        config: Its options.
        specs: What each student is to be.
        synthesizers: What makes the inputs, each an equal share of them.
        samples: A few real inputs, if any.
        evaluation: Real data to measure accuracy on, read after the last weight is fixed.
        ahead: What comes before the run's own stages, in a plan of a run that has not begun.
    """

    teacher: Teacher
    run: Run
    config: JobConfig
    specs: list[StudentSpec] = field(default_factory=list)
    synthesizers: list[Synthesizer] = field(default_factory=list)
    samples: LabelledData | None = None
    evaluation: RealData | None = None
    ahead: tuple[PlannedStage, ...] = ()

    def changed(self, config: JobConfig, synthesizers: list[Synthesizer]) -> Job:
        """The job with other options, before any stage has begun."""
        self.run.record.config = config.to_dict()
        return replace(self, config=config, synthesizers=synthesizers)

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return next(self.teacher.parameters()).device

    @cached_property
    def judges(self) -> list[Judge]:
        """Inputs of families that know nothing of the teacher, by which students are judged."""
        return make_judges(self.teacher, self.config.seed)

    @property
    def families(self) -> set[str]:
        """The families of inputs from which its students learn."""
        return families_of(self.synthesizers)

    @property
    def is_finished(self) -> bool:
        """Whether the report that the folder holds is of these students and evaluation data."""
        record, wanted = self.run.record, self.evaluation
        known = wanted is None or (
            wanted.source_fields == record.evaluation and wanted.source_fields["source"] is not None
        )
        same = record.students == {spec.name: spec.to_dict() for spec in self.specs}
        students = [file for spec in self.specs for file in self.student_files(spec.name)]
        there = all(file.exists() for file in (self.run / "report.json", *students))
        return same and known and self.run.done("report") and there

    def expect_evaluation(self) -> None:
        """Raises if the run was measured on data that only memory held, and they are not given.

        Raises:
            UsageError: If so; the report would lose its accuracies.
        """
        if self.evaluation is None and self.run.record.evaluation is not None:
            raise UsageError(
                "The evaluation data of this run were in memory; pass them again, as eval_data=."
            )

    def student_files(self, name: str) -> list[Path]:
        """Where a trained student is, each of which rebuilds it alone."""
        return [self.run / f"student-{name}{suffix}" for suffix in (".pt", ".safetensors")]


def options_of(synthesizer: Synthesizer) -> dict[str, Any]:
    """The options of a synthesizer, as the record has them."""
    return {} if synthesizer.options is None else synthesizer.options.to_dict()


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of named tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
