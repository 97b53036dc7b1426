"""The paper's Table 1, every row of it on the paper's own students, and ours beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

import torch

from ..comparing.methods import BASELINE, REFERENCE, build_methods
from ..comparing.runner import run_all, worker_faults
from ..comparing.trials import Trial, TrialOptions
from ..compression import load_classifier, load_teacher
from ..config import Config, Device, DistillationOptions, Preset, collect_faults, get_preset
from ..data.datasets import LabelledData, load_dataset
from ..data.sources import PathLike
from ..device import choose_device
from ..domain import DOMAINS
from ..errors import CheckpointError, UsageError, unknown
from ..evaluation import accuracy
from ..job.opening import fingerprint
from ..report import provenance
from ..report.comparison import recovered
from ..report.schema import Proportion, Spread, TablePart, TableResult
from ..report.storage import write_table1
from ..runs import Run
from ..students import as_specs
from ..synthesizers import default_synthesizer
from ..synthesizers.kegnet import KegNetOptions
from ..teachers import read_checkpoint, save_classifier, train_new
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

    def folder(self, name: str, row: str, seed: int) -> Path:
        """The folder of a trial."""
        stem = "".join(c if c.isalnum() else "-" for c in row)
        return self.run.folder.absolute() / name / f"{stem}-{seed}"


def table1(
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
) -> TableResult:
    """Reproduces Table 1: every row of the paper as the paper has it, and ours beside it.

    It goes seed by seed, and writes the table after each. The paper's rows have two accuracies: the
    one of the last weights, and the best of all looks at the test images, which is what the authors
    print. The second is shown and nothing more. Our rows see no test image before their weights are
    fixed. The ten images are one of each class, others for each seed.

    Arguments:
        data: Which parts of the table: `"mnist"`, `"fashion-mnist"` and `"svhn"`; by default all
            whose data are there.
        teacher: A trained LeNet5 (MNIST) or ResNet14 (the others); by default one is trained from
            scratch for every seed. It needs a single part.
        students: `"paper"` for those of BDNF's code, `"kegnet"` for KegNet's.
        preset: `"code"` for the recipe of the published code, `"paper"` for the paper's text,
            hours for a LeNet5 and days for a ResNet14; `"quick"` for a share of the code's.
        rows: Some of the rows; by default all.
        seeds: How many seeds, from 0.
        data_root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        device: Where to compute.
        workers: How many trials to run at a time; by default one a core.
        executor: What runs the trials instead, see :func:`~freia_kd.comparing.run_trials`.
        out: The folder of it all.
        resume: Whether to go on with what that folder holds; data sets, rows and seeds may be added
            then, and a trial that was stopped goes on where it was.
        progress: What to show meanwhile.

    Raises:
        ConfigError: If there is no such part, row or preset; all faults are named.
        UsageError: If there are no data, the teacher is of another kind, or what is resumed has
            other options.
        CheckpointError: If there is nothing to resume.
        TrainingError: If a teacher's loss is not finite.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), Table 1
        | https://github.com/5yearsKim/Knowlede-Extraction-Flow, teacher_student_experiment
    """
    names = list(dict.fromkeys(data))
    wanted = [row for row in ROWS if not rows or row in rows]
    given = Path(teacher).absolute() if teacher is not None else None
    faults = _faults(names, rows, students, preset, seeds, given, workers, executor)
    with collect_faults(faults):
        pass
    sets = _load(names, data_root, download, progress or Progress())
    digest = None if given is None else check_teacher(given, names[0])
    config = TableConfig(preset, students, digest).to_dict()
    if resume:
        run = Run.open(out, "table1", progress)
        run.expect_config(config)
    else:
        run = Run.create(out, "table1", config, progress)
    table = Table(run, preset, students, given, device)
    tests = {n: load_dataset(n, DOMAINS[n], "test", data_root, download) for n in sets}
    chosen = str(choose_device(device))
    trials: dict[Key, AnyTrial] = {}
    failed: dict[str, str] = {}
    with run.locked():
        for seed in range(seeds):
            for name in sets:
                _train_teacher(table, name, seed, sets[name], chosen)
            new = {
                (name, row, seed): make_trial(table, name, row, seed, sets[name], tests[name])
                for name in sets
                for row in wanted
            }
            trials |= new
            ended = run_all(run, [*new.values()], f"trials {seed}", workers, executor)
            failed |= {trial.title: error for trial, error in ended}
            recipes = {name: get_recipe(preset, name).to_dict() for name in sets}
            options = {**config, "data": [*sets], "seeds": seed + 1, "recipes": recipes}
            result = TableResult(
                parts={n: _part(table, n, seed + 1, trials, tests[n]) for n in sets},
                preset=preset,
                students=students,
                teacher=None if given is None else given.name,
                seeds=seed + 1,
                failed=failed,
                seconds=run.record.seconds,
                provenance=provenance.record(options, chosen),
            )
            write_table1(run.folder, result)
    return result


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
    if seeds < 1:
        yield f"seeds: expected at least 1; got {seeds}."
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


def check_teacher(path: Path, name: str) -> str:
    """The hash of a teacher's weights.

    Raises:
        CheckpointError: If the file is not sound.
        UsageError: If it holds no net of the architecture that the part has, or says that it is
            one of other data.
    """
    arch, domain = TABLE1[name].arch, DOMAINS[name]
    expected = f"Expected a {arch} of {name} for this part of the table"
    recorded = read_checkpoint(path).own.get("domain", domain.to_dict())
    if recorded != domain.to_dict():
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
    return fingerprint(teacher.state_dict())


def _train_teacher(table: Table, name: str, seed: int, data: LabelledData, device: str) -> None:
    """Trains the teacher of one seed, unless there is one."""
    path, setting, run = table.teacher_path(name, seed), TABLE1[name], table.run
    stage = f"teacher {name} {seed}"
    if table.teacher is not None or (run.done(stage) and path.exists()):
        return
    with run.stage(stage):
        teacher = train_new(
            setting.arch,
            data,
            DOMAINS[name],
            setting.epochs["quick" if table.preset == "quick" else "paper"],
            seed=seed,
            device=device,
            progress=run.progress,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(path, teacher)


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


def _part(
    table: Table,
    name: str,
    seeds: int,
    trials: Mapping[Key, AnyTrial],
    test: LabelledData,
) -> TablePart:
    """The rows of one data set."""
    students = STUDENTS[table.students]
    found = {(row, seed): trial for (part, row, seed), trial in trials.items() if part == name}
    right = {key: _measure(trial, test) for key, trial in found.items() if trial.result is not None}
    best = {
        key: trial.result.best
        for key, trial in found.items()
        if isinstance(trial, PublishedTrial) and trial.result is not None
    }
    paths = dict.fromkeys(table.teacher_path(name, seed) for seed in range(seeds))
    teachers = Spread.of(
        [accuracy(load_classifier(path, domain=DOMAINS[name]), test) for path in paths]
    )
    rows: dict[str, dict[str, Spread | None]] = {"original": dict.fromkeys(students, teachers)}
    leaks: dict[str, dict[str, Spread | None]] = {}
    for row in dict.fromkeys(row for row, _ in found):
        of = [right[row, seed] for seed in range(seeds) if (row, seed) in right]
        rows[row] = {s: Spread.of([shares[s].value for shares in of]) for s in students}
        looks = [best[row, seed] for seed in range(seeds) if (row, seed) in best]
        if looks:
            leaks[row] = {s: Spread.of([values[s] for values in looks]) for s in students}
    learned = [row for row in rows if row not in ("original", TUCKER, TRAINED)]
    return TablePart(
        arch=TABLE1[name].arch,
        test_images=len(test),
        rows=rows,
        best_on_test=leaks,
        published={row: list(figures) for row, figures in TABLE1[name].published.items()},
        recovery={row: recoveries(right, row, seeds, students) for row in learned},
    )


def _measure(trial: AnyTrial, test: LabelledData) -> dict[str, Proportion]:
    """The accuracy of a trial's students with their last weights."""
    if isinstance(trial, Trial):
        return trial.measure(test)
    result = trial.result
    last = {} if result is None else result.last
    return {name: Proportion.of(share, len(test)) for name, share in last.items()}


def recoveries(
    right: Mapping[tuple[str, int], Mapping[str, Proportion]],
    row: str,
    seeds: int,
    students: Sequence[str],
) -> dict[str, Spread | None]:
    """The recovery of each student over seeds, of accuracies by row and seed."""

    def gained(seed: int, name: str) -> float | None:
        student, low, high = (right.get((r, seed), {}) for r in (row, TUCKER, TRAINED))
        return recovered(student, low, high, name)

    return {name: Spread.of([gained(seed, name) for seed in range(seeds)]) for name in students}
