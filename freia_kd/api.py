"""The verbs: what the command does, and what a script calls."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .comparing import ComparisonResult as ComparisonResult
from .comparing import compare as compare
from .comparing import plan_comparison as plan_comparison
from .compression import compare_costs, count_parameters, load_classifier, load_teacher
from .compression.comparison import Comparison as CostComparison
from .config import BatchNormMode, Device, DistillationOptions, Precision, Preset, PresetName
from .data.datasets import LabelledData
from .data.sources import PathLike, RealData, Source
from .data.synthetic import SyntheticSet, quantise
from .device import free_memory, keeping_threads, memory_limit
from .domain import Domain
from .errors import CheckpointError, UsageError
from .evaluation import accuracy, commonest, predict, share_equal
from .exporting import export as export
from .files import atomic
from .job import Plan, make_plan, open_job, reopen_job, run_job
from .job.measure import by_class
from .job.opening import Synthesizers, restore_synthesizer
from .job.run import run_extraction
from .job.student import write_student
from .job.teaching import open_training
from .job.teaching import training_folder as training_folder
from .report.plots import plot_grid, plot_sensitivity, write_png
from .report.schema import ClassScores, Proportion, Report
from .runs.listing import list_runs as list_runs
from .runs.store import read_record
from .students import StudentSpec, as_specs, build, calibration_set
from .synthesizers.answers import check_answers
from .teachers import (
    ARCHITECTURES,
    Classifier,
    Teacher,
    is_published,
    read_checkpoint,
)
from .training import Progress

SAMPLE_COPIES = 4  # of samples as floats, that making and writing them holds at once


@dataclass(frozen=True)
class DistillationResult:
    """A finished run.

    Arguments:
        folder: Its folder, with the students and the report.
        report: What came out.
    """

    folder: Path
    report: Report

    def student(self, name: str | None = None) -> Classifier:
        """A student of the run, by default the first; arguments and errors of `load_student`."""
        stem = "student" if name is None else f"student-{name}"
        return load_student(self.folder / f"{stem}.safetensors")


@dataclass(frozen=True)
class TrainedTeacher:
    """A teacher that was trained and written.

    Arguments:
        file: The checkpoint.
        arch: The architecture.
        domain: The input domain.
        parameters: How many parameters it has.
        accuracy: On the test split, or on the training data where there is no other.
        has_test_split: Whether there is one.
    """

    file: str
    arch: str
    domain: Domain
    parameters: int
    accuracy: Proportion
    has_test_split: bool


@dataclass(frozen=True)
class CompressedStudent:
    """A student that was made without any training, and written.

    Arguments:
        file: The student.
        steps: What each method of compression did.
        searches: For each step what a search for a target found, or `None`.
        costs: What the teacher and the student cost.
    """

    file: str
    steps: list[dict[str, Any]]
    searches: list[dict[str, Any] | None]
    costs: CostComparison


@dataclass(frozen=True)
class Evaluation:
    """How good a checkpoint is on real data.

    Arguments:
        file: The checkpoint.
        accuracy: The share of inputs that it gets right.
        data: The data, by name.
        agreement: With the teacher, where there is one.
        commonest: The share of inputs to which it gives its commonest answer.
        per_class: The same of each class: accuracy by label, agreement by what the teacher says.
    """

    file: str
    accuracy: Proportion
    data: str
    agreement: Proportion | None = None
    commonest: float = 0.0
    per_class: list[ClassScores] = field(default_factory=list)


@keeping_threads()
def train_teacher(
    data: PathLike,
    out: PathLike,
    *,
    resume: bool = False,
    arch: str | None = None,
    data_root: PathLike | None = None,
    download: bool = False,
    resize: bool = False,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: Device = "auto",
    progress: Progress | None = None,
) -> TrainedTeacher:
    """Trains a classifier on labelled data, and measures it on the test split afterwards.

    A tenth of the training data (:func:`~freia_kd.data.datasets.hold_out`) is not trained on: the
    weights after the epoch that is best on it are kept. The test split chooses nothing. While it
    trains, what it needs to go on is kept in a folder beside the checkpoint, `OUT.training`.

    Arguments:
        data: A named set, a folder of images or an npz file.
        out: Where the checkpoint goes; it holds the architecture and the domain as well.
        resume: Whether to go on with a training that was stopped, to the same weights bit for bit.
        arch: The architecture, by name or `package.module:Class`; if `None`, `"lenet5"` for
            images and `"mlp"` for vectors.
        data_root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        resize: Whether to resize images of a folder or file to 32 x 32.
        epochs: Passes over the data; if `None`, 8 for images, and for vectors as many as make
            1,000 steps, since tables are small.
        batch_size: Inputs in a step.
        learning_rate: Adam's, falling to 0 as a cosine.
        seed: The seed of weights and of the order of the data.
        device: Where to compute.
        progress: What to show meanwhile.

    Raises:
        UsageError: If there is no such data or architecture, they do not fit, or a training that
            was stopped had other options.
        CheckpointError: If there is no training to go on with.
        TrainingError: If the loss stays non-finite.
    """
    training = open_training(
        data,
        out,
        resume=resume,
        arch=arch,
        data_root=data_root,
        download=download,
        resize=resize,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        progress=progress,
    )
    classifier = training.carry_out(out)
    train, test = training.train, training.data.load("test", training.domain)
    separate = test.labels.shape != train.labels.shape or not torch.equal(test.inputs, train.inputs)
    share = Proportion.of(accuracy(classifier, test), len(test))
    return TrainedTeacher(
        os.fspath(out),
        training.arch,
        training.domain,
        count_parameters(classifier.net),
        share,
        separate,
    )


@keeping_threads()
def plan_teacher(data: PathLike, out: PathLike, **options: Any) -> Plan:
    """What :func:`train_teacher` would take, after a few real steps; nothing is written.

    Arguments:
        data: As there, and so are the others.
        out: Where the checkpoint would go.
        options: What else it takes.

    Raises:
        UsageError: If the options do not fit together, or memory or disk cannot hold the training.
        CheckpointError: If there is no training to go on with.
    """
    return open_training(data, out, **options).plan()


@keeping_threads()
def distill(
    teacher: PathLike | Teacher,
    *,
    students: Sequence[str | StudentSpec] = ("1",),
    synthesizer: Synthesizers | None = None,
    training: DistillationOptions | None = None,
    preset: PresetName | Preset = "standard",
    set_size: int | None = None,
    on_the_fly: bool = False,
    precision: Precision | None = None,
    samples: Source | None = None,
    resize: bool = False,
    eval_data: Source | None = None,
    data_root: PathLike | None = None,
    download: bool = False,
    arch: str | None = None,
    domain: Domain | None = None,
    seed: int = 0,
    device: Device = "auto",
    minutes: float | None = None,
    out: PathLike | None = None,
    asked: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> DistillationResult:
    """Compresses a classifier and distils it, without its training data.

    Arguments:
        teacher: A checkpoint, or a teacher in memory.
        students: What to make of it: the papers' students, `"1"` to `"3"`, and specs. That they
            can be made is checked before any work.
        synthesizer: What makes the inputs: synthesizers, or their names or paths
            `package.module:Class`, which `+` joins; each makes an equal share. By default as
            :func:`freia_kd.synthesizers.default_synthesizer` says; `"auto"` tries mixtures on short
            runs first (:mod:`freia_kd.job.choosing`), each with what is joined to it.
        training: How the students are trained, if not as the preset says.
        preset: How much work to do.
        set_size: How many synthetic inputs to make, if not as many as the preset says.
        on_the_fly: Whether the students see new inputs in every step, instead of a stored set.
        precision: `"bf16"` lets the teacher and the students compute in bfloat16 while they work,
            which is the default on GPUs that have it; `"float32"` does not. The report measures
            them in float32. Flows always have float32, in which they can be inverted.
        samples: A few labelled real inputs to train on as well (paper eq. 9): a folder of images,
            an npz file, or a map-style data set of (image, label) that does not normalise.
        resize: Whether to resize samples of another size.
        eval_data: Labelled real data that is read only after the last weight is fixed: a name, a
            folder, an npz file, or such a data set.
        data_root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        arch: The architecture, by name or `package.module:Class`, if the file does not tell.
        domain: The input domain, if the file does not tell.
        seed: The seed of all random numbers.
        device: Where to compute.
        minutes: About how long it is to take in all: the steps of students and synthesizers and the
            size of the set, if that is not given, are multiplied by one factor, which a few
            measured steps decide (:mod:`freia_kd.job.budget`).
        out: The run's folder; by default a new one under `runs/`.
        asked: What was asked for in the caller's own words, plain values that the folder keeps as
            `run.yaml`; the command's options, which `--config` reads.
        progress: What to show meanwhile.

    Raises:
        UsageError: If the options do not fit together.
        CheckpointError: If the teacher's file is not sound.
        TrainingError: If a loss stays non-finite, or no synthesizer's inputs can be relied on.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim)

    Example: see `examples/library.py`.
    """
    job = open_job(
        teacher,
        students=students,
        synthesizer=synthesizer,
        training=training,
        preset=preset,
        set_size=set_size,
        on_the_fly=on_the_fly,
        precision=precision,
        samples=samples,
        resize=resize,
        evaluation=_evaluation(eval_data, data_root, download),
        arch=arch,
        domain=domain,
        seed=seed,
        device=device,
        minutes=minutes,
        out=out,
        asked=asked,
        progress=progress,
    )
    return DistillationResult(job.run.folder, run_job(job))


@keeping_threads()
def resume(
    folder: PathLike,
    *,
    students: Sequence[str | StudentSpec] = (),
    eval_data: Source | None = None,
    data_root: PathLike | None = None,
    download: bool = False,
    teacher: PathLike | Teacher | None = None,
    synthesizer: Synthesizers | None = None,
    methods: Sequence[str] = (),
    training: DistillationOptions | None = None,
    preset: PresetName | Preset | None = None,
    set_size: int | None = None,
    on_the_fly: bool | None = None,
    precision: Precision | None = None,
    samples: Source | None = None,
    arch: str | None = None,
    domain: Domain | None = None,
    seed: int | None = None,
    device: Device | None = None,
    minutes: float | None = None,
    repair: bool = False,
    progress: Progress | None = None,
) -> DistillationResult:
    """Goes on with a run, as if it had never been stopped.

    Students and evaluation data may be added. Everything else is as it was recorded: it needs to
    be given only where the run had it in memory, or where it is code of the user's own, which no
    file may name; if it differs from the record it is refused.

    Arguments:
        folder: The run's folder.
        students: Students to make besides those of the run.
        eval_data: Labelled real data; those of the run if `None`.
        data_root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        teacher: The teacher again.
        synthesizer: The synthesizers again.
        methods: The run's methods of compression, and its students' architectures, that are code
            of one's own.
        repair: Whether parts of the run that are damaged (a shard, a student, a checkpoint) may be
            deleted and made again.
        training: As for :func:`distill`, and so are the others.

    Raises:
        CheckpointError: If the folder holds no run, or one of an older version, or parts of it are
            damaged and are not to be repaired.
        UsageError: If an option differs from the record; both values are named.
        TrainingError: If a loss stays non-finite, or no synthesizer's inputs can be relied on.
    """
    job = reopen_job(
        folder,
        students=students,
        evaluation=_evaluation(eval_data, data_root, download),
        teacher=teacher,
        synthesizer=synthesizer,
        methods=methods,
        training=training,
        preset=preset,
        set_size=set_size,
        on_the_fly=on_the_fly,
        precision=precision,
        samples=samples,
        arch=arch,
        domain=domain,
        seed=seed,
        device=device,
        minutes=minutes,
        progress=progress,
    )
    return DistillationResult(job.run.folder, run_job(job, repair))


def _evaluation(source: Source | None, root: PathLike | None, download: bool) -> RealData | None:
    return None if source is None else RealData(source, root, download)


def compress(
    teacher: PathLike | Teacher,
    out: PathLike,
    *,
    student: str | StudentSpec = "1",
    bn: BatchNormMode | None = None,
    arch: str | None = None,
    domain: Domain | None = None,
    plot: PathLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CompressedStudent:
    """Compresses a teacher without any training, and writes the student.

    The file is, bit for bit, what :func:`distill` calls "compressed only" with the same seed.

    Arguments:
        teacher: A checkpoint, or a teacher in memory.
        out: The student's file, `.pt` or `.safetensors`.
        student: One of the papers' students, or a spec.
        bn: What becomes of batch normalisation, if the spec does not say.
        arch: The architecture, if the file does not tell.
        domain: The input domain, if the file does not tell.
        plot: Where a picture of the layers' sensitivity goes, if a target is searched for.
        seed: The seed of the calibration set, and of a new net's weights.
        progress: What to show meanwhile.

    Raises:
        CheckpointError: If the teacher's file is not sound.
        UsageError: If the student cannot be made of this teacher.
    """
    loaded = teacher if isinstance(teacher, Teacher) else load_teacher(teacher, arch, domain)
    (spec,) = as_specs([student])
    spec = spec.changed(bn=spec.bn or bn)
    if plot is not None and not any(m.needs_teacher for m in spec.methods):
        raise UsageError("Only the search for a target measures sensitivity; there is no plot.")
    spec.check(loaded)
    check_answers(loaded, progress)
    made = build(loaded, spec, calibration_set(loaded, seed), progress, seed)
    for search in made.searches:
        if plot is not None and search is not None:
            write_png(plot, plot_sensitivity(search["sensitivity"]))
    write_student(Path(out), made)
    nets, by_layer = [made.classifier.net], [spec.arch is None]
    (costs,) = compare_costs(loaded.net, nets, loaded.domain.shape, by_layer=by_layer)
    return CompressedStudent(os.fspath(out), made.steps, made.searches, costs)


def evaluate(
    path: PathLike,
    eval_data: Source,
    *,
    data_root: PathLike | None = None,
    download: bool = False,
    resize: bool = False,
    arch: str | None = None,
    domain: Domain | None = None,
) -> list[Evaluation]:
    """The accuracy of a checkpoint, or of a run's teacher and every student, on real data.

    Returns:
        What was measured; of a run the teacher comes first, if its file is still there.

    Raises:
        CheckpointError: If a file is not sound, or a folder has no students.
        UsageError: If there is no such data, or it does not fit.
    """
    files = sorted(Path(path).glob("student-*.pt")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise CheckpointError(f"There are no students in {path}.")
    source = RealData(eval_data, data_root, download, resize)
    source.check()
    results, taught = list[Evaluation](), None
    for file in files:
        recorded = read_checkpoint(file).own.get("arch") if Path(path).is_dir() else None
        # A run's new nets are not of the teacher's architecture, which may be code that is named.
        classifier = load_classifier(file, recorded if recorded in ARCHITECTURES else arch, domain)
        data = source.load(classifier.domain, "test")
        if taught is None and Path(path).is_dir():
            teacher = _teacher_of(Path(path), arch)
            if teacher is not None:
                taught = predict(teacher[1], data)
                results.append(_scored(teacher[0], taught, None, data, teacher[1].domain))
        said = predict(classifier, data)
        results.append(_scored(os.fspath(file), said, taught, data, classifier.domain))
    return results


def _scored(
    file: str, said: torch.Tensor, taught: torch.Tensor | None, data: LabelledData, domain: Domain
) -> Evaluation:
    share = Proportion.of(share_equal(said, data.labels), len(data))
    agreed = None if taught is None else Proportion.of(share_equal(said, taught), len(data))
    classes = by_class(said, taught, domain.classes, data.labels)
    return Evaluation(file, share, data.name, agreed, commonest(said), classes)


def _teacher_of(folder: Path, arch: str | None) -> tuple[str, Teacher] | None:
    """The teacher of a run with its file, if that is still there."""
    config = read_record(folder, "distill").config
    is_there = Path(config["teacher"]).exists() or is_published(config["teacher"])
    if not is_there or (":" in config["arch"] and config["arch"] != arch):
        return None
    teacher = load_teacher(config["teacher"], config["arch"], Domain.from_dict(config["domain"]))
    return config["teacher"], teacher


def load_student(path: PathLike, arch: str | None = None) -> Classifier:
    """Loads a student: logits for pixels in [0, 1]; neither its teacher nor its run is needed.

    Arguments:
        path: `student.pt`, `student-1.safetensors` or the like, or a run's folder for its
            `student.safetensors`.
        arch: `package.module:Class`, for students of such an architecture.

    Raises:
        CheckpointError: If the file is not sound.
    """
    path = Path(path)
    return load_classifier(path / "student.safetensors" if path.is_dir() else path, arch=arch)


@keeping_threads()
def extract(
    teacher: PathLike | Teacher | None = None,
    *,
    out: PathLike | None = None,
    again: bool = False,
    repair: bool = False,
    **options: Any,
) -> tuple[Path, dict[str, int]]:
    """The first half of :func:`distill` or, with `again`, of :func:`resume`: the synthetic sets.

    Arguments:
        teacher: A checkpoint, or a teacher in memory; of a run that goes on, the run's if `None`.
        out: The run's folder.
        again: Whether to go on with the run in it.
        repair: As for :func:`resume`.
        options: What else the verb takes.

    Returns:
        The run's folder, and the number of inputs of each set in it.

    Raises:
        UsageError: If the options do not fit together, or a synthesizer learns from a student.
        CheckpointError: If the teacher's file is not sound, or the folder holds no run.
        TrainingError: If a loss stays non-finite, or no synthesizer's inputs can be relied on.
    """
    job = (
        reopen_job(out or "", teacher=teacher, **options)
        if again
        else open_job(teacher or "", out=out, students=(), **options)
    )
    folder = run_extraction(job, repair)
    sets = sorted(path.parent for path in folder.glob("synthetic*/*/manifest.json"))
    return folder, {str(path.relative_to(folder)): len(SyntheticSet(path)) for path in sets}


@keeping_threads()
def plan(
    teacher: PathLike | Teacher | None = None,
    *,
    out: PathLike | None = None,
    again: bool = False,
    eval_data: Source | None = None,
    data_root: PathLike | None = None,
    download: bool = False,
    **options: Any,
) -> Plan:
    """What :func:`distill` would take or, with `again`, :func:`resume`; nothing is written.

    A few real steps of each stage are taken.

    Arguments:
        teacher: A checkpoint, or a teacher in memory; of a run that goes on, the run's if `None`.
        out: The run's folder.
        again: Whether it is about the run in it.
        eval_data: As for the verb, and so are the others.
        options: What else the verb takes; no `students` for :func:`extract`.

    Raises:
        UsageError: If the options do not fit together, or memory or disk cannot hold the run.
        CheckpointError: If the teacher's file is not sound, or the folder holds no run.
    """
    options["evaluation"] = _evaluation(eval_data, data_root, download)
    options.pop("repair", None)
    job = (
        reopen_job(out or "", teacher=teacher, **options)
        if again
        else open_job(teacher or "", out=out, is_plan=True, **options)
    )
    return make_plan(job)


def sample(
    folder: PathLike,
    out: PathLike,
    *,
    count: int = 10,
    labels: Sequence[int] = (),
    seed: int = 0,
    synthesizer: str | None = None,
    flow: str | None = None,
) -> int:
    """Samples `count` images of each label from what a run has learned, into a .png or .npz file.

    Arguments:
        folder: The run's folder.
        out: The file; `.npz` holds `x` (uint8 images, or vectors) and `y`.
        count: Images of each label.
        labels: The classes; all of them if empty.
        seed: The seed of the random numbers.
        synthesizer: Which of the run's synthesizers, by default the first that can do without the
            teacher; it must be given if it is code of its own (`package.module:Class`).
        flow: The flow of BDNF, if it is code of its own (`package.module:function`).

    Returns:
        The number of images.

    Raises:
        CheckpointError: If the folder holds no run with a trained synthesizer.
        UsageError: If a label or the kind of file does not exist, or memory cannot hold so many.
    """
    record, suffix = read_record(folder, "distill"), Path(out).suffix
    domain = Domain.from_dict(record.config["domain"])
    if suffix not in (".png", ".npz") or (suffix == ".png" and not domain.is_image):
        raise UsageError(f"Expected a .npz file, or .png for images; got {out}.")
    chosen = list(labels) or list(range(domain.classes))
    if not 0 <= min(chosen) <= max(chosen) < domain.classes:
        raise UsageError(f"Expected labels from 0 to {domain.classes - 1}; got {chosen}.")
    free = free_memory(torch.device("cpu"))
    _expect_room(count, len(chosen), domain, free)
    source = restore_synthesizer(Path(folder), record, synthesizer, flow)
    wanted = torch.tensor(chosen).repeat_interleave(count)
    try:
        with memory_limit(free):
            x, y = source.sample(len(wanted), wanted, torch.Generator().manual_seed(seed))
    except MemoryError:
        raise UsageError(
            f"{source.name} needs more memory for {len(wanted):,} inputs than the {free:,} bytes "
            f"that are free; choose a --count below {count:,}."
        ) from None
    if suffix == ".png":
        write_png(out, plot_grid(x, chosen))
    else:
        with atomic(out) as temporary:
            np.savez(temporary, x=quantise(x).numpy(), y=y.numpy())
    return len(x)


def _expect_room(count: int, labels: int, domain: Domain, free: int | None) -> None:
    """Refuses more samples than memory can hold."""
    per_label = labels * (SAMPLE_COPIES * domain.float_bytes + 8)
    if free is not None and count * per_label > free:
        raise UsageError(
            f"{count * labels:,} inputs need about {count * per_label:,} bytes of memory, and "
            f"{free:,} are free: --count {free // per_label} would fit."
        )


def inspect(path: PathLike) -> dict[str, Any]:
    """What a checkpoint or a run's folder holds; nothing in it is run.

    Raises:
        CheckpointError: If it is neither.
    """
    path = Path(path)
    if path.is_dir():
        record = read_record(path)
        names = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
        return {**vars(record), "kind": "run", "made_by": record.kind, "files": names}
    checkpoint = read_checkpoint(path)
    return {
        "kind": "checkpoint",
        "arch": checkpoint.own.get("arch", "not recorded"),
        "domain": checkpoint.own.get("domain", "not recorded"),
        "compression": checkpoint.own.get("compression", []),
        "parameters": sum(v.numel() for v in checkpoint.state.values()),
        "tensors": {name: list(value.shape) for name, value in checkpoint.state.items()},
    }
