"""The students of a run: compressed, then distilled method by method."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ..compression import rebuild
from ..data.synthetic import SyntheticSet
from ..distillation import train_student
from ..files import write_json
from ..students import Student, StudentSpec, extend, seeded_generator
from ..synthesizers.on_the_fly import OnTheFlySet
from ..teachers import Classifier, read_checkpoint, save_classifier
from .job import Job


def compress_student(job: Job, spec: StudentSpec, inputs: Tensor) -> Student:
    """A student after its first method, before any training.

    After each method it is left in the folder, after the last one as `freiakd compress` writes it.
    What was built once is read from there, since latencies, by which a search may go, are never
    measured the same again.
    """
    stage, paths = f"compress {spec.name}", compressed_paths(job, spec)
    if not (job.run.done(stage) and all(path.exists() for path in paths)):
        student = Student(job.teacher)
        with job.run.stage(stage):
            for method, path in zip(spec.methods, paths, strict=True):
                student = extend(student, method, spec.bn, inputs, job.run.progress)
                write_student(path, student)
                write_json(_searches_path(job, path), student.searches)
    return read_student(job, paths[0])


def compressed_paths(job: Job, spec: StudentSpec) -> list[Path]:
    """The files of a student before any training, one for each of its methods."""
    earlier = [f"checkpoints/compressed-{spec.name}-{m.name}" for m in spec.methods[:-1]]
    return [job.run / f"{stem}.safetensors" for stem in [*earlier, f"compressed-{spec.name}"]]


def _searches_path(job: Job, path: Path) -> Path:
    return job.run / "checkpoints" / f"{path.stem}-searches.json"


def train_student_of(
    job: Job,
    spec: StudentSpec,
    first: Student,
    training: SyntheticSet | OnTheFlySet,
    heldout: SyntheticSet,
    inputs: Tensor,
) -> None:
    """Distils a student after each of its methods, and leaves it in the folder.

    Arguments:
        job: The job.
        spec: What the student is to be.
        first: The student after its first method, untrained.
        training: What it learns from.
        heldout: What chooses its weights.
        inputs: The calibration set.
    """
    student = first
    for number, (stage, paths) in enumerate(training_stages(job, spec).items()):
        if job.run.done(stage) and all(path.exists() for path in paths):
            student = read_student(job, paths[-1])
            continue
        if number:
            student = extend(student, spec.methods[number], spec.bn, inputs, job.run.progress)
        with job.run.stage(stage):
            train_student(
                student.classifier,
                training,
                job.config.training,
                seeded_generator(job.config.seed, stage),
                job.run.checkpoints(stage),
                heldout,
                teacher=job.teacher,
            )
            for path in paths:
                write_student(path, student)


def training_stages(job: Job, spec: StudentSpec) -> dict[str, list[Path]]:
    """The stages that train a student, one for each method, with the files that each leaves."""
    *earlier, last = [f"student-{spec.name}-{method.name}" for method in spec.methods]
    stages = {stage: [job.run / f"checkpoints/{stage}-net.safetensors"] for stage in earlier}
    stage = last if earlier else f"student-{spec.name}"
    return {**stages, stage: job.student_files(spec.name)}


def write_student(path: Path, student: Student) -> None:
    """Writes a student to a file that rebuilds it alone; equal students give equal bytes."""
    classifier = student.classifier
    own = Classifier(classifier.net, classifier.domain, classifier.arch)
    save_classifier(path, own, {"compression": student.steps})


def read_student(job: Job, path: Path) -> Student:
    """A student that this run has written; its teacher may also be in memory."""
    checkpoint = read_checkpoint(path)
    steps = checkpoint.own["compression"]
    trusted = {type(method) for spec in job.specs for method in spec.methods}
    net = rebuild(job.teacher.net, steps, trusted)
    net.load_state_dict(checkpoint.state)
    classifier = Classifier(net.requires_grad_(True), job.teacher.domain, job.teacher.arch)
    searches = _searches_path(job, path)
    found = json.loads(searches.read_text(encoding="utf-8")) if searches.exists() else []
    return Student(classifier.to(job.device).eval(), steps, found)
