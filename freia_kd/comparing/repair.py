"""What of a comparison's trials is damaged, and that it is made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..job import Job
from ..job.repair import Damage, find_damages, forget
from ..runs import Run
from ..runs.store import RECORD
from .trials import JUDGED, MEASURED, RESULT, Trial

FOUND = (RESULT, JUDGED, MEASURED)  # what a trial leaves beside its run

SPENT = ("train", "checkpoints")  # folders that may go when a trial ends


@dataclass(frozen=True)
class DamagedTrial:
    """A trial of which parts are not as it left them.

    Arguments:
        trial: The trial.
        damages: What is damaged, or missing though it should be there.
        job: Its job; `None` if the record itself is damaged, with which all of it is lost.
    """

    trial: Trial
    damages: list[Damage]
    job: Job | None


def find_damaged_trials(run: Run, trials: Sequence[Trial], allowed: bool) -> list[DamagedTrial]:
    """The trials that must be made again, in part.

    Arguments:
        run: The comparison.
        trials: Its trials.
        allowed: Whether what is damaged may be deleted and made again.

    Raises:
        CheckpointError: If parts are damaged and that is not allowed; all are named.
    """
    found = [damaged for trial in trials for damaged in _look_at(trial)]
    if found and not allowed:
        named = "\n".join(
            f"{d.path} ({damaged.trial.title}, stage {d.stage}): {d.reason}"
            for damaged in found
            for d in damaged.damages
        )
        raise CheckpointError(
            f"Parts of the comparison in {run.folder} are damaged; add --repair (repair=True) to "
            f"delete them and let the stages named make them again:\n{named}"
        )
    return found


def repair_trial(run: Run, damaged: DamagedTrial) -> None:
    """Deletes what is damaged of a trial, and lets the stages that make it run again.

    Arguments:
        run: The comparison, whose folder is locked.
        damaged: What :func:`find_damaged_trials` found.
    """
    folder, job = damaged.trial.folder, damaged.job
    run.progress.note(f"{damaged.trial.title}: what is damaged is made again.")
    if job is None:
        shutil.rmtree(folder)
        return
    with job.run.locked():
        for name in FOUND:
            (folder / name).unlink(missing_ok=True)
        # Its training set went when it ended, and is needed again.
        forget(job, [*{d.path: d for d in find_damages(job, True)}.values()])
        job.run.write()


def _look_at(trial: Trial) -> Iterator[DamagedTrial]:
    if not (trial.folder / RECORD).exists():
        return
    damages = [*_texts(trial)]
    try:
        job = trial.open()
    except CheckpointError as error:
        yield DamagedTrial(trial, [Damage(trial.folder / RECORD, "all", str(error))], None)
        return
    has_ended = (trial.folder / RESULT).exists()
    for damage in find_damages(job, True):
        is_spent = has_ended and damage.path.parent.name in SPENT and damage.is_missing
        if damage.stage != "report" and not is_spent:
            damages.append(damage)
    if damages:
        yield DamagedTrial(trial, damages, job)


def _texts(trial: Trial) -> Iterator[Damage]:
    for name in FOUND:
        path: Path = trial.folder / name
        try:
            _ = trial.result if name == RESULT else path.exists() and json.loads(path.read_bytes())
        except ValueError as error:
            reason = (str(error).splitlines() or [""])[0]
            yield Damage(path, name.removesuffix(".json"), f"It cannot be read ({reason}).")
