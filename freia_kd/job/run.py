"""The main job on one screen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..config import Config, Count, DistillationOptions, PresetName, Size
from ..data.datasets import LabelledData
from ..data.sources import RealData
from ..report.schema import Report
from ..report.storage import read_report, write_report
from ..runs import Run
from ..students import Student, StudentSpec, calibration_set
from ..synthesizers.contract import Synthesizer
from ..teachers import Teacher
from .measure import measure
from .student import compress_student, train_student_of
from .synthesis import needs_students, synthesize


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
        set_size: How many synthetic inputs the students learn from.
        heldout_size: How many more choose the weights and measure agreement.
        on_the_fly: Whether students see new inputs in every step, instead of a stored set.
        seed: The seed of all random numbers.
        device: Where to compute, as torch names it.
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
    set_size: Count
    heldout_size: Size
    seed: int
    device: str
    samples: str | None = None
    samples_sha256: str | None = None
    flow_sha256: str | None = None
    on_the_fly: bool = False


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
    """

    teacher: Teacher
    run: Run
    config: JobConfig
    specs: list[StudentSpec] = field(default_factory=list)
    synthesizers: list[Synthesizer] = field(default_factory=list)
    samples: LabelledData | None = None
    evaluation: RealData | None = None

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return next(self.teacher.parameters()).device

    @property
    def is_finished(self) -> bool:
        """Whether the report that the folder holds is of these students and evaluation data."""
        asked = {spec.name: spec.to_dict() for spec in self.specs}
        record, place = self.run.record, self.evaluation and self.evaluation.place
        same = record.students == asked and (
            self.evaluation is None or (record.evaluation == place and place and place["source"])
        )
        return same and self.run.done("measure") and (self.run / "report.json").exists()

    def student_files(self, name: str) -> list[Path]:
        """Where a trained student is, each of which rebuilds it alone."""
        return [self.run / f"student-{name}{suffix}" for suffix in (".pt", ".safetensors")]


def run_job(job: Job) -> Report:
    """Does what has not been done, stage by stage, and writes the report.

    A run that was killed anywhere and is called again leaves the same students, bit for bit.

    Raises:
        UsageError: If a student cannot be made of this teacher.
        TrainingError: If a loss stays non-finite.
    """
    if job.is_finished:
        return read_report(job.run.folder)
    if not job.run.record.students:
        job.run.record.students = {spec.name: spec.to_dict() for spec in job.specs}
    compressed = make_students(job)
    report = measure(job, [stages[-1] for stages in compressed])  # real data may be read from here
    write_report(job.run.folder, report)
    return report


def make_students(job: Job) -> list[list[Student]]:
    """All but the report: compresses and distils; returns the students as compressed."""
    compressed = compress_students(job)
    inputs = calibration_set(job.teacher, job.config.seed)
    for spec, stages in zip(job.specs, compressed, strict=True):
        training, heldout = synthesize(job, spec, stages[0])
        train_student_of(job, spec, stages[0], training, heldout, inputs)
    return compressed


def compress_students(job: Job) -> list[list[Student]]:
    """The students before any training, each after each of its methods."""
    inputs = calibration_set(job.teacher, job.config.seed)
    compressed = [compress_student(job, spec, inputs) for spec in job.specs]
    enlist(job, job.specs)
    return compressed


def run_extraction(job: Job) -> Path:
    """The first half of the job: fits the synthesizers and makes the synthetic sets.

    Returns:
        The folder of the sets.
    """
    for spec in job.specs if needs_students(job.synthesizers) else [None]:
        first = None
        if spec is not None:
            first = compress_student(job, spec, calibration_set(job.teacher, job.config.seed))[0]
        synthesize(job, spec, first)
    return job.run.folder


def enlist(job: Job, specs: Iterable[StudentSpec]) -> None:
    """Writes students and the place of the evaluation data into the run's record."""
    record = job.run.record
    record.students |= {spec.name: spec.to_dict() for spec in specs}
    if job.evaluation is not None:
        record.evaluation = job.evaluation.place
    record.done = [stage for stage in record.done if stage != "measure"]
    job.run.write()
