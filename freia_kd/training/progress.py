"""What a person sees while a stage runs: rich bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TextIO


class Stage(Protocol):
    """One running stage."""

    def update(self, done: int, values: Mapping[str, float]) -> None:
        """Tells how far the stage is and the current terms of the loss."""


class Progress:
    """Shows nothing; the base class of those that show something."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Stage]:
        """Opens a stage of `total` steps."""
        yield self

    def update(self, done: int, values: Mapping[str, float]) -> None:
        """Ignores the news."""

    def note(self, message: str) -> None:
        """Ignores a message."""


def _format(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


class PlainProgress(Progress):
    """One line at the start and end of a stage, and one every `interval` seconds.

    Arguments:
        stream: Where the lines go, standard error by default.
        interval: Seconds between lines.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 10.0) -> None:
        self.stream = stream or sys.stderr
        self.interval = interval

    def note(self, message: str) -> None:
        print(message, file=self.stream, flush=True)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Stage]:
        running = _PlainStage(self, title, total)
        self.note(f"{title}: {total} step{'s' if total != 1 else ''}")
        yield running
        self.note(f"{title}: done in {_clock(time.monotonic() - running.start)}")


class _PlainStage:
    def __init__(self, parent: PlainProgress, title: str, total: int) -> None:
        self.parent, self.title, self.total = parent, title, total
        self.start = self.last = time.monotonic()
        self.first: int | None = None

    def update(self, done: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        if now - self.last < self.parent.interval:
            return
        self.last = now
        left = (now - self.start) / max(done - self.first, 1) * (self.total - done)
        self.parent.note(
            f"{self.title}: {done}/{self.total}  {_format(values)}  {_clock(left)} left"
        )


class RichProgress(Progress):
    """Bars with the terms of the loss and the time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    def note(self, message: str) -> None:
        self.console.print(message, markup=False, highlight=False)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Stage]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        with Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}", style="dim", markup=False),
            console=self.console,
        ) as bars:
            task = bars.add_task(title, total=total, terms="")

            class Running:
                def update(self, done: int, values: Mapping[str, float]) -> None:
                    bars.update(task, completed=done, terms=_format(values))

            yield Running()


class LoggedProgress(Progress):
    """Shows what another progress shows, and appends lines with the time of day to a file.

    Arguments:
        shown: What a person sees.
        file: The log; what it holds stays.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, shown: Progress, file: str | os.PathLike[str]) -> None:
        self.shown = shown
        self.log = _DatedProgress(open(file, "a", encoding="utf-8"))  # noqa: SIM115 - see close

    def close(self) -> None:
        """Closes the log."""
        self.log.stream.close()

    def note(self, message: str) -> None:
        self.shown.note(message)
        self.log.note(message)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Stage]:
        with self.shown.stage(title, total) as shown, self.log.stage(title, total) as log:

            class Both:
                def update(self, done: int, values: Mapping[str, float]) -> None:
                    shown.update(done, values)
                    log.update(done, values)

            yield Both()


class _DatedProgress(PlainProgress):
    def note(self, message: str) -> None:
        for line in message.splitlines():
            super().note(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
