"""The main job on one screen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..report.schema import Report
from ..report.storage import read_report, write_report
from ..students import Student, StudentSpec, calibration_set
from .job import Job
from .measure import measure
from .student import compress_student, train_student_of
from .synthesis import needs_students, synthesize


def run_job(job: Job) -> Report:
    """Does what has not been done, stage by stage, and writes the report.

    A run that was killed anywhere and is called again leaves the same students, bit for bit.

    Raises:
        UsageError: If a student cannot be made of this teacher.
        TrainingError: If a loss stays non-finite.
    """
    if job.is_finished:
        return read_report(job.run.folder)
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
    if not job.run.record.students:
        job.run.record.students = {spec.name: spec.to_dict() for spec in job.specs}
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
