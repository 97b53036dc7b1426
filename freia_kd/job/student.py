"""The students of a run: compressed, then distilled method by method."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import ranks
from ..compression import Compression, rebuild
from ..data.synthetic import SyntheticSet
from ..distillation import train_student
from ..errors import CheckpointError
from ..evaluation import ONE_SIDED, agreement, commonest, predict_with_teacher
from ..files import write_json
from ..report.words import percent
from ..students import Student, StudentSpec, extend, seeded_generator
from ..synthesizers.on_the_fly import OnTheFlySet
from ..teachers import Classifier, read_checkpoint, save_classifier
from ..teachers.classifier import check_weights
from ..trust import can_judge, hold_contest
from .job import Job


def compress_student(job: Job, spec: StudentSpec, inputs: Tensor) -> Student:
    """A student after the first of its parts, before any training.

    After each of them it is left in the folder, after the last as `freiakd compress` writes it.
    What was built once is read from there, since latencies, by which a search may go, are never
    measured the same again.
    """
    stage, paths = f"compress {spec.name}", compressed_paths(job, spec)
    if not (job.run.done(stage) and all(path.exists() for path in paths)):
        with job.run.stage(stage), ranks.alone():
            if ranks.is_first():
                _compress(job, spec, paths, inputs)
        job.run.meet()
    first = read_student(job, spec, paths[0])
    first.classifier.is_new = spec.arch is not None
    return first


def _compress(job: Job, spec: StudentSpec, paths: list[Path], inputs: Tensor) -> None:
    student = spec.start(job.teacher, job.config.seed)
    for path, method in zip(paths, _methods_by_part(spec), strict=True):
        if method is not None:
            student = extend(student, method, spec.bn, inputs, job.run.progress)
        write_student(path, student)
        write_json(searches_path(job, path), student.searches)


def _methods_by_part(spec: StudentSpec) -> list[Compression | None]:
    """The method of each of a student's parts; none of a new net."""
    return [*([None] if spec.arch else []), *spec.methods]


def compressed_paths(job: Job, spec: StudentSpec) -> list[Path]:
    """The files of a student before any training, one for each of its parts."""
    earlier = [f"checkpoints/compressed-{spec.name}-{part}" for part in spec.parts[:-1]]
    return [job.run / f"{stem}.safetensors" for stem in [*earlier, f"compressed-{spec.name}"]]


def searches_path(job: Job, path: Path) -> Path:
    """Where it is kept what the searches for a student's targets have found."""
    return job.run / "checkpoints" / f"{path.stem}-searches.json"


def train_student_of(
    job: Job,
    spec: StudentSpec,
    first: Student,
    training: SyntheticSet | OnTheFlySet,
    heldout: SyntheticSet,
    inputs: Tensor,
) -> None:
    """Distils a student after each of its parts, and leaves it in the folder.

    Arguments:
        job: The job.
        spec: What the student is to be.
        first: The student after the first of them, untrained.
        training: What it learns from.
        heldout: What chooses its weights.
        inputs: The calibration set.
    """
    student, stages = first, training_stages(job, spec)
    for (stage, paths), method in zip(stages.items(), _methods_by_part(spec), strict=True):
        if job.run.done(stage) and all(path.exists() for path in paths):
            student = read_student(job, spec, paths[-1])
            continue
        if method is not None and stage != next(iter(stages)):
            student = _extend(job, spec, stage, student, method, inputs)
        with job.run.stage(stage):
            train_student(
                student.classifier,
                training,
                job.config.training,
                seeded_generator(job.config.seed, stage),
                job.run.checkpoints(stage),
                heldout,
                teacher=job.teacher,
                precision=job.config.precision,
            )
            if paths == job.student_files(spec.name):
                untrained = read_student(job, spec, compressed_paths(job, spec)[-1])
                student = _better(job, spec, student, untrained, heldout)
            for path in paths if ranks.is_first() else ():
                write_student(path, student)
        job.run.meet()


def _extend(
    job: Job, spec: StudentSpec, stage: str, student: Student, method: Compression, inputs: Tensor
) -> Student:
    """A student by one more method; of several processes the first makes it, and all read it."""
    if ranks.count() == 1:
        return extend(student, method, spec.bn, inputs, job.run.progress)
    path = job.run / "checkpoints" / f"{stage}-start.safetensors"
    with ranks.first_before_others():
        if ranks.is_first():
            write_student(path, extend(student, method, spec.bn, inputs, job.run.progress))
        return read_student(job, spec, path)


def _better(
    job: Job, spec: StudentSpec, trained: Student, untrained: Student, heldout: SyntheticSet
) -> Student:
    """The trained student, unless compression alone follows the teacher better.

    By held-out inputs only several methods can lead to that, since of each the start is among the
    candidates. By families of inputs from which it did not learn a student may be the worse for its
    training however well it learned, as many of uniform noise are (`benchmarks/results/trust.json`,
    where real images say the same). What so few inputs cannot show does not count, unless the
    held-out inputs show nothing either, as they are nearly all of one class: what has learned from
    such stays as compressed but for surely better answers on the other families.
    """
    before, after = (agreement(s.classifier, heldout, "even") for s in (untrained, trained))
    if before > after:
        return untrained
    nets = {"trained": trained.classifier, "untrained": untrained.classifier}
    judges = [j for j in job.judges if j.family not in job.families and can_judge(j)]
    found, _ = hold_contest(nets, judges, job.config.seed)
    is_sure = bool(found) and found[1].behind.high < 0
    if is_sure:
        best, other = found
        if best.synthesizer == "trained":
            return trained
        job.run.progress.note(
            f"Student {spec.name}, compressed only, follows its teacher better: "
            f"{percent(best.agreement)} and not {percent(other.agreement)} of "
            f"{' and '.join(best.judges)}; so it stays as it was."
        )
        return untrained
    _, theirs = predict_with_teacher(untrained.classifier, heldout, "odd")
    share = commonest(theirs)
    if spec.arch is None and share >= ONE_SIDED:
        job.run.progress.note(
            f"Student {spec.name}: its teacher gives one and the same answer to {percent(share)} "
            "of such inputs as it learned from, and no others show surely that training made it "
            "better; so it stays as it was."
        )
        return untrained
    return trained


def training_stages(job: Job, spec: StudentSpec) -> dict[str, list[Path]]:
    """The stages that train a student, one for each part, with the files that each leaves."""
    *earlier, last = [f"student-{spec.name}-{part}" for part in spec.parts]
    stages = {stage: [job.run / f"checkpoints/{stage}-net.safetensors"] for stage in earlier}
    stage = last if earlier else f"student-{spec.name}"
    return {**stages, stage: job.student_files(spec.name)}


def write_student(path: Path, student: Student) -> None:
    """Writes a student to a file that rebuilds it alone; equal students give equal bytes."""
    classifier = student.classifier
    own = Classifier(classifier.net, classifier.domain, classifier.arch)
    save_classifier(path, own, {"compression": student.steps})


def read_student(job: Job, spec: StudentSpec, path: Path) -> Student:
    """A student that this run has written, with what its searches found.

    Raises:
        CheckpointError: If the file, or that of its searches, is not what was written.
    """
    searches = searches_path(job, path)
    found = read_searches(searches) if searches.exists() else []
    return replace(rebuild_student(job, spec, path), searches=found)


def rebuild_student(job: Job, spec: StudentSpec, path: Path) -> Student:
    """A student that this run has written; its teacher may also be in memory.

    Raises:
        CheckpointError: If the file is not what was written.
    """
    checkpoint = read_checkpoint(path)
    start = spec.start(job.teacher, job.config.seed).classifier
    try:
        steps = checkpoint.own["compression"]
        net = rebuild(start.net, steps, {type(method) for method in spec.methods})
        net.load_state_dict(checkpoint.state)
        check_weights(net)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not student {spec.name} of this run: {reason}") from error
    classifier = Classifier(net.requires_grad_(True), start.domain, start.arch)
    return Student(classifier.to(job.device).eval(), steps)


def read_searches(path: Path) -> list[dict[str, Any] | None]:
    """What the searches for a student's targets have found.

    Raises:
        CheckpointError: If the file is not what was written.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"The file {path} is damaged: {error}.") from error
    if not isinstance(found, list) or not all(f is None or isinstance(f, dict) for f in found):
        raise CheckpointError(f"The file {path} is not what the searches of a student found.")
    return found
