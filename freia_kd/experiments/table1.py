"""The paper's Table 1, every row of it on the paper's own students, and ours beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from ..comparing.planning import plan_trials
from ..comparing.repair import find_damaged, repair_all
from ..comparing.runner import count_workers, run_all
from ..comparing.trials import Trial
from ..compression import load_classifier
from ..config import Device
from ..data.datasets import LabelledData
from ..data.sources import PathLike
from ..domain import DOMAINS
from ..errors import CheckpointError, UsageError
from ..evaluation import accuracy
from ..job import Plan
from ..job.planning import PlannedStage
from ..job.repair import Damage
from ..report import provenance
from ..report.comparison import recovered
from ..report.schema import Proportion, Spread, TablePart, TableResult
from ..report.storage import write_table1
from ..teachers import Teacher, save_classifier, train_new
from ..training import Progress
from .opening import AnyTrial, Key, Opened, Table, open_table, teacher_stage
from .planning import plan_teachers, stand_in
from .published import STUDENTS, TABLE1, TRAINED, TUCKER, Family
from .recipes import Size, get_recipe
from .trial import PublishedTrial


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
    repair: bool = False,
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
            then, and a teacher or a trial that was stopped goes on where it was.
        repair: Whether teachers and parts of trials that are damaged may be deleted and made again.
        progress: What to show meanwhile.

    Raises:
        ConfigError: If there is no such part, row or preset; all faults are named.
        UsageError: If there are no data, the teacher is of another kind, what is resumed has other
            options, or memory or disk cannot hold it.
        CheckpointError: If there is nothing to resume, or parts are damaged and are not to be
            repaired.
        TrainingError: If a teacher's loss is not finite.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), Table 1
        | https://github.com/5yearsKim/Knowlede-Extraction-Flow, teacher_student_experiment
    """
    opened = open_table(
        data,
        teacher=teacher,
        students=students,
        preset=preset,
        rows=rows,
        seeds=seeds,
        data_root=data_root,
        download=download,
        device=device,
        workers=workers,
        executor=executor,
        out=out,
        resume=resume,
        progress=progress,
    )
    table, run = opened.table, opened.table.run
    broken = {key: damage for key in opened.teachers for damage in _look_at(table, *key)}
    sound = [t for (name, _, seed), t in opened.trials.items() if (name, seed) not in broken]
    damaged = find_damaged(run, sound, repair, [*broken.values()])
    failed: dict[str, str] = {}
    with run.locked():
        for damage in broken.values():
            run.progress.note(f"{damage.path} is damaged; the stage {damage.stage} makes it again.")
            damage.path.unlink()
        repair_all(run, damaged)
        if executor is None and any(trial.result is None for trial in opened.trials.values()):
            run.progress.note(_plan(opened, workers).describe())
        for seed in range(seeds):
            for name, images in opened.sets.items():
                _train_teacher(table, name, seed, images, opened.device)
            ended = run_all(run, opened.of_seed(seed), f"trials {seed}", workers, executor)
            failed |= {trial.title: error for trial, error in ended}
            result = _summarise(opened, seed + 1, failed)
            write_table1(run.folder, result)
    return result


def plan_table1(data: Sequence[str] = (), *, workers: int | None = None, **options: Any) -> Plan:
    """What :func:`table1` would take on this machine; nothing is written.

    A few real steps of a teacher and of one trial of each row are taken.

    Arguments:
        data: As there, and so are the others.
        workers: As there.
        options: What else it takes, but `executor` and `repair`.

    Raises:
        UsageError: If memory or disk cannot hold it, and as there.
    """
    return _plan(open_table(data, workers=workers, **options), workers)


def _plan(opened: Opened, workers: int | None) -> Plan:
    """What the teachers and the trials will take that are not there."""
    table = opened.table
    keys = [
        key
        for key, trial in opened.trials.items()
        if trial.result is None and not (isinstance(trial, Trial) and trial.is_brief)
    ]
    missing = {(name, seed) for name, _, seed in keys if not table.has_teacher(name, seed)}
    before, stand_ins = list[PlannedStage](), dict[str, Teacher]()
    for name in opened.sets:
        count = sum(own == name for own, _ in missing)
        if count:
            arch, domain = TABLE1[name].arch, DOMAINS[name]
            stand_ins[name] = stand_in(arch, domain)
            before.append(
                plan_teachers(
                    f"teachers of {name}",
                    count,
                    arch,
                    opened.sets[name],
                    domain,
                    table.epochs(name),
                    opened.device,
                )
            )
    trials = [
        _with_teacher(opened.trials[key], stand_ins[key[0]])
        if (key[0], key[2]) in missing
        else opened.trials[key]
        for key in keys
    ]
    most = max((sum(key[2] == seed for key in keys) for _, _, seed in keys), default=1)
    at_once = min(workers or count_workers(opened.device), most)
    fewer = "fewer --data, --row or --seeds"
    return plan_trials(table.run.folder, trials, at_once, table.run.progress, fewer, before)


def _with_teacher(trial: AnyTrial, teacher: Teacher) -> AnyTrial:
    """A trial that has not begun, with another teacher."""
    folder = trial.folder / "planned"  # where nothing is, and nothing will be
    if isinstance(trial, PublishedTrial):
        return replace(trial, teacher=teacher, folder=folder)
    return replace(trial, options=replace(trial.options, teacher=teacher), folder=folder)


def _look_at(table: Table, name: str, seed: int) -> Iterator[Damage]:
    """Says so if a teacher of this table cannot be read."""
    path = table.teacher_path(name, seed)
    if table.teacher is not None or not path.exists():
        return
    try:
        load_classifier(path, domain=DOMAINS[name])
    except (CheckpointError, UsageError) as error:
        yield Damage(path, teacher_stage(name, seed), str(error))


def _summarise(opened: Opened, seeds: int, failed: Mapping[str, str]) -> TableResult:
    """The table as far as some seeds have led."""
    config, given = opened.config, opened.table.teacher
    recipes = {name: get_recipe(config.preset, name).to_dict() for name in opened.sets}
    options = {**config.to_dict(), "data": [*opened.sets], "seeds": seeds, "recipes": recipes}
    return TableResult(
        parts={
            n: _part(opened.table, n, seeds, opened.trials, opened.tests[n]) for n in opened.sets
        },
        preset=config.preset,
        students=config.students,
        teacher=None if given is None else given.name,
        seeds=seeds,
        failed=dict(failed),
        seconds=opened.table.run.record.seconds,
        provenance=provenance.record(options, opened.device),
    )


def _train_teacher(table: Table, name: str, seed: int, data: LabelledData, device: str) -> None:
    """Trains the teacher of one seed, unless there is one; one that was stopped goes on."""
    if table.has_teacher(name, seed):
        return
    path, run = table.teacher_path(name, seed), table.run
    checkpoints = run.checkpoints(f"teacher-{name}-{seed}")
    with run.stage(teacher_stage(name, seed)):
        teacher = train_new(
            TABLE1[name].arch,
            data,
            DOMAINS[name],
            table.epochs(name),
            seed=seed,
            device=device,
            checkpoints=checkpoints,
        )
        save_classifier(path, teacher)
    checkpoints.path.unlink(missing_ok=True)


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
