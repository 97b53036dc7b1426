"""Runs cells, each in a process of its own, so many at a time; a failed one stops no other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from multiprocessing import connection, get_context
from typing import Any

import torch

from ..errors import TrainingError, UsageError
from ..runs.progress import Progress
from .cells import Cell


def count_workers(device: str) -> int:
    """How many cells to run at a time: one a core, or one where there is a GPU."""
    if device != "cpu" and torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_cells(
    cells: Sequence[Cell], workers: int, progress: Progress
) -> Iterator[tuple[Cell, str | None]]:
    """Runs cells and yields each when it is finished, with the error if it failed.

    Arguments:
        cells: What to run.
        workers: How many at a time; a single one runs in this process and shows its own progress.
        progress: What to show.
    """
    if workers == 1:
        for cell in cells:
            progress.note(f"{cell.method}, seed {cell.seed}")
            yield cell, _attempt(cell, progress)
    else:
        yield from _side_by_side(list(cells), workers)


def _attempt(cell: Cell, progress: Progress | None) -> str | None:
    try:
        cell.run(progress)
    except (ValueError, TypeError, RuntimeError, OSError, LookupError, ArithmeticError) as error:
        kind = "" if isinstance(error, (UsageError, TrainingError)) else f"{type(error).__name__}: "
        return f"{kind}{' '.join(str(error).split())}"
    return None


def _work(cell: Cell, answer: connection.Connection) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    torch.set_num_threads(1)
    answer.send(_attempt(cell, None))


def _side_by_side(waiting: list[Cell], workers: int) -> Iterator[tuple[Cell, str | None]]:
    context = get_context("spawn")
    running: dict[int, tuple[Any, connection.Connection, Cell]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(cell, sender), daemon=True)
                process.start()
                sender.close()
                running[process.sentinel] = process, receiver, cell
            ended = connection.wait(list(running))
            for sentinel in [s for s in running if s in ended]:
                process, receiver, cell = running.pop(sentinel)
                process.join()
                yield cell, _answer(receiver, process.exitcode)
    finally:
        for process, _, _ in running.values():
            process.terminate()
            process.join()


def _answer(receiver: connection.Connection, exitcode: int | None) -> str | None:
    try:
        return receiver.recv() if receiver.poll() else f"its process died (exit code {exitcode})"
    except EOFError:
        return f"its process died (exit code {exitcode}); it may have run out of memory"
