"""The paper's Table 1, every row, from teachers trained from scratch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .compare.cells import NONE, REFERENCE, Cell
from .compare.running import count_workers, run_cells
from .data.datasets import LabelledData, load_dataset
from .distillation import DistillationOptions, predict
from .domain import DOMAINS
from .errors import UsageError
from .files import write_json
from .presets import PRESETS, Preset
from .report.provenance import record
from .report.schema import Spread, TablePart, TableResult, recovery
from .report.storage import write_table1
from .runs.progress import Progress
from .runs.run import Run
from .stages import train_teacher
from .synthesizers.bdnf import PUBLISHED
from .teachers import Classifier, load_classifier

PathLike = str | os.PathLike[str]
STUDENTS = ("1", "2", "3")
DEFAULT = "bdnf+spectral"

# The rows after the teacher's, as the table names them, and the methods that they are. The last
# two are ours: they are not in the paper.
APPROACHES = {
    "Tucker (T)": NONE,
    "T+Uniform": "uniform",
    "T+Normal": "normal",
    "T+KegNet": "kegnet",
    "T+BDNF": "bdnf",
    "T+Sample": "samples",
    "T+BDNF(Sample)": "bdnf(samples)",
    "T+our default": DEFAULT,
    "T+training data": REFERENCE,
}

# BDNF as published, and one generator for KegNet as the paper has it (section 5.2).
SETTINGS = {**{f"bdnf.{k}": v for k, v in PUBLISHED.items()}, "kegnet.generators": 1}


@dataclass(frozen=True)
class Setting:
    """A data set of the table with its teacher.

    Arguments:
        arch: The teacher's architecture.
        epochs: How long it is trained, by preset.
        kegnet: The options of KegNet that its authors' code has for this set and no other, with
            the preset `"paper"`.
        published: The paper's accuracies in %, by approach, of students 1 to 3; a text where the
            paper only gives a bound.
    """

    arch: str
    epochs: Mapping[str, int]
    kegnet: Mapping[str, float]
    published: Mapping[str, tuple[float | str, float, float]]


TABLE1 = {
    "mnist": Setting(
        "lenet5",
        {"quick": 5, "paper": 20},
        {"beta": 0.0},
        {
            "original": (98.9, 98.9, 98.9),
            "Tucker (T)": (24.3, 28.0, 16.2),
            "T+Uniform": (64.9, 56.4, 53.4),
            "T+Normal": (62.6, 57.5, 49.8),
            "T+KegNet": (76.5, 76.2, 61.6),
            "T+BDNF": (86.1, 83.6, 74.3),
            "T+Sample": (68.73, 67.8, 41.8),
            "T+BDNF(Sample)": (89.1, 82.4, 79.5),
        },
    ),
    "svhn": Setting(
        "resnet14",
        {"quick": 3, "paper": 30},
        {"beta": 1.0, "learning_rate": 1e-2, "decoder_layers": 4},
        {
            "original": (93.2, 93.2, 93.2),
            "Tucker (T)": (13.1, 26.9, 19.8),
            "T+Uniform": (69.5, 73.8, 46.8),
            "T+Normal": (70.57, 63.8, 22.9),
            "T+KegNet": (51.0, 65.1, 30.3),
            "T+BDNF": (72.1, 78.0, 66.5),
            "T+Sample": (60.7, 46.5, 28.1),
            "T+BDNF(Sample)": (82.8, 79.8, 72.3),
        },
    ),
    "fashion-mnist": Setting(
        "resnet14",
        {"quick": 3, "paper": 30},
        {"beta": 10.0, "learning_rate": 1e-2, "decoder_layers": 4},
        {
            "original": (91.2, 91.2, 91.2),
            "Tucker (T)": (71.5, 62.5, 43.1),
            "T+Uniform": ("<71.5", 78.5, 50.4),
            "T+Normal": (79.1, 72.3, 58.1),
            "T+KegNet": ("<71.5", 73.7, 59.6),
            "T+BDNF": (81.1, 79.0, 62.9),
            "T+Sample": ("<71.5", 68.1, 55.2),
            "T+BDNF(Sample)": (82.8, 81.0, 62.9),
        },
    ),
}

SIZES = ("quick", "paper")
BOUNDS = ("Tucker (T)", "T+training data")  # by which recovery is defined

# What fits two cores: a tenth of the preset `quick`'s work for LeNet5, less for ResNet14, of
# which a step costs twenty times as much.
QUICK = {
    "lenet5": Preset("quick", 8_192, 2_048, DistillationOptions(steps=300, check_every=100)),
    "resnet14": Preset(
        "quick", 4_096, 1_024, DistillationOptions(steps=100, batch_size=128, check_every=50)
    ),
}


def table1(
    data: Sequence[str] = ("mnist", "fashion-mnist"),
    *,
    preset: str = "quick",
    seeds: int = 3,
    data_root: PathLike | None = None,
    download: bool = False,
    device: str = "auto",
    workers: int | None = None,
    out: PathLike = "runs/table1",
    resume: bool = False,
    progress: Progress | None = None,
) -> TableResult:
    """Reproduces Table 1: teachers from scratch, a new one for each seed, and every row of it.

    It goes seed by seed, and writes the table after each. The test split is read after all weights
    of a seed are fixed, and nothing is chosen by it. The ten real images of the rows with
    samples are one of each class, others for each seed.

    Arguments:
        data: Which parts of the table: `"mnist"`, `"svhn"` and `"fashion-mnist"`.
        preset: `"quick"` fits two cores; `"paper"` takes the paper's own settings, and hours for a
            LeNet5, days for a ResNet14.
        seeds: How many seeds, from 0.
        data_root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        workers: How many cells to run at a time; by default one a core.
        out: The folder of it all.
        resume: Whether to go on with what that folder holds; data sets and seeds may be added then.
        progress: What to show meanwhile.

    Returns:
        What `table1.json` holds.

    Raises:
        UsageError: If there is no such part or preset, or no data.
        TrainingError: If a teacher's loss is not finite.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), Table 1
    """
    progress = progress or Progress()
    unknown = [name for name in data if name not in TABLE1]
    if unknown or not data or preset not in SIZES or seeds < 1:
        raise UsageError(
            f"Expected parts of the table ({', '.join(TABLE1)}), a preset of {', '.join(SIZES)}, "
            f"and a seed or more; got {', '.join(data)}, {preset!r} and {seeds}."
        )
    names = list(dict.fromkeys(data))
    sets = {n: load_dataset(n, DOMAINS[n], "train", data_root, download) for n in names}
    fixed = {"preset": preset, "settings": SETTINGS}
    run = Run(out, fixed, resume, progress)
    place = {"data_root": data_root, "download": download, "device": device}
    cells: dict[tuple[str, str, int], Cell] = {}
    failed: dict[str, str] = {}
    result: TableResult
    for seed in range(seeds):
        for name in names:
            teacher = _train(run, name, seed, preset, place)
            for approach in APPROACHES:
                sizes = _sizes(name, approach, preset)
                common = {"teacher": teacher, "preset": sizes, "device": device}
                cells[name, approach, seed] = _cell(run, name, approach, seed, common, sets[name])
        new = [cell for (_, _, s), cell in cells.items() if s == seed]
        failed |= _run(run, new, workers or count_workers(device), f"Table 1, seed {seed}")
        result = TableResult(
            parts={name: _part(name, seed + 1, cells, data_root, download) for name in names},
            preset=preset,
            seeds=seed + 1,
            failed=failed,
            seconds=run.record["seconds"],
            provenance=record({"data": names, **fixed, "seeds": seed + 1}, device),
        )
        write_table1(run.folder, result)
    return result


def _sizes(name: str, approach: str, preset: str) -> Preset:
    """How much work a cell does. Our default learns as we do, all else as in the paper."""
    ours = APPROACHES[approach] == DEFAULT
    if preset == "paper":
        return PRESETS["standard" if ours else "paper"]
    sizes = QUICK[TABLE1[name].arch]
    return sizes if ours else replace(sizes, student=replace(sizes.student, bn="freeze"))


def _train(run: Run, name: str, seed: int, preset: str, place: Mapping[str, Any]) -> Path:
    """Trains the teacher of one seed, unless that has been done."""
    path, setting = run / f"teachers/{name}-{seed}.pt", TABLE1[name]
    stage = f"teacher {name} {seed}"
    if not (run.done(stage) and path.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        with run.stage(stage):
            epochs = setting.epochs[preset]
            train_teacher(
                name,
                path,
                arch=setting.arch,
                epochs=epochs,
                seed=seed,
                progress=run.progress,
                **place,
            )
    return path


def _cell(
    run: Run, name: str, approach: str, seed: int, common: Mapping[str, Any], data: LabelledData
) -> Cell:
    method, settings = APPROACHES[approach], dict(SETTINGS)
    if common["preset"].name == "paper":
        settings |= {f"kegnet.{k}": v for k, v in TABLE1[name].kegnet.items()}
    options = {**common, "settings": {} if method == DEFAULT else settings}
    if method == REFERENCE:
        options["samples"] = data
    elif "ample" in approach:
        options["samples"] = one_of_each(data, seed)
    stem = "".join(c if c.isalnum() else "-" for c in approach)
    return Cell(method, seed, STUDENTS, run / f"{name}/{stem}-{seed}", options)


def one_of_each(data: LabelledData, seed: int) -> LabelledData:
    """One random image of each class, as the paper's sample data set (section 5.2)."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    classes = range(int(data.labels.max()) + 1)
    rows = torch.stack([order[data.labels[order] == k][0] for k in classes])
    return LabelledData(data.inputs[rows], data.labels[rows], f"{data.name}, one of each class")


def _run(run: Run, cells: Sequence[Cell], workers: int, title: str) -> dict[str, str]:
    """Runs what has not been run; the errors of what failed."""
    failed: dict[str, str] = {}
    waiting = [cell for cell in cells if cell.result is None]
    with run.stage("cells"), run.progress.stage(title, len(cells)) as stage:
        done = len(cells) - len(waiting)
        for cell, error in run_cells(waiting, min(workers, len(waiting) or 1), run.progress):
            done += 1
            stage.update(done, {})
            name = f"{cell.folder.parent.name} {cell.folder.name}"
            if error is not None:
                failed[name] = error
            run.progress.note(f"{name}: {error or 'done'}")
    return failed


def _part(
    name: str,
    seeds: int,
    cells: Mapping[tuple[str, str, int], Cell],
    data_root: PathLike | None,
    download: bool,
) -> TablePart:
    """The rows of one data set."""
    test = load_dataset(name, DOMAINS[name], "test", data_root, download)
    right = {
        (approach, seed): _accuracies(cells[name, approach, seed], test)
        for approach in APPROACHES
        for seed in range(seeds)
        if cells[name, approach, seed].result is not None
    }
    paths = [cells[name, "Tucker (T)", seed].options["teacher"] for seed in range(seeds)]
    teachers = [_accuracy(load_classifier(path), test) for path in paths]
    rows = {"original": dict.fromkeys(STUDENTS, Spread.of(teachers))}
    for approach in APPROACHES:
        found = [right[approach, seed] for seed in range(seeds) if (approach, seed) in right]
        rows[approach] = {s: Spread.of([f[s] for f in found]) for s in STUDENTS}
    return TablePart(
        arch=TABLE1[name].arch,
        test_images=len(test),
        rows=rows,
        published={row: list(figures) for row, figures in TABLE1[name].published.items()},
        recovery={a: _recovery(right, a, seeds) for a in APPROACHES if a not in BOUNDS},
    )


def _accuracies(cell: Cell, test: LabelledData) -> dict[str, float]:
    """The accuracy of each student of a cell, measured once."""
    path = cell.folder / "accuracy.json"
    if not path.exists():
        write_json(path, {name: _accuracy(cell.student(name), test) for name in STUDENTS})
    return json.loads(path.read_text(encoding="utf-8"))


def _accuracy(classifier: Classifier, test: LabelledData) -> float:
    return predict(classifier, test).eq(test.labels).double().mean().item()


def _recovery(
    right: Mapping[tuple[str, int], Mapping[str, float]], approach: str, seeds: int
) -> dict[str, Spread | None]:
    """(student - Tucker) / (on training data - Tucker), where there is something to recover."""
    shares: dict[str, list[float | None]] = {name: [] for name in STUDENTS}
    for seed in range(seeds):
        needed = [(a, seed) for a in ("Tucker (T)", approach, "T+training data")]
        for name in STUDENTS if all(key in right for key in needed) else ():
            shares[name].append(recovery(*(right[key][name] for key in needed)))
    return {name: Spread.of(values) for name, values in shares.items()}
