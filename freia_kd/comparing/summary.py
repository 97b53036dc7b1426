"""The rows of a comparison: each method over all its seeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..data.datasets import LabelledData
from ..job.synthesis import picture_name
from ..report.schema import MethodRow, Proportion, Spread, TrialResult, recovery
from ..training import Progress
from .methods import BASELINE, REFERENCE
from .trials import Trial

Results = Mapping[tuple[str, int], TrialResult]  # by method and seed


def collect_results(
    trials: Sequence[Trial], data: LabelledData | None, progress: Progress
) -> dict[tuple[str, int], TrialResult]:
    """The results of trials that have run, with the accuracy of every student.

    Arguments:
        trials: The trials.
        data: The evaluation data, if there are any.
        progress: What to show meanwhile.
    """
    results = {}
    with progress.stage("measure accuracy", len(trials)) as stage:
        for done, trial in enumerate(trials, 1):
            result = trial.result
            assert result is not None
            measured = {} if data is None else trial.measure(data)
            results[trial.method.name, trial.seed] = replace(result, accuracy=measured)
            stage.update(done, {})
    return results


def recovered(
    student: Mapping[str, Proportion],
    compressed: Mapping[str, Proportion],
    reference: Mapping[str, Proportion],
    name: str,
) -> float | None:
    """The recovery of a student by name (:func:`~freia_kd.report.schema.recovery`).

    Arguments:
        student: The accuracies of the method's students; none where a trial failed.
        compressed: Those without any training.
        reference: Those after training on real data.
        name: The student.
    """
    if not all(name in accuracies for accuracies in (student, compressed, reference)):
        return None
    return recovery(compressed[name].value, student[name].value, reference[name].value)


def summarise(
    trials: Sequence[Trial], results: Results, scores: Mapping[str, Spread]
) -> list[MethodRow]:
    """One row for each method, the best first and the reference last.

    Arguments:
        trials: The trials that did not fail.
        results: Their results, with accuracies if they were measured.
        scores: The independent agreement of each method that was judged.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.method.name, []).append(trial)

    def place(name: str) -> tuple[bool, float]:
        return name == REFERENCE.name, -scores[name].mean if name in scores else 1.0

    return [_row(groups[name], results, scores) for name in sorted(groups, key=place)]


def _row(trials: Sequence[Trial], results: Results, scores: Mapping[str, Spread]) -> MethodRow:
    method, students = trials[0].method, [spec.name for spec in trials[0].students]
    own = [results[method.name, trial.seed] for trial in trials]

    def over_seeds(value: Callable[[TrialResult, str], float | None]) -> dict[str, Spread | None]:
        return {name: Spread.of([value(result, name) for result in own]) for name in students}

    def gained(result: TrialResult, name: str) -> float | None:
        low, high = (results.get((m.name, result.seed)) for m in (BASELINE, REFERENCE))
        if low is None or high is None or method.kind != "method":
            return None
        return recovered(result.accuracy, low.accuracy, high.accuracy, name)

    seconds = Spread.of([sum(result.stages.values()) for result in own])
    assert seconds is not None
    return MethodRow(
        method=method.name,
        kind=method.kind,
        seeds=len(trials),
        independent=scores.get(method.name),
        own=over_seeds(lambda result, name: _value(result.agreement.get(name))),
        accuracy=over_seeds(lambda result, name: _value(result.accuracy.get(name))),
        recovery=over_seeds(gained),
        seconds=seconds,
        images=max(result.images for result in own),
        warnings=sorted({warning for result in own for warning in result.warnings}),
        picture=_picture(trials[0]),
    )


def _value(share: Proportion | None) -> float | None:
    return None if share is None else share.value


def _picture(trial: Trial) -> str | None:
    """Some inputs of a method's first synthesizer, from the comparison's folder."""
    for synthesizer in trial.method.synthesizers[:1]:
        path = trial.folder / picture_name(synthesizer.name)
        if path.exists():
            return os.path.relpath(path, trial.folder.parents[1])
    return None
