"""How the paper's Table 1 begins, and how it goes on: everything is checked before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

import torch

from ..comparing.methods import BASELINE, REFERENCE, build_methods
from ..comparing.runner import worker_faults
from ..comparing.trials import Trial, TrialOptions
from ..compression import load_teacher
from ..config import (
    MOST_SEEDS,
    Config,
    Device,
    DistillationOptions,
    Preset,
    collect_faults,
    get_preset,
)
from ..data.datasets import LabelledData, load_dataset
from ..data.sources import PathLike
from ..device import choose_device
from ..domain import DOMAINS
from ..errors import CheckpointError, UsageError, unknown
from ..evaluation import accuracy
from ..job.job import fingerprint
from ..runs import Run
from ..students import as_specs
from ..synthesizers import default_synthesizer
from ..synthesizers.kegnet import KegNetOptions
from ..teachers import read_checkpoint
from ..training import Progress
from .published import PAPER_ROWS, STUDENTS, TABLE1, TRAINED, TUCKER, Family
from .recipes import Size, get_recipe
from .trial import PublishedTrial

# Our rows: the inputs that `freiakd distill` takes if nothing is said, without samples and with.
OUR_ROWS = {"our default": False, "our default, 10 images": True}

ROWS = (TUCKER, *PAPER_ROWS, *OUR_ROWS, TRAINED)

# What fits two cores, for our rows: less for ResNet14, of which a step costs twenty times as much.
QUICK = {
    "lenet5": Preset("quick", 8_192, 2_048, DistillationOptions(steps=300, check_every=100)),
    "resnet14": Preset(
        "quick", 4_096, 1_024, DistillationOptions(steps=100, batch_size=128, check_every=50)
    ),
}

SHOWN = 1_000  # training images by which a teacher is known that does not say what data it is of,
LEAST = 0.5  # and the share of them that it has to know

AnyTrial = Trial | PublishedTrial

Key = tuple[str, str, int]  # a data set, a row and a seed


@dataclass(frozen=True)
class TableConfig(Config):
    """The options of a table that may not change when it is resumed.

    Arguments:
        preset: How much work to do.
        students: Whose students.
        teacher_sha256: The hash of the teacher's weights, if one is given.
    """

    title: ClassVar[str] = "table1"
    preset: Size
    students: Family
    teacher_sha256: str | None


@dataclass(frozen=True)
class Table:
    """What the trials of a table have in common.

    Arguments:
        run: The folder.
        preset: How much work to do.
        students: Whose students.
        teacher: A teacher's file, or `None` for one from scratch for every seed.
        device: Where to compute.
    """

    run: Run
    preset: Size
    students: Family
    teacher: Path | None
    device: Device

    def teacher_path(self, name: str, seed: int) -> Path:
        """The file of the teacher of a data set and a seed."""
        return self.teacher or self.run.folder.absolute() / "teachers" / f"{name}-{seed}.pt"

    def has_teacher(self, name: str, seed: int) -> bool:
        """Whether there is one."""
        done = self.run.done(teacher_stage(name, seed))
        return self.teacher is not None or (done and self.teacher_path(name, seed).exists())

    def epochs(self, name: str) -> int:
        """How long the teachers of a data set are trained."""
        return TABLE1[name].epochs["quick" if self.preset == "quick" else "paper"]

    def folder(self, name: str, row: str, seed: int) -> Path:
        """The folder of a trial."""
        stem = "".join(c if c.isalnum() else "-" for c in row)
        return self.run.folder.absolute() / name / f"{stem}-{seed}"


@dataclass(frozen=True)
class Opened:
    """A table with all that it needs in memory.

    Arguments:
        table: What its trials have in common.
        config: Its options.
        sets: The training images of its parts.
        tests: Their test images.
        trials: All trials, seed by seed.
        device: Where to compute, as torch names it.
    """

    table: Table
    config: TableConfig
    sets: dict[str, LabelledData]
    tests: dict[str, LabelledData]
    trials: dict[Key, AnyTrial]
    device: str

    @property
    def teachers(self) -> list[tuple[str, int]]:
        """The data set and the seed of each teacher."""
        return list(dict.fromkeys((name, seed) for name, _, seed in self.trials))

    def of_seed(self, seed: int) -> list[AnyTrial]:
        """The trials of one seed, which run side by side."""
        return [trial for (_, _, own), trial in self.trials.items() if own == seed]


def open_table(
    data: Sequence[str] = (),
    *,
    teacher: PathLike | None = None,
    students: Family = "paper",
    preset: Size = "quick",
    rows: Sequence[str] = (),
    seeds: int = 3,
    data_root: PathLike | None = None,
    download: bool = False,
    device: Device = "auto",
    workers: int | None = None,
    executor: Executor | None = None,
    out: PathLike = "runs/table1",
    resume: bool = False,
    progress: Progress | None = None,
) -> Opened:
    """A table, new or resumed; arguments and errors as of :func:`table1`."""
    names = list(dict.fromkeys(data))
    wanted = [row for row in ROWS if not rows or row in rows]
    given = Path(teacher).absolute() if teacher is not None else None
    faults = _faults(names, rows, students, preset, seeds, given, workers, executor)
    with collect_faults(faults):
        pass
    chosen = str(choose_device(device))
    sets = _load(names, data_root, download, progress or Progress())
    tests = {n: load_dataset(n, DOMAINS[n], "test", data_root, download) for n in sets}
    digest = None if given is None else check_teacher(given, names[0], sets[names[0]])
    config = TableConfig(preset, students, digest)
    if resume:
        run = Run.open(out, "table1", progress)
        run.expect_config(config.to_dict())
    else:
        run = Run.create(out, "table1", config.to_dict(), progress)
    table = Table(run, preset, students, given, device)
    trials = {
        (name, row, seed): make_trial(table, name, row, seed, sets[name], tests[name])
        for seed in range(seeds)
        for name in sets
        for row in wanted
    }
    return Opened(table, config, sets, tests, trials, chosen)


def _faults(
    names: Sequence[str],
    rows: Sequence[str],
    students: str,
    preset: str,
    seeds: int,
    teacher: Path | None,
    workers: int | None,
    executor: Executor | None,
) -> Iterator[str]:
    for name in names:
        if name not in TABLE1:
            yield unknown(name, TABLE1, "part of the table")
    for row in rows:
        if row not in ROWS:
            yield unknown(row, ROWS, "row of the table")
    if students not in STUDENTS:
        yield unknown(students, STUDENTS, "family of students")
    if preset not in get_args(Size):
        yield unknown(preset, get_args(Size), "preset of the table")
    if not 1 <= seeds <= MOST_SEEDS:
        yield f"seeds: expected 1 to {MOST_SEEDS:,}; got {seeds:,}."
    if teacher is not None and len(names) != 1:
        yield (
            "teacher: expected one part of the table that it is a teacher of, "
            f"{' or '.join(TABLE1)}; got {', '.join(names) or 'none'}. Pass --data."
        )
    yield from worker_faults(workers, executor)


def _load(
    names: Sequence[str], root: PathLike | None, download: bool, progress: Progress
) -> dict[str, LabelledData]:
    """The training images of the parts asked for; else of all that there are."""
    if names:
        return {n: load_dataset(n, DOMAINS[n], "train", root, download) for n in names}
    found: dict[str, LabelledData] = {}
    missing: dict[str, UsageError] = {}
    for name in TABLE1:
        try:
            found[name] = load_dataset(name, DOMAINS[name], "train", root, download)
        except UsageError as error:
            missing[name] = error
    if not found:
        raise next(iter(missing.values()))
    for name, why in missing.items():
        progress.note(f"{name} is left out of the table: {why}")
    return found


def check_teacher(path: Path, name: str, data: LabelledData) -> str:
    """The hash of a teacher's weights.

    Arguments:
        path: The teacher's file.
        name: The part of the table.
        data: Its training images. Some are shown to a teacher whose file does not say what data it
            is of, as released ones do not.

    Raises:
        CheckpointError: If the file is not sound.
        UsageError: If it holds no net of the architecture that the part has, or one of other data.
    """
    arch, domain = TABLE1[name].arch, DOMAINS[name]
    expected = f"Expected a {arch} of {name} for this part of the table"
    recorded = read_checkpoint(path).own.get("domain")
    if recorded not in (None, domain.to_dict()):
        raise UsageError(
            f"{expected}; {path} holds a net of {recorded.get('name', 'other data')}, inputs "
            f"{recorded.get('shape')} of mean {recorded.get('mean')} and std {recorded.get('std')}."
        )
    try:
        teacher = load_teacher(path, domain=domain)
    except CheckpointError:
        raise
    except UsageError as error:
        raise UsageError(f"{expected}; {path} does not hold one: {error}") from error
    if teacher.arch != arch:
        raise UsageError(f"{expected}; {path} holds a {teacher.arch}.")
    if recorded is None:
        few = LabelledData(data.inputs[:SHOWN], data.labels[:SHOWN], data.name)
        right = accuracy(teacher, few)
        if right < LEAST:
            raise UsageError(
                f"{expected}; {path} does not say what data it is of, and gives the right class to "
                f"{100 * right:.0f} % of {len(few):,} training images: a net of other data, or one "
                "that was not trained."
            )
    return fingerprint(teacher.state_dict())


def make_trial(
    table: Table, name: str, row: str, seed: int, data: LabelledData, test: LabelledData
) -> AnyTrial:
    """The trial of one row with one seed; its teacher need not be there yet."""
    if row in PAPER_ROWS:
        kind, sees_samples = PAPER_ROWS[row]
        return PublishedTrial(
            name=row,
            row=kind,
            data=name,
            seed=seed,
            students=STUDENTS[table.students],
            recipe=get_recipe(table.preset, name),
            kegnet=KegNetOptions().changed(**TABLE1[name].kegnet),
            teacher=table.teacher_path(name, seed),
            test=test,
            folder=table.folder(name, row, seed),
            samples=one_of_each(data, seed) if sees_samples else None,
            device=table.device,
        )
    return _our_trial(table, name, row, seed, data)


def _our_trial(table: Table, name: str, row: str, seed: int, data: LabelledData) -> Trial:
    """A row of the product: its own inputs, and its own way to train students."""
    sizes = QUICK[TABLE1[name].arch] if table.preset == "quick" else get_preset("standard")
    samples: LabelledData | None = None
    if row == TUCKER:
        method = BASELINE
    elif row == TRAINED:
        method, samples = REFERENCE, data
    else:
        has_statistics = TABLE1[name].arch == "resnet14"
        inputs = default_synthesizer(True, has_statistics, OUR_ROWS[row])
        (method,) = build_methods(inputs, sizes.name)
        samples = one_of_each(data, seed) if method.sees_samples else None
    bn = "freeze" if row == TUCKER else sizes.bn  # which the paper leaves as it is
    students = tuple(spec.changed(bn=bn) for spec in as_specs(STUDENTS[table.students]))
    options = TrialOptions(
        table.teacher_path(name, seed), samples, sizes, domain=DOMAINS[name], device=table.device
    )
    method = replace(method, name=f"{name}, {row}")
    return Trial(method, seed, students, table.folder(name, row, seed), options)


def one_of_each(data: LabelledData, seed: int) -> LabelledData:
    """One random image of each class, as the paper's sample data set (section 5.2)."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    classes = range(int(data.labels.max()) + 1)
    rows = torch.stack([order[data.labels[order] == k][0] for k in classes])
    return LabelledData(data.inputs[rows], data.labels[rows], f"{data.name}, one of each class")


def teacher_stage(name: str, seed: int) -> str:
    """The stage that trains the teacher of a data set and a seed."""
    return f"teacher {name} {seed}"
