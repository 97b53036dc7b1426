"""The comparison: every method and seed a trial, run side by side, judged by the others."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Device, DistillationOptions, Preset, PresetName
from ..data.datasets import LabelledData
from ..data.sources import PathLike, RealData, Source
from ..domain import Domain
from ..errors import TrainingError
from ..evaluation import accuracy
from ..job import Plan
from ..report import provenance
from ..report.schema import Comparison, Proportion, TeacherResult
from ..report.schema import RealData as RealDataResult
from ..report.storage import write_comparison
from ..students import StudentSpec
from ..teachers import Teacher
from ..training import Progress
from .methods import Methods
from .opening import Opened, open_comparison
from .planning import plan_trials
from .ranking import judge_trials, rank_methods
from .repair import find_damaged, repair_all
from .runner import run_all
from .summary import collect_results, summarise
from .trials import Trial


@dataclass(frozen=True)
class ComparisonResult:
    """A finished comparison.

    Arguments:
        folder: Its folder.
        comparison: What came out.
    """

    folder: Path
    comparison: Comparison


def compare(
    teacher: PathLike | Teacher,
    *,
    synthesizers: Methods = "all",
    students: Sequence[str | StudentSpec] = ("1",),
    seeds: int = 3,
    samples: Source | None = None,
    eval_data: Source | None = None,
    reference: bool = False,
    preset: PresetName | Preset = "quick",
    training: DistillationOptions | None = None,
    set_size: int | None = None,
    arch: str | None = None,
    domain: Domain | None = None,
    device: Device = "auto",
    data_root: PathLike | None = None,
    download: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    out: PathLike = "runs/compare",
    resume: bool = False,
    repair: bool = False,
    progress: Progress | None = None,
) -> ComparisonResult:
    """Distils students by every method, and says which is best without looking at real data.

    Every method and seed is a trial with a run's folder of its own, in which it is resumed. Then
    the students of each are judged by how far they agree with the teacher on the held-out inputs
    of the methods of other families (:func:`~freia_kd.comparing.rank_methods`), which is the only
    evidence that names the winner. A method that fails is reported and stops no other.

    Arguments:
        teacher: A checkpoint, or a teacher in memory.
        synthesizers: What to compare, see :func:`~freia_kd.comparing.build_methods`: by default
            all that can work with the teacher.
        students: What to make of the teacher: the papers' students, `"1"` to `"3"`, and specs.
        seeds: How many seeds, from 0.
        samples: A few labelled real inputs for the methods that take them.
        eval_data: Labelled real data, read after the last weight is fixed.
        reference: Whether to distil on the training split of `eval_data` too, for the recovery,
            (student - compressed) / (reference - compressed); it is no candidate.
        preset: How much work each trial does.
        training: How the students are trained, if not as the preset says.
        set_size: How many synthetic inputs to make, if not as many as the preset says.
        arch: The architecture, by name or `package.module:Class`, if the file does not tell.
        domain: The input domain, if the file does not tell.
        device: Where to compute.
        data_root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        workers: How many trials to run at a time, in processes of this machine; by default one a
            core.
        executor: What runs the trials instead, see :func:`~freia_kd.comparing.run_trials`.
        out: The comparison's folder.
        resume: Whether to go on with the comparison in that folder. Methods, seeds and evaluation
            data may be added then; all else must be as it was.
        repair: Whether parts of its trials that are damaged may be deleted and made again.
        progress: What to show meanwhile.

    Raises:
        UsageError: If the options do not fit together, a method named cannot work with the
            teacher, or an option differs from the record of what is resumed.
        CheckpointError: If the teacher's file is not sound, there is nothing to resume, or parts of
            trials are damaged and are not to be repaired.
        TrainingError: If every method failed.
    """
    opened = open_comparison(
        teacher,
        synthesizers=synthesizers,
        students=students,
        seeds=seeds,
        samples=samples,
        evaluation=None if eval_data is None else RealData(eval_data, data_root, download),
        reference=reference,
        preset=preset,
        training=training,
        set_size=set_size,
        arch=arch,
        domain=domain,
        device=device,
        workers=workers,
        executor=executor,
        out=out,
        resume=resume,
        progress=progress,
    )
    damaged = find_damaged(opened.run, opened.trials, repair) if resume else []
    with opened.run.locked():
        repair_all(opened.run, damaged)
        if executor is None and any(trial.result is None for trial in opened.trials):
            opened.run.progress.note(_plan(opened, workers).describe())
        return ComparisonResult(opened.run.folder, _run(opened, workers, executor))


def plan_comparison(
    teacher: PathLike | Teacher,
    *,
    workers: int | None = None,
    eval_data: Source | None = None,
    data_root: PathLike | None = None,
    download: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """What :func:`compare` would take on this machine; nothing is written.

    A few real steps of one trial of each method are taken.

    Arguments:
        teacher: As there, and so are the others.
        options: What else it takes, but an executor.

    Raises:
        UsageError: If the options do not fit together, or memory or disk cannot hold the trials.
        CheckpointError: If the teacher's file is not sound, or there is nothing to resume.
    """
    options["evaluation"] = None if eval_data is None else RealData(eval_data, data_root, download)
    opened = open_comparison(teacher, workers=workers, progress=progress, **options)
    return _plan(opened, workers)


def _plan(opened: Opened, workers: int | None) -> Plan:
    return plan_trials(
        opened.run.folder,
        [trial for trial in opened.trials if not trial.is_brief],
        workers,
        opened.run.progress,
        "fewer --synthesizers, a smaller --set-size",
        besides="compression, judging and measuring",
    )


def _run(opened: Opened, workers: int | None, executor: Executor | None) -> Comparison:
    """Runs the trials that have not run, and writes what came out."""
    ended = run_all(opened.run, opened.trials, "trials", workers, executor)
    failed = {trial.title: error for trial, error in ended}
    trials = [trial for trial in opened.trials if trial.title not in failed]
    if all(trial.method.kind != "method" for trial in trials):
        title, error = next(iter(failed.items()))
        raise TrainingError(f"Every method failed; the first: {title}: {error}")
    comparison = _compare(opened, trials, failed)
    write_comparison(opened.run.folder, comparison)
    return comparison


def _compare(opened: Opened, trials: Sequence[Trial], failed: dict[str, str]) -> Comparison:
    """Judges and measures what has run; only here are evaluation data read."""
    config, teacher, few = opened.config, opened.teacher, opened.samples
    verdicts = list(judge_trials(trials, opened.run.progress))
    kinds = {trial.method.name: trial.method.kind for trial in trials}
    judged = any(kinds[verdict.method] == "method" for verdict in verdicts)
    ranked = rank_methods(verdicts) if judged else None
    data: LabelledData | None = None
    if opened.evaluation is not None:
        data = opened.evaluation.load(teacher.domain, "test")
    results = collect_results(trials, data, opened.run.progress)
    return Comparison(
        teacher=TeacherResult(
            path=config.teacher,
            arch=config.arch,
            sha256=config.teacher_sha256,
            domain=config.domain,
            accuracy=None if data is None else Proportion.of(accuracy(teacher, data), len(data)),
        ),
        rows=summarise(trials, results, {} if ranked is None else ranked.scores),
        trials=list(results.values()),
        ranking=None if ranked is None else ranked.ranking,
        failed=failed,
        refused=opened.refused,
        real_data=RealDataResult(
            samples=None if few is None else few.name,
            samples_count=0 if few is None else len(few),
            samples_sha256=config.samples_sha256,
            evaluation=None if data is None else data.name,
            evaluation_count=0 if data is None else len(data),
        ),
        provenance=provenance.record(config.to_dict(), config.device),
        reference=config.reference,
    )
