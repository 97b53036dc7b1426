"""What of a run's trials is damaged, and that it is made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import CheckpointError
from ..job.repair import Damage
from ..runs import Run
from ..training import Progress


class Repairable(Protocol):
    """A trial that knows what of it is damaged."""

    @property
    def title(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    def find_damages(self) -> list[Damage]: ...

    def repair(self, damages: Sequence[Damage], progress: Progress) -> None: ...


AnyTrial = TypeVar("AnyTrial", bound=Repairable)


def find_damaged(
    run: Run, trials: Sequence[AnyTrial], allowed: bool, beside: Sequence[Damage] = ()
) -> list[tuple[AnyTrial, list[Damage]]]:
    """The trials that must be made again, each with what of it is not as it left it.

    Arguments:
        run: The run that they are of.
        trials: Its trials.
        allowed: Whether what is damaged may be deleted and made again.
        beside: What else of the run is damaged.

    Raises:
        CheckpointError: If parts are damaged and that is not allowed; all are named.
    """
    looked = [(trial, trial.find_damages()) for trial in trials]
    found = [(trial, damages) for trial, damages in looked if damages]
    named = [f"{d.path} (stage {d.stage}): {d.reason}" for d in beside]
    named += [
        f"{d.path} ({trial.title}, stage {d.stage}): {d.reason}"
        for trial, damages in found
        for d in damages
    ]
    if named and not allowed:
        raise CheckpointError(
            f"Parts of the run in {run.folder} are damaged; add --repair (repair=True) to "
            "delete them and let the stages named make them again:\n" + "\n".join(named)
        )
    return found


def repair_all(run: Run, found: Sequence[tuple[AnyTrial, Sequence[Damage]]]) -> None:
    """Deletes what is damaged of trials, and lets the stages that make it run again.

    Arguments:
        run: The run, whose folder is locked.
        found: What :func:`find_damaged` found.
    """
    for trial, damages in found:
        run.progress.note(f"{trial.title}: what is damaged is made again.")
        trial.repair(damages, run.progress)
