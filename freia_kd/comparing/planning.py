"""What trials will take, from a few real steps of one of each method."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from ..device import choose_device, free_memory, peak_memory
from ..errors import UsageError
from ..job.planning import Plan, PlannedStage, existing
from ..training import Progress
from .runner import Runnable, count_workers


class Plannable(Runnable, Protocol):
    """A trial that knows what it will take."""

    @property
    def group(self) -> str: ...

    def plan(self) -> tuple[Plan, int]: ...


def plan_trials(
    folder: Path,
    trials: Sequence[Plannable],
    workers: int | None,
    progress: Progress,
    fewer: str,
    before: Sequence[PlannedStage] = (),
    besides: str = "compression and measuring",
) -> Plan:
    """Measures what trials will take that have not run; nothing is written.

    Arguments:
        folder: The folder of the run that they are of.
        trials: The trials that take time. Those of a group are taken to be alike.
        workers: How many run at a time, in processes of this machine; by default one a core.
        progress: What to show meanwhile.
        fewer: What to choose where the disk cannot hold them.
        before: What is done before.
        besides: What is not in the time.

    Raises:
        UsageError: If memory or disk cannot hold them; the message says what would fit.
    """
    waiting: dict[str, list[Plannable]] = {}
    for trial in trials:
        if trial.result is None:
            waiting.setdefault(trial.group, []).append(trial)
    device = choose_device(next((trial.device for trial in trials), "auto"))
    count = sum(map(len, waiting.values()))
    at_once = max(1, min(workers or count_workers(device.type), count))
    free = free_memory(device)
    stages, kept, passing, input_bytes = [*before], 0, 0, 0
    with _threads_of(at_once), progress.stage("plan", len(waiting)) as stage:
        for number, (name, same) in enumerate(waiting.items(), 1):
            plan, spent = _plan(same[0])
            known = plan is not None and None not in [s.seconds for s in plan.stages]
            seconds = len(same) * plan.seconds / at_once if plan is not None and known else None
            stages.append(PlannedStage(name, len(same), seconds))
            if plan is not None:
                kept += len(same) * (plan.disk - spent)
                passing, input_bytes = max(passing, spent), max(input_bytes, plan.input_bytes)
            stage.update(number, {})
    memory = at_once * peak_memory(device)
    if free is not None and at_once > 1 and memory > free:
        raise UsageError(
            f"{at_once} trials at a time need about {memory:,} bytes of memory, and {free:,} are "
            f"free: --workers {max(1, free * at_once // memory)} would fit."
        )
    said = f"{besides}, {at_once} at a time"
    disk_free = shutil.disk_usage(existing(folder)).free
    disk = kept + at_once * passing  # training sets go when their trial ends
    found = Plan(
        str(folder), tuple(stages), memory, free, disk, disk_free, input_bytes, besides=said
    )
    if disk > disk_free:
        raise UsageError(
            f"The trials would write about {disk:,} bytes, and {disk_free:,} are free where "
            f"{folder} is: choose {fewer}, or an --out with more room."
        )
    return found


def _plan(trial: Plannable) -> tuple[Plan | None, int]:
    """The plan of a trial, and the bytes that go when it ends; none if its method is broken."""
    try:
        return trial.plan()
    except UsageError as error:
        raise UsageError(f"{trial.group}: {error}") from error
    except Exception:  # a method may be anybody's; its trials will say what is wrong with it
        return None, 0


@contextmanager
def _threads_of(workers: int) -> Iterator[None]:
    """Lets torch use as many threads within the block as each of several processes will."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if workers > 1 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
