"""The rows of a comparison: each method over all its seeds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..data.datasets import LabelledData
from ..job.synthesis import picture_name
from ..report.comparison import method_rows
from ..report.schema import MethodRow, Spread, TrialResult
from ..training import Progress
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


def summarise(
    trials: Sequence[Trial], results: Results, scores: Mapping[str, Spread]
) -> list[MethodRow]:
    """One row for each method, the best first and the reference last.

    Arguments:
        trials: The trials that did not fail.
        results: Their results, with accuracies if they were measured.
        scores: The independent agreement of each method that was judged.
    """
    kinds = {trial.method.name: trial.method.kind for trial in trials}
    first = {trial.method.name: trial for trial in reversed(trials)}
    pictures = {n: picture for n, trial in first.items() if (picture := _picture(trial))}
    own = [results[trial.method.name, trial.seed] for trial in trials]
    return method_rows(own, scores, kinds, pictures)


def _picture(trial: Trial) -> str | None:
    """Some inputs of a method's first synthesizer, from the comparison's folder."""
    for synthesizer in trial.method.synthesizers[:1]:
        path = trial.folder / picture_name(synthesizer.name)
        if path.exists():
            return os.path.relpath(path, trial.folder.parents[1])
    return None
