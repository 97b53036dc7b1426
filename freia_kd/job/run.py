"""The main job on one screen."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .. import ranks
from ..errors import UsageError
from ..report.schema import Report
from ..report.storage import read_report, write_report
from ..students import Student, StudentSpec, calibration_set
from ..teachers.classifier import autocasting
from .job import Job
from .measure import measure
from .planning import make_plan
from .repair import Damage, find_damages, forget
from .student import compress_student, train_student_of
from .synthesis import needs_students, synthesize


def run_job(job: Job, repair: bool = False) -> Report:
    """Does what has not been done, stage by stage, and writes the report.

    A run that was killed anywhere and is called again leaves the same students, bit for bit.

    Arguments:
        job: The job.
        repair: Whether parts that are damaged may be deleted and made again.

    Raises:
        CheckpointError: If parts are damaged and may not be made again; all are named.
        UsageError: If a student cannot be made of this teacher.
        TrainingError: If a loss stays non-finite.
    """
    damages = find_damages(job, repair)
    if job.is_finished and not damages:
        return read_report(job.run.folder)
    job.expect_evaluation()
    with job.run.locked():
        with autocasting(job.teacher, job.config.precision):
            _begin(job, damages)
            make_students(job)
        if ranks.is_first():
            with ranks.alone():
                report = measure(job)  # real data may be read from here
                with job.run.stage("report"):
                    write_report(job.run.folder, report)
        job.run.meet()
    return report if ranks.is_first() else read_report(job.run.folder)


def _begin(job: Job, damages: list[Damage]) -> None:
    """What is done before all processes begin to work, by the first of them."""
    ranks.share(job.config.batch_size, "student.batch_size")
    if ranks.is_first():
        with ranks.alone():
            forget(job, damages)
            announce(job)
    job.run.meet()


def announce(job: Job) -> None:
    """Says what is left to do and what that takes, and refuses what cannot be held.

    Raises:
        UsageError: If memory or disk cannot hold the run.
    """
    plan = make_plan(job)
    if plan.stages:
        job.run.progress.note(plan.describe())


def make_students(job: Job) -> None:
    """All but the report: compresses and distils the students."""
    inputs = calibration_set(job.teacher, job.config.seed)
    for spec, student in zip(job.specs, compress_students(job), strict=True):
        training, heldout = synthesize(job, spec, student)
        train_student_of(job, spec, student, training, heldout, inputs)


def compress_students(job: Job) -> list[Student]:
    """The students after their first methods, before any training."""
    if not job.run.record.students:
        _remember(job)
    inputs = calibration_set(job.teacher, job.config.seed)
    compressed = [_compress(job, spec, inputs) for spec in job.specs]
    add_students(job)
    return compressed


def _compress(job: Job, spec: StudentSpec, inputs: Tensor) -> Student:
    """A student after its first method; one that cannot be made leaves the run to the others."""
    try:
        return compress_student(job, spec, inputs)
    except UsageError:
        job.run.record.students.pop(spec.name, None)
        if job.run.record.done:
            job.run.write()
        raise


def run_extraction(job: Job, repair: bool = False) -> Path:
    """The first half of the job: fits the synthesizers and makes the synthetic sets.

    Arguments:
        job: The job.
        repair: Whether parts that are damaged may be deleted and made again.

    Returns:
        The folder of the sets.

    Raises:
        UsageError: If a synthesizer learns from a student, and there is none.
        TrainingError: If a loss stays non-finite.
    """
    own = needs_students(job.synthesizers)
    if own and not job.specs:
        names = ", ".join(s.name for s in job.synthesizers if s.needs_student)
        raise UsageError(
            f"The synthesizer {names} learns from a student, and there is none; distil students "
            "instead, for each of which it makes inputs."
        )
    damages = find_damages(job, repair)
    with job.run.locked(), autocasting(job.teacher, job.config.precision):
        _begin(job, damages)
        for spec in job.specs if own else [None]:
            first = None
            if spec is not None:
                inputs = calibration_set(job.teacher, job.config.seed)
                first = compress_student(job, spec, inputs)
            synthesize(job, spec, first)
    return job.run.folder


def add_students(job: Job) -> None:
    """Writes the students and the place of the evaluation data into the run's record."""
    _remember(job)
    record = job.run.record
    record.done = [stage for stage in record.done if stage not in ("measure", "report")]
    job.run.write()


def _remember(job: Job) -> None:
    record = job.run.record
    record.students |= {spec.name: spec.to_dict() for spec in job.specs}
    if job.evaluation is not None:
        record.evaluation = job.evaluation.source_fields
