"""The paper's Table 1, every row, from teachers trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch

from ..comparing.methods import BASELINE, REFERENCE, Method, build_methods
from ..comparing.runner import run_all, worker_faults
from ..comparing.trials import Trial, TrialOptions
from ..compression import load_classifier
from ..config import Config, Device, DistillationOptions, Preset, collect_faults, get_preset
from ..data.datasets import LabelledData, load_dataset
from ..data.sources import PathLike
from ..device import choose_device
from ..domain import DOMAINS
from ..errors import unknown
from ..evaluation import accuracy
from ..report import provenance
from ..report.comparison import recovered
from ..report.schema import Proportion, Spread, TablePart, TableResult
from ..report.storage import write_table1
from ..runs import Run
from ..students import as_specs
from ..synthesizers import IMAGE_DEFAULT
from ..synthesizers.bdnf import PUBLISHED
from ..teachers import save_classifier, train_new
from ..training import Progress

Size = Literal["quick", "paper"]
STUDENTS = ("1", "2", "3")
TUCKER, TRAINED = "Tucker (T)", "T+training data"  # by which recovery is defined

# The rows after the teacher's, as the table names them, and the synthesizers that make their
# inputs. The last two are ours: they are not in the paper.
APPROACHES = {
    TUCKER: "",
    "T+Uniform": "uniform",
    "T+Normal": "normal",
    "T+KegNet": "kegnet",
    "T+BDNF": "bdnf",
    "T+Sample": "samples",
    "T+BDNF(Sample)": "bdnf(samples)",
    "T+our default": IMAGE_DEFAULT,
    TRAINED: "",
}

# BDNF and samples as published, and one generator for KegNet as the paper has it (section 5.2).
OPTIONS = {
    **{f"bdnf.{k}": v for k, v in PUBLISHED.items()},
    "kegnet.generators": 1,
    "samples.augment": "never",
}


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

# What fits two cores: a tenth of the preset `quick`'s work for LeNet5, less for ResNet14, of
# which a step costs twenty times as much.
QUICK = {
    "lenet5": Preset("quick", 8_192, 2_048, DistillationOptions(steps=300, check_every=100)),
    "resnet14": Preset(
        "quick", 4_096, 1_024, DistillationOptions(steps=100, batch_size=128, check_every=50)
    ),
}


@dataclass(frozen=True)
class TableConfig(Config):
    """The options of a table that may not change when it is resumed.

    Arguments:
        preset: How much work to do.
        options: The options of synthesizers that differ from the preset's.
    """

    title: ClassVar[str] = "table1"
    preset: Size
    options: dict[str, Any]


def table1(
    data: Sequence[str] = ("mnist", "fashion-mnist"),
    *,
    preset: Size = "quick",
    seeds: int = 3,
    data_root: PathLike | None = None,
    download: bool = False,
    device: Device = "auto",
    workers: int | None = None,
    executor: Executor | None = None,
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
        device: Where to compute.
        workers: How many trials to run at a time; by default one a core.
        executor: What runs the trials instead, see :func:`~freia_kd.comparing.run_trials`.
        out: The folder of it all.
        resume: Whether to go on with what that folder holds; data sets and seeds may be added then.
        progress: What to show meanwhile.

    Raises:
        ConfigError: If there is no such part or preset; all faults are named.
        UsageError: If there are no data, or what is resumed has other options.
        CheckpointError: If there is nothing to resume.
        TrainingError: If a teacher's loss is not finite.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), Table 1
    """
    names = list(dict.fromkeys(data))
    with collect_faults(_faults(names, preset, seeds, workers, executor)):
        pass
    sets = {n: load_dataset(n, DOMAINS[n], "train", data_root, download) for n in names}
    chosen = str(choose_device(device))
    config = TableConfig(preset, OPTIONS).to_dict()
    if resume:
        run = Run.open(out, "table1", progress)
        run.expect_config(config)
    else:
        run = Run.create(out, "table1", config, progress)
    trials: dict[tuple[str, str, int], Trial] = {}
    failed: dict[str, str] = {}
    with run.locked():
        for seed in range(seeds):
            new = {
                (name, row, seed): make_trial(run, name, row, seed, preset, sets[name], device)
                for name in names
                for row in APPROACHES
            }
            for name in names:
                _train_teacher(run, name, seed, preset, sets[name], chosen)
            trials |= new
            ended = run_all(run, [*new.values()], f"trials {seed}", workers, executor)
            failed |= {trial.title: error for trial, error in ended}
            tests = {n: load_dataset(n, DOMAINS[n], "test", data_root, download) for n in names}
            options = {**config, "data": names, "seeds": seed + 1}
            result = TableResult(
                parts={n: _part(run, n, seed + 1, trials, tests[n]) for n in names},
                preset=preset,
                seeds=seed + 1,
                failed=failed,
                seconds=run.record.seconds,
                provenance=provenance.record(options, chosen),
            )
            write_table1(run.folder, result)
    return result


def _faults(
    names: Sequence[str], preset: str, seeds: int, workers: int | None, executor: Executor | None
) -> Iterator[str]:
    for name in names:
        if name not in TABLE1:
            yield unknown(name, TABLE1, "part of the table")
    if not names:
        yield f"Expected parts of the table, of {', '.join(TABLE1)}; got none."
    if preset not in get_args(Size):
        yield unknown(preset, get_args(Size), "preset of the table")
    if seeds < 1:
        yield f"seeds: expected at least 1; got {seeds}."
    yield from worker_faults(workers, executor)


def choose_preset(name: str, row: str, preset: Size) -> Preset:
    """How much work a row does. Our default learns as we do, all else as in the paper."""
    ours = APPROACHES[row] == IMAGE_DEFAULT
    if preset == "paper":
        return get_preset("standard" if ours else "paper")
    sizes = QUICK[TABLE1[name].arch]
    return sizes if ours else sizes.changed(bn="freeze")


def _teacher_path(run: Run, name: str, seed: int) -> Path:
    return run.folder.absolute() / "teachers" / f"{name}-{seed}.pt"


def _train_teacher(
    run: Run, name: str, seed: int, preset: Size, data: LabelledData, device: str
) -> None:
    """Trains the teacher of one seed, unless that has been done."""
    path, setting = _teacher_path(run, name, seed), TABLE1[name]
    stage = f"teacher {name} {seed}"
    if run.done(stage) and path.exists():
        return
    with run.stage(stage):
        epochs = setting.epochs[preset]
        teacher = train_new(
            setting.arch,
            data,
            DOMAINS[name],
            epochs,
            seed=seed,
            device=device,
            progress=run.progress,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(path, teacher)


def make_method(name: str, row: str, preset: Size) -> Method:
    """What makes the inputs of a row of one data set."""
    if row in (TUCKER, TRAINED):
        method = BASELINE if row == TUCKER else REFERENCE
        return replace(method, name=f"{name}, {row}")
    options, chosen = dict(OPTIONS), APPROACHES[row]
    if preset == "paper":
        options |= {f"kegnet.{k}": v for k, v in TABLE1[name].kegnet.items()}
    own = {k: v for k, v in options.items() if k.partition(".")[0] == chosen.partition("(")[0]}
    (method,) = build_methods(chosen, choose_preset(name, row, preset).name, own)
    return replace(method, name=f"{name}, {row}")


def make_trial(
    run: Run,
    name: str,
    row: str,
    seed: int,
    preset: Size,
    data: LabelledData,
    device: Device = "auto",
) -> Trial:
    """The trial of one row with one seed; its teacher need not be there yet."""
    sizes, method = choose_preset(name, row, preset), make_method(name, row, preset)
    samples = data if method.kind == "reference" else None
    if method.kind == "method" and method.sees_samples:
        samples = one_of_each(data, seed)
    options = TrialOptions(_teacher_path(run, name, seed), samples, sizes, device=device)
    students = tuple(spec.changed(bn=sizes.bn) for spec in as_specs(STUDENTS))
    stem = "".join(c if c.isalnum() else "-" for c in row)
    return Trial(method, seed, students, run.folder.absolute() / name / f"{stem}-{seed}", options)


def one_of_each(data: LabelledData, seed: int) -> LabelledData:
    """One random image of each class, as the paper's sample data set (section 5.2)."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    classes = range(int(data.labels.max()) + 1)
    rows = torch.stack([order[data.labels[order] == k][0] for k in classes])
    return LabelledData(data.inputs[rows], data.labels[rows], f"{data.name}, one of each class")


def _part(
    run: Run,
    name: str,
    seeds: int,
    trials: Mapping[tuple[str, str, int], Trial],
    test: LabelledData,
) -> TablePart:
    """The rows of one data set."""
    right = {
        (row, seed): trial.measure(test)
        for (part, row, seed), trial in trials.items()
        if part == name and trial.result is not None
    }
    teachers = Spread.of(
        [accuracy(load_classifier(_teacher_path(run, name, s)), test) for s in range(seeds)]
    )
    rows: dict[str, dict[str, Spread | None]] = {"original": dict.fromkeys(STUDENTS, teachers)}
    for row in APPROACHES:
        found = [right[row, seed] for seed in range(seeds) if (row, seed) in right]
        rows[row] = {s: Spread.of([shares[s].value for shares in found]) for s in STUDENTS}
    return TablePart(
        arch=TABLE1[name].arch,
        test_images=len(test),
        rows=rows,
        published={row: list(figures) for row, figures in TABLE1[name].published.items()},
        recovery={r: recoveries(right, r, seeds) for r in APPROACHES if r not in (TUCKER, TRAINED)},
    )


def recoveries(
    right: Mapping[tuple[str, int], Mapping[str, Proportion]], row: str, seeds: int
) -> dict[str, Spread | None]:
    """The recovery of each student over seeds, of accuracies by row and seed."""

    def gained(seed: int, name: str) -> float | None:
        student, low, high = (right.get((r, seed), {}) for r in (row, TUCKER, TRAINED))
        return recovered(student, low, high, name)

    return {name: Spread.of([gained(seed, name) for seed in range(seeds)]) for name in STUDENTS}
