"""Runs cells, each in a process of its own, so many at a time; a failed one stops no other."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import connection, get_context, parent_process
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
    except Exception as error:  # a method may be anybody's
        kind = "" if isinstance(error, (UsageError, TrainingError)) else f"{type(error).__name__}: "
        return f"{kind}{' '.join(str(error).split())}"
    return None


class _Worker:
    """A process that runs one cell after the other, so that it loads its libraries once."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.cell: Cell | None = None

    def begin(self, cell: Cell) -> None:
        """Hands it a cell."""
        self.cell = cell
        self.connection.send(cell)

    def answer(self) -> tuple[Cell, str | None]:
        """The cell that it had, with the error if it failed or took the process with it."""
        assert self.cell is not None
        try:
            return self.cell, self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            return self.cell, f"its process died (exit code {code}); it may have run out of memory"

    def end(self) -> None:
        """Stops it at once."""
        self.process.terminate()
        self.process.join()


def _work(parent: connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            cell = parent.recv()
        except EOFError:
            return
        parent.send(_attempt(cell, None))


def _end_with_parent() -> None:
    """Ends this process when its parent is killed; a resumed one would run the same cell."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _side_by_side(waiting: list[Cell], workers: int) -> Iterator[tuple[Cell, str | None]]:
    idle: list[_Worker] = []
    busy: dict[Any, _Worker] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker()
                worker.begin(waiting.pop(0))
                busy[worker.connection] = worker
            for ended in connection.wait(list(busy)):
                worker = busy.pop(ended)
                answer = worker.answer()
                if worker.process.is_alive():
                    idle.append(worker)
                yield answer
    finally:
        for worker in [*idle, *busy.values()]:
            worker.end()
