"""The comparison: every method and seed a cell, run side by side, judged by the others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.datasets import LabelledData
from ..distillation import predict
from ..domain import Domain
from ..errors import TrainingError, UsageError
from ..pipeline import check_source, fingerprint, load, versions
from ..presets import Preset
from ..runs.progress import Progress
from ..runs.run import Run
from ..synthesizers import SYNTHESIZERS, get_synthesizer
from ..teachers import Classifier, Teacher, load_teacher
from .cells import NONE, REFERENCE, SAMPLES, Cell, expect_sound, families
from .evidence import Verdict, rank_methods
from .report import Accuracies, summarise, write_comparison
from .running import count_workers, run_cells

PathLike = str | os.PathLike[str]
DEFAULT = "bdnf+spectral"


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Arguments:
        folder: The comparison's folder.
        data: The contents of `compare.json`.
    """

    folder: Path
    data: dict[str, Any]


def compare(
    teacher: PathLike | Teacher,
    *,
    synthesizers: str | Sequence[str] = "all",
    students: Sequence[str] = ("1",),
    seeds: int = 3,
    samples: PathLike | LabelledData | None = None,
    eval_data: PathLike | LabelledData | None = None,
    reference: bool = False,
    data_root: PathLike | None = None,
    download: bool = False,
    workers: int | None = None,
    out: PathLike = "runs/compare",
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """Distils students by every method, and says which is best without looking at real data.

    Every method and seed is a cell with a run's folder of its own, in which it is resumed. Then the
    students of each are judged by how far they agree with the teacher on the held-out inputs of
    the methods of other families (:func:`~freia_kd.compare.rank_methods`), which is the only
    evidence that names the winner. A method that fails is reported and stops no other.

    Arguments:
        teacher: A checkpoint, or a teacher in memory.
        synthesizers: `"all"` that can work with the teacher, or names; several joined by `+` share
            the inputs, and `(samples)` after a name gives it the real samples.
        students: The papers' students, `"1"` to `"3"`.
        seeds: How many seeds, from 0.
        samples: A few labelled real inputs for the methods that take them.
        eval_data: Labelled real data, read after the last weight is fixed.
        reference: Whether to distil on the training split of `eval_data` too, for the recovery,
            (student - compressed) / (reference - compressed); it is no candidate.
        data_root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        workers: How many cells to run at a time; by default one a core.
        out: The comparison's folder.
        resume: Whether to go on with the comparison in that folder; methods and seeds may be
            added then.
        progress: What to show meanwhile.
        options: What else :func:`freia_kd.open_job` takes, the same for all.

    Raises:
        UsageError: If the options do not fit together, or a method named cannot work with the
            teacher.
        TrainingError: If every cell failed.
    """
    progress = progress or Progress()
    check_source(eval_data, data_root, download)
    if reference and eval_data is None:
        raise UsageError("A reference on real training data needs evaluation data as well.")
    if seeds < 1 or not students:
        raise UsageError(f"Expected one seed and one student at least; got {seeds}, {students}.")
    place = (data_root, download)
    trusted = (options.get("arch"), options.get("domain"))
    taught = teacher if isinstance(teacher, Teacher) else load_teacher(teacher, *trusted)
    few = None if samples is None else load(samples, taught.domain, "train", resize=True)
    methods, refused = choose_methods(synthesizers, taught, few)
    students = list(dict.fromkeys(str(s).strip() for s in students))
    expect_sound(methods, students, taught, options)
    real = None
    if reference and eval_data is not None:
        real = load(eval_data, taught.domain, "train", *place)
    fixed = {
        "teacher_sha256": fingerprint(taught.state_dict()),
        "students": students,
        "samples": _title(few),
        "samples_sha256": None if few is None else fingerprint({"x": few.inputs, "y": few.labels}),
        "reference": _title(real),
        "options": {k: _plain(v) for k, v in options.items()},
    }
    run = Run(out, fixed, resume, progress)
    common = {**options, "teacher": teacher, "samples": few}
    cells = list(_cells(run.folder, [NONE, *methods], students, seeds, common))
    if real is not None:
        only = {**common, "samples": real}
        cells += _cells(run.folder, [REFERENCE], students, seeds, only)
    failed = _run(cells, workers or count_workers(options.get("device", "auto")), run)
    cells = [cell for cell in cells if cell.result is not None]
    if all(cell.is_reference for cell in cells):
        title, error = next(iter(failed.items()))
        raise TrainingError(f"Every method failed; the first: {title}: {error}")
    verdicts = list(_judge(cells, progress))
    judged = any(verdict.method != NONE for verdict in verdicts)
    ranking = rank_methods(verdicts) if judged else None
    test = None if eval_data is None else load(eval_data, taught.domain, "test", *place)
    accuracies = _measure(cells, test, progress)
    data = {
        "teacher": {"arch": taught.arch, "accuracy": _share_right(taught, test)},
        "rows": summarise(cells, ranking, accuracies),
        "cells": [{**(c.result or {}), "accuracy": _own(c, accuracies)} for c in cells],
        "ranking": None if ranking is None else ranking.to_dict(),
        "failed": failed,
        "refused": refused,
        "evaluation": None if test is None else f"{test.name} ({len(test)} test images)",
        "conditions": {**fixed, "methods": methods, "seeds": seeds},
        "versions": versions(),
    }
    write_comparison(run.folder, data)
    return Comparison(run.folder, data)


def _title(data: LabelledData | None) -> str | None:
    return None if data is None else f"{data.name} ({len(data)})"


def _plain(value: Any) -> Any:
    """An option as JSON has it."""
    if isinstance(value, Domain):
        return value.to_dict()
    return asdict(value) if isinstance(value, Preset) else value


def _own(cell: Cell, accuracies: Accuracies) -> dict[str, float | None]:
    return {n: accuracies[cell.method, cell.seed, n] for n in cell.students if accuracies}


def choose_methods(
    names: str | Sequence[str], teacher: Teacher, samples: LabelledData | None = None
) -> tuple[list[str], dict[str, str]]:
    """The methods to compare, and those of `all` that are left out, with the reason.

    Arguments:
        names: Names, or one text with commas between them; `"all"` stands for all known ones.
        teacher: The teacher.
        samples: The real samples that there are.

    Raises:
        UsageError: If a method that is named does not exist or cannot work with the teacher.
    """
    listed = names.split(",") if isinstance(names, str) else names
    known = [DEFAULT, *SYNTHESIZERS]
    if samples is not None:
        known += [f"{n}{SAMPLES}" for n in SYNTHESIZERS if get_synthesizer(n).takes_samples]
    methods: dict[str, str | None] = {}
    for name in listed:
        for method in known if name.strip() == "all" else [name.strip()]:
            methods[method] = _why_not(method, teacher, samples)
    able = [name for name, why in methods.items() if why is None]
    refused = {name: why for name, why in methods.items() if why is not None}
    asked = {name: why for name, why in refused.items() if name in map(str.strip, listed)}
    if asked:
        can = [name for name in known if _why_not(name, teacher, samples) is None]
        faults = "; ".join(f"{name} {why}" for name, why in asked.items())
        raise UsageError(f"{faults}. Those that can work with this teacher: {', '.join(can)}.")
    return able, refused


def _why_not(method: str, teacher: Teacher, samples: LabelledData | None) -> str | None:
    kinds = [get_synthesizer(name) for name in method.removesuffix(SAMPLES).split("+")]
    if method.endswith(SAMPLES) and samples is None:
        return "needs real samples, and none are given"
    reasons = [kind.why_not(teacher, samples) for kind in kinds]
    return next((reason for reason in reasons if reason is not None), None)


def _cells(
    folder: Path, methods: Sequence[str], students: Sequence[str], seeds: int, options: Any
) -> Iterator[Cell]:
    """Seed by seed, so that an early end leaves whole seeds."""
    for seed in range(seeds):
        for method in methods:
            stem = re.sub(r"[^A-Za-z0-9+-]+", "-", method).strip("-")
            yield Cell(method, seed, tuple(students), folder / f"cells/{stem}-{seed}", options)


def _run(cells: Sequence[Cell], workers: int, run: Run) -> dict[str, str]:
    """Runs all cells; the errors of those that failed, by method and seed."""
    failed = {}
    with run.stage("cells"), run.progress.stage("compare", len(cells)) as stage:
        waiting = [cell for cell in cells if cell.result is None]
        done = len(cells) - len(waiting)
        for cell, error in run_cells(waiting, min(workers, len(waiting) or 1), run.progress):
            done += 1
            stage.update(done, {})
            title = f"{cell.method}, seed {cell.seed}"
            if error is None and cell.result:
                run.progress.note(f"{title}: done in {cell.result['seconds']:.0f} s")
            else:
                failed[title] = error or "it left no result"
                run.progress.note(f"{title}: failed: {error}")
    return failed


def _judge(cells: Sequence[Cell], progress: Progress) -> Iterator[Verdict]:
    """What the held-out inputs of each family say about the students of all others."""
    candidates = [cell for cell in cells if cell.method != REFERENCE]
    with progress.stage("judge each by the others", len(candidates)) as stage:
        for done, cell in enumerate(candidates, 1):
            for name, judge, values in _verdicts(cell, candidates):
                yield Verdict(cell.method, judge, (cell.seed, name), sum(values) / len(values))
            stage.update(done, {})


def _verdicts(cell: Cell, others: Sequence[Cell]) -> Iterator[tuple[str, str, list[float]]]:
    """Each student, each family that may judge it, and what its members say."""
    own = families(cell.method)
    said: dict[str, list[dict[str, float]]] = {}
    for other in others:
        theirs = families(other.method)
        if other.seed == cell.seed and len(theirs) == 1 and not theirs & own:
            said.setdefault(next(iter(theirs)), []).append(cell.judge(other))
    for judge, answers in said.items():
        for name in cell.students:
            yield name, judge, [answer[name] for answer in answers]


def _share_right(classifier: Classifier, data: LabelledData | None) -> float | None:
    if data is None:
        return None
    return predict(classifier, data).eq(data.labels).double().mean().item()


def _measure(cells: Sequence[Cell], data: LabelledData | None, progress: Progress) -> Accuracies:
    """The accuracy of every student, by method, seed and student."""
    if data is None:
        return {}
    accuracies: dict[tuple[str, int, str], float | None] = {}
    with progress.stage("measure accuracy", len(cells)) as stage:
        for done, cell in enumerate(cells, 1):
            for name in cell.students:
                accuracies[cell.method, cell.seed, name] = _share_right(cell.student(name), data)
            stage.update(done, {})
    return accuracies
