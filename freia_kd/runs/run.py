"""A run's folder: options, checkpoints, metrics, and what each finished stage left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError
from ..files import write_json, write_text
from .progress import Progress
from .state import load_state, save_state


class Run:
    """One folder, one run.

    `run.json` holds the options, versions and seed, and how many seconds each stage took;
    `metrics.jsonl` a line per logged step; `checkpoints/` the states of the stages.

    Arguments:
        folder: The folder; made if there is none.
        options: The resolved options, plain JSON values.
        resume: Whether to go on with the run that the folder holds.
        progress: What to show while stages run.

    Raises:
        UsageError: If the folder holds something else, or a run with other options.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        options: dict[str, Any],
        resume: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.progress = progress or Progress()
        self.record: dict[str, Any] = {"options": options, "seconds": {}, "done": []}
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"Expected a folder for the run; {self.folder} is a file.")
        if (self.folder / "run.json").exists():
            self._reopen(options, resume)
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise UsageError(
                f"The folder {self.folder} is not empty and holds no run; choose another --out."
            )
        self.write()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Opens the run that a folder holds, whatever its options, to read from it.

        Raises:
            CheckpointError: If there is none, or its record is damaged.
        """
        run = cls.__new__(cls)
        run.folder, run.progress, run.record = Path(folder), Progress(), read_run(folder)
        return run

    def _reopen(self, options: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise UsageError(
                f"The folder {self.folder} already holds a run; pass --resume to go on with it, "
                "or choose another --out."
            )
        record = read_run(self.folder)
        # As JSON has it, so that tuples equal lists.
        options = json.loads(json.dumps(options))
        old = record["options"]
        names = sorted({*old, *options})
        changed = [
            f"{n} was {old.get(n)!r}, is {options.get(n)!r}"
            for n in names
            if old.get(n) != options.get(n)
        ]
        if changed:
            raise UsageError(
                f"The run in {self.folder} has other options ({'; '.join(changed)}); "
                "choose another --out."
            )
        self.record = record

    def write(self) -> None:
        """Writes `run.json`."""
        write_json(self.folder / "run.json", self.record)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def state_path(self, name: str) -> Path:
        """Where the state of a stage is kept."""
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Keeps the state of a stage."""
        save_state(self.state_path(name), state)

    def load(self, name: str) -> dict[str, Any] | None:
        """The kept state of a stage, or `None`."""
        path = self.state_path(name)
        return load_state(path) if path.exists() else None

    def done(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return stage in self.record["done"]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage and, when the block succeeds, records that it has finished.

        Seconds add up over interruptions.
        """
        start = time.monotonic()
        finished = False
        try:
            yield
            finished = True
        finally:
            seconds = self.record["seconds"]
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - start, 3)
            if finished and name not in self.record["done"]:
                self.record["done"].append(name)
            if finished or self.folder.is_dir():
                self._write_quietly(finished)

    def _write_quietly(self, finished: bool) -> None:
        try:
            self.write()
        except OSError:
            if finished:  # while another error is on its way, that one is the one to show
                raise

    def log(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Appends a line to `metrics.jsonl`."""
        line = json.dumps({"stage": stage, "step": step, **values})
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def forget_after(self, stage: str, step: int) -> None:
        """Drops the metrics of a stage after `step`, which a resumed stage will write again."""
        kept = [m for m in self.metrics() if m["stage"] != stage or m["step"] <= step]
        if (self.folder / "metrics.jsonl").exists():
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in kept))

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of `metrics.jsonl` (the last may be cut by a kill)."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a run folder's `run.json`.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    path = Path(folder) / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not {"options", "seconds", "done"} <= set(record):
            raise KeyError("options, seconds and done are expected")
        return record
    except FileNotFoundError:
        raise CheckpointError(f"Expected a run folder; {folder} has no run.json.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The file {path} is not the record of a run ({error}).") from error
