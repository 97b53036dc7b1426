"""The main job: from a trained classifier to a smaller one and a report, without its data."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .compression import Recipe, as_recipes
from .data.datasets import DATASETS, LabelledData, Split, load_dataset
from .domain import Domain
from .errors import UsageError
from .files import atomic
from .job import Job
from .presets import STUDENT, Preset, get_preset, resize_preset
from .runs.progress import Progress
from .runs.report import Report, write_report
from .runs.run import Run
from .synthesizers import build_synthesizers, expect_able
from .teachers import Teacher, load_classifier, load_teacher
from .teachers.classifier import Classifier

PathLike = str | os.PathLike[str]
# What torchvision leaves in its folder.
TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "svhn": "test_32x32.mat",
    "cifar10": "cifar-10-batches-py",
}


def distill(
    teacher: PathLike | Teacher,
    *,
    students: Sequence[str | Recipe] | None = None,
    eval_data: PathLike | LabelledData | None = None,
    data_root: PathLike | None = None,
    download: bool = False,
    **options: Any,
) -> Report:
    """Compresses a classifier and distils it, without its training data.

    Arguments:
        teacher: A checkpoint, or a teacher in memory.
        students: The papers' students, `"1"` to `"3"`, and others as recipes. By default those of
            a resumed run, else student 1.
        eval_data: Labelled real data, by name, folder, npz file or in memory, that is read only
            after the last weight is fixed.
        data_root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        options: What :func:`open_job` takes.

    Returns:
        The report, which is also in the run's folder together with the students.

    Raises:
        UsageError: If the options do not fit together.
        CheckpointError: If the teacher's file is not sound.
        TrainingError: If a loss stays non-finite.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim)

    Example: see `examples/library.py`.
    """
    check_source(eval_data, data_root, download)
    if students is None and not options.get("resume"):
        students = ["1"]
    job = open_job(teacher, students=students or (), **options)
    names = [r.name for r in as_recipes(students or ())] or list(job.recipes) or ["1"]
    for name in names:
        job.recipe(name)
    for name in names:
        data, _ = job.extract(name)
        job.train(name, data)
    evaluation = None  # every weight is fixed: real data may be read
    if eval_data is not None:
        evaluation = load(eval_data, job.teacher.domain, "test", data_root, download)
    return report_run(job, names, evaluation)


def report_run(job: Job, students: Sequence[str], evaluation: LabelledData | None) -> Report:
    """Measures the teacher and the trained students of a job, and writes the report.

    The first of the students is also left as `student.pt` and `student.safetensors`.
    """
    with job.run.stage("measure"):
        teacher, rows = job.measure(students, evaluation)
    for suffix in (".pt", ".safetensors"):
        with atomic(job.run / f"student{suffix}") as temporary:
            shutil.copyfile(job.run / f"student-{students[0]}{suffix}", temporary)
    options = job.run.record["options"]
    data = {
        "teacher": {"path": options["teacher"], "arch": job.teacher.arch, **teacher},
        "students": rows,
        "synthesizer": {
            "name": options["synthesizer"],
            "options": options["synthesizers"],
            "distinct": {s.name: s.distinct for s in job.synthesizers},
            "health": job.run.record.get("health", {}),
        },
        "real_data": {
            "training": "none" if job.samples is None else "samples",
            "samples": None if job.samples is None else job.samples.name,
            "count": 0 if job.samples is None else len(job.samples),
            "evaluation": "none"
            if evaluation is None
            else f"{evaluation.name} ({len(evaluation)} test images)",
        },
        "seconds": job.run.record["seconds"],
        "seed": job.seed,
        "versions": versions(),
        "device": str(job.device),
        "options": options,
    }
    return write_report(job.run, data)


def open_job(
    teacher: PathLike | Teacher,
    *,
    students: Sequence[str | Recipe] = (),
    arch: str | None = None,
    domain: Domain | None = None,
    samples: PathLike | LabelledData | None = None,
    resize: bool = False,
    synthesizer: str | None = None,
    settings: Mapping[str, Any] | None = None,
    flow: str | None = None,
    gamma: float | None = None,
    loss: str | None = None,
    fresh: bool = False,
    preset: str | Preset = "standard",
    seed: int = 0,
    device: str = "auto",
    out: PathLike | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Job:
    """Reads the teacher and the samples, and opens the run's folder.

    Arguments:
        teacher: A checkpoint, or a teacher in memory.
        students: What is to be made of the teacher; that it can be is checked before any work.
        arch: The architecture, by name or `package.module:Class`, if the file does not tell.
        domain: The input domain, if the file does not tell.
        samples: A few labelled real inputs to train on as well (paper eq. 9): a folder of images,
            an npz file, or in memory.
        resize: Whether to resize samples of another size.
        synthesizer: What makes the inputs, by name or `package.module:Class`; several joined by
            `+`, each an equal share. By default `"bdnf+spectral"`, or `"bdnf"` for vectors.
        settings: Options of the synthesizers that differ from the preset's, by name; a name like
            `"bdnf.steps"` is one synthesizer's alone, `"student.steps"` the students'
            (:class:`~freia_kd.distillation.DistillationOptions`).
        flow: The option of that name of BDNF: a name, YAML file or `package.module:function`.
        gamma: The option of that name of BDNF, the weight of the samples' likelihood (eq. 9).
        loss: The students' loss by name, if not the preset's.
        fresh: Whether the students see new inputs in every step, instead of a stored set.
        preset: `"quick"`, `"standard"`, `"best"` or `"paper"`, or sizes of one's own.
        seed: The seed of all random numbers.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        out: The run's folder; by default a new one under `runs/`.
        resume: Whether to go on with the run in that folder.
        progress: What to show meanwhile.

    Raises:
        UsageError: If the options do not fit together.
        CheckpointError: If the teacher's file is not sound.
    """
    sizes = resize_preset(get_preset(preset), settings or {}, loss, fresh)
    own = {k: v for k, v in (("flow", flow), ("gamma", gamma)) if v is not None}
    theirs = {k: v for k, v in (settings or {}).items() if not k.startswith(STUDENT)}
    place = choose_device(device)
    if resume and out is None:
        raise UsageError("To resume, pass --out with the folder of the run.")
    path = "in memory" if isinstance(teacher, Teacher) else os.fspath(teacher)
    if not isinstance(teacher, Teacher):
        teacher = load_teacher(teacher, arch, domain)
    recipes = as_recipes(students)
    for recipe in recipes:
        recipe.check(teacher.net, teacher.arch, teacher.domain.shape)
    few = None if samples is None else load(samples, teacher.domain, "train", resize=resize)
    synthesizer = synthesizer or ("bdnf+spectral" if teacher.domain.is_image else "bdnf")
    synthesizers = build_synthesizers(synthesizer, sizes.name, {**theirs, **own})
    expect_able(synthesizers, teacher, few)
    options = {
        "teacher": path,
        "teacher_sha256": fingerprint(teacher.state_dict()),
        "arch": teacher.arch,
        "domain": teacher.domain.to_dict(),
        "samples": None if few is None else few.name,
        "samples_sha256": None if few is None else fingerprint({"x": few.inputs, "y": few.labels}),
        "preset": asdict(sizes),
        "synthesizer": synthesizer,
        "synthesizers": {s.name: s.settings for s in synthesizers},
        "flow_sha256": [_file_hash(getattr(s.options, "flow", "")) for s in synthesizers],
        "seed": seed,
        "device": place.type,
    }
    folder = Path(out) if out is not None else _new_folder(Path(path).stem)
    run = Run(folder, options, resume, progress)
    job = Job(teacher.to(place), run, sizes, seed, few, synthesizers)
    job.enlist(recipes)
    return job


def load_student(path: PathLike, arch: str | None = None) -> Classifier:
    """Loads a student: logits for pixels in [0, 1]; neither its teacher nor its run is needed.

    Arguments:
        path: `student.pt`, `student-1.safetensors` or the like, or a run's folder for its
            `student.safetensors`.
        arch: `package.module:Class`, for students of a teacher given by `--arch` that way.

    Raises:
        CheckpointError: If the file is not sound.
    """
    path = Path(path)
    return load_classifier(path / "student.safetensors" if path.is_dir() else path, arch=arch)


def load(
    source: PathLike | LabelledData,
    domain: Domain,
    split: Split,
    root: PathLike | None = None,
    download: bool = False,
    resize: bool = False,
) -> LabelledData:
    """Labelled data as :func:`~freia_kd.data.datasets.load_dataset` loads it, or in memory."""
    if not isinstance(source, LabelledData):
        return load_dataset(source, domain, split, root, download, resize)
    source.check(domain)
    return source


def check_source(
    source: PathLike | LabelledData | None, root: PathLike | None, download: bool
) -> None:
    """Raises unless there seems to be such data, without reading it."""
    if source is None or isinstance(source, LabelledData) or Path(source).exists():
        return
    name = os.fspath(source)
    if ":" not in name and name not in DATASETS:
        raise UsageError(
            f"There is no evaluation data {name!r}: neither a folder or file, nor one "
            f"of {', '.join(DATASETS)}."
        )
    if (
        name in TORCHVISION
        and not download
        and not Path(root or "data", TORCHVISION[name]).exists()
    ):
        raise UsageError(
            f"There is no folder {root or 'data'} with {name}; pass --data-root FOLDER where "
            "torchvision has put it, or --download."
        )


def choose_device(name: str) -> torch.device:
    """The device that `"auto"`, `"cpu"` or `"cuda"` names.

    Raises:
        UsageError: If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device here; use --device cpu.")
    return torch.device(name)


def _new_folder(stem: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder


def _file_hash(flow: str) -> str | None:
    """The hash of a flow's YAML file, since a run cannot go on with another."""
    path = Path(flow)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of named tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of what decides the numbers."""
    packages = ("torch", "torchvision", "FrEIA", "normflows", "tensorly", "numpy")
    return {
        "freia_kd": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
