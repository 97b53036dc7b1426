"""Runs trials on any executor; one that fails stops no other."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from contextlib import contextmanager
from multiprocessing import connection, get_context
from typing import Any, Protocol, TypeVar

import torch

from ..config import Device
from ..errors import TrainingError, UsageError
from ..runs import Run
from ..training import Progress

KILLED = "its process was killed, or died; it may have run out of memory"


class Runnable(Protocol):
    """What a trial is to those that run it: plain data, which another process can run."""

    @property
    def title(self) -> str: ...

    @property
    def device(self) -> Device: ...

    @property
    def result(self) -> Any: ...

    def run(self, progress: Progress | None = None) -> None: ...


AnyTrial = TypeVar("AnyTrial", bound=Runnable)


def count_workers(device: str) -> int:
    """How many trials to run at a time: one a core, or one where there is a GPU."""
    if device != "cpu" and torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_faults(workers: int | None, executor: Executor | None) -> Iterator[str]:
    """What is wrong with how trials are to be run, for options that are checked."""
    if workers is not None and workers < 1:
        yield f"workers: expected at least 1; got {workers}."
    if workers is not None and executor is not None:
        yield "workers: expected none beside an executor, which has its own."


def run_all(
    run: Run,
    trials: Sequence[AnyTrial],
    title: str,
    workers: int | None = None,
    executor: Executor | None = None,
) -> list[tuple[AnyTrial, str]]:
    """Runs what has not been run, as a stage of a run; what failed, with the errors.

    Arguments:
        run: The run.
        trials: What to run.
        title: The stage's name.
        workers: As of :func:`run_trials`; by default one a core.
        executor: As of :func:`run_trials`.
    """
    waiting, failed = [trial for trial in trials if trial.result is None], []
    done = len(trials) - len(waiting)
    if workers is None:
        workers = min((count_workers(trial.device) for trial in waiting), default=1)
    with run.stage(title), run.progress.stage(title, len(trials)) as stage:
        for trial, error in run_trials(waiting, run.progress, workers, executor):
            result = trial.result
            if error is None and result is not None:
                said = f"done in {sum(result.stages.values()):.0f} s"
            else:
                said = f"failed: {error or 'it left no result'}"
                failed.append((trial, error or "it left no result"))
            run.progress.note(f"{trial.title}: {said}")
            done += 1
            stage.update(done, {})
    return failed


def run_trials(
    trials: Sequence[AnyTrial],
    progress: Progress,
    workers: int = 1,
    executor: Executor | None = None,
) -> Iterator[tuple[AnyTrial, str | None]]:
    """Runs trials and yields each when it has ended, with the error if it failed.

    Arguments:
        trials: What to run.
        progress: What to show.
        workers: How many at a time, each in a process of its own that ends with this one; a single
            one runs in this process and shows its own progress.
        executor: What runs them instead, such as Dask's for a cluster. It gets all trials at once;
            whatever runs them must see the same files. It stays open.
    """
    if executor is not None:
        yield from _submit_all(trials, executor)
    elif min(workers, len(trials)) > 1:
        yield from _run_in_processes(list(trials), workers)
    else:
        for trial in trials:
            progress.note(trial.title)
            yield trial, attempt(trial, progress)


def attempt(trial: Runnable, progress: Progress | None = None) -> str | None:
    """Runs a trial; the error, if it failed."""
    try:
        trial.run(progress)
    except Exception as error:  # a method may be anybody's
        return _describe(error)
    return None


def _describe(error: BaseException) -> str:
    kind = "" if isinstance(error, (UsageError, TrainingError)) else f"{type(error).__name__}: "
    return f"{kind}{' '.join(str(error).split())}"


def _submit_all(
    trials: Sequence[AnyTrial], executor: Executor
) -> Iterator[tuple[AnyTrial, str | None]]:
    running = {executor.submit(attempt, trial): trial for trial in trials}
    try:
        for future in as_completed(running):
            yield running[future], _outcome(future)
    finally:
        for future in running:
            future.cancel()


def _outcome(future: Future[str | None]) -> str | None:
    """The error of a trial: its own, or that of the executor."""
    try:
        return future.result()
    except BrokenExecutor:
        return KILLED
    except Exception as error:  # such as one that says that the trial cannot be pickled
        return _describe(error)


def _run_in_processes(
    waiting: list[AnyTrial], workers: int
) -> Iterator[tuple[AnyTrial, str | None]]:
    """Side by side; when a process dies, those that were running are repeated, each alone."""
    while waiting:
        suspects: list[AnyTrial] = []
        with _pool(min(workers, len(waiting))) as pool:
            yield from _run_until_broken(pool, waiting, workers, suspects)
        for trial in suspects:
            with _pool(1) as pool:
                yield trial, _outcome(pool.submit(attempt, trial))


def _run_until_broken(
    pool: Executor, waiting: list[AnyTrial], workers: int, suspects: list[AnyTrial]
) -> Iterator[tuple[AnyTrial, str | None]]:
    """Takes what is waiting; if a process dies, what was running is left among the suspects."""
    running: dict[Future[str | None], AnyTrial] = {}
    while waiting or running:
        try:
            # No more than run at once, so that it is known which these are.
            while waiting and len(running) < workers:
                running[pool.submit(attempt, waiting[0])] = waiting[0]
                del waiting[0]
            ended = wait(running, return_when=FIRST_COMPLETED).done
        except BrokenExecutor:  # while no trial of ours was looking
            suspects += running.values()
            return
        for future in ended:
            if isinstance(future.exception(), BrokenExecutor):
                suspects += running.values()
                return
            yield running.pop(future), _outcome(future)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end when the block does, finished or not, or when this process is killed."""
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    with ProcessPoolExecutor(workers, context, _begin_worker, (reader,)) as pool:
        try:
            yield pool
            pool.shutdown()
        finally:
            writer.close()
            reader.close()


def _begin_worker(parent: connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)


def _end_with(parent: connection.Connection) -> None:
    """Ends this process when the other end is closed; a resumed parent would run the same trial."""
    connection.wait([parent])
    os._exit(1)
