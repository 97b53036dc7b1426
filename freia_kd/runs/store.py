"""A run's folder and its record, `run.json`: typed, versioned, and written whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import ranks
from ..errors import CheckpointError, UsageError
from ..files import PART, remove_parts, write_json, write_text
from ..training import Checkpoints, Progress
from ..version import __version__
from .lock import HOLDER, LOCK, expect_free, locked

VERSION = 2  # of the record; raised when an older run could not go on
RECORD = "run.json"
RESULT = "trial.json"  # of a trial, which ends with it
ASKED = "run.yaml"  # the options that were asked for, in words that can be given back


@dataclass
class RunRecord:
    """What `run.json` holds.

    Arguments:
        kind: What made the folder: `"distill"`, `"compare"`, `"table1"` or `"trial"`.
        config: The resolved options; a run that is resumed must have the same.
        students: What each student is to be, by name; more may be added.
        evaluation: Where the evaluation data are, if they have a place: the arguments of
            :func:`~freia_kd.data.datasets.load_dataset`.
        diagnostics: How the inputs of each synthesizer look to the teacher, by stage.
        seconds: How long each stage took, in seconds, added up over interruptions.
        done: The stages that have finished, in order.
        choice: How its synthesizers were chosen, if it chose them
            (:class:`~freia_kd.report.schema.Choice`).
        threads: With how many threads it computes.
        package: The version of this package that made the folder.
        version: The version of this record.
    """

    kind: str
    config: dict[str, Any]
    students: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    diagnostics: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    choice: dict[str, Any] | None = None
    threads: int | None = None
    package: str = __version__
    version: int = VERSION


def read_record(folder: str | os.PathLike[str], kind: str | None = None) -> RunRecord:
    """The record of the run that a folder holds.

    Arguments:
        folder: The run's folder.
        kind: What must have made it, if that matters.

    Raises:
        CheckpointError: If there is none, it is damaged, or of another version or kind.
    """
    from pydantic import TypeAdapter, ValidationError

    path = Path(folder) / RECORD
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"Expected the folder of a run; {folder} has no {RECORD}{_again(path)}."
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(_unreadable(path, str(error))) from error
    version = fields.get("version", 1) if isinstance(fields, dict) else None
    if version != VERSION:
        package = fields.get("package", "an earlier version") if isinstance(fields, dict) else "?"
        raise CheckpointError(
            f"The run in {folder} was made by freia_kd {package}, whose record (version {version}) "
            f"this version cannot go on with (it expects {VERSION}); finish it there, or start "
            "another run."
        )
    try:
        record = TypeAdapter(RunRecord).validate_python(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise CheckpointError(_unreadable(path, f"{where}: {fault['msg']}")) from error
    if kind is not None and record.kind != kind:
        raise CheckpointError(f"The folder {folder} was made by {record.kind}, not by {kind}.")
    return record


def _unreadable(path: Path, reason: str) -> str:
    """What is wrong with a record, and what to do without it."""
    return (
        f"The file {path} is not the record of a run ({reason}), without which it cannot go on: "
        f"begin another with another --out{_again(path)}."
    )


def _again(path: Path) -> str:
    asked = path.with_name(ASKED)
    return f"; --config {asked} has the options that it began with" if asked.exists() else ""


class Run:
    """One folder, one run.

    `run.json` holds the record, `metrics.jsonl` a line per logged step, `checkpoints/` the states
    of the stages. Nothing is written before the first stage begins.

    Arguments:
        folder: The folder.
        record: What is known of the run.
        progress: What to show while stages run.
        asked: The options of whoever began it, to be kept as `run.yaml`.
    """

    def __init__(
        self,
        folder: Path,
        record: RunRecord,
        progress: Progress | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.record, self.progress = folder, record, progress or Progress()
        self._asked = asked
        self._known = _content(folder / RECORD)  # what is on disk, as far as this process knows

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        kind: str,
        config: Mapping[str, Any],
        progress: Progress | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> Run:
        """A new run.

        Raises:
            UsageError: If the folder holds a run that has begun, or something else.
        """
        folder = Path(folder)
        for path in (folder, *folder.parents):
            if path.exists() and not path.is_dir():
                raise UsageError(f"Expected a folder for the run, {folder}; {path} is a file.")
        run = cls(folder, RunRecord(kind, json.loads(json.dumps(config))), progress, asked)
        if not (folder / RECORD).exists():
            # What a run leaves that is killed before its record is written, or is just beginning.
            own = {LOCK, HOLDER, ASKED}
            names = {p.name for p in folder.iterdir()} if folder.is_dir() else set[str]()
            if any(not name.startswith(PART) for name in names - own):
                raise UsageError(
                    f"The folder {folder} is not empty and holds no run; choose another --out."
                )
        elif not _is_blank(folder):
            expect_free(folder)
            raise UsageError(
                f"The folder {folder} already holds a run; pass --resume to go on with it, or "
                "choose another --out."
            )
        return run

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        kind: str | None = None,
        progress: Progress | None = None,
    ) -> Run:
        """The run that a folder holds.

        Raises:
            CheckpointError: If there is none, or it cannot be read (:func:`read_record`).
        """
        return cls(Path(folder), read_record(folder, kind), progress)

    def expect_config(self, config: Mapping[str, Any]) -> None:
        """Raises unless the options are those that the run began with.

        Raises:
            UsageError: If some differ; each is named with both values.
        """
        old, new = _flat(self.record.config), _flat(json.loads(json.dumps(config)))
        changed = [
            f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if changed:
            raise UsageError(
                f"The run in {self.folder} has other options ({'; '.join(changed)}); leave them "
                "out to go on with it, or choose another --out."
            )

    def write(self) -> None:
        """Writes the record, as the first of the processes that share the run."""
        if not ranks.is_first():
            return
        if self._asked is not None and not (self.folder / ASKED).exists():
            import yaml

            write_text(self.folder / ASKED, yaml.safe_dump(dict(self._asked), sort_keys=False))
        write_json(self.folder / RECORD, asdict(self.record))
        self._known = _content(self.folder / RECORD)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process off the folder within the block, and says which folder it is.

        Raises:
            UsageError: If another process works on it, or has done so since the run was opened.
        """
        ranks.wait()  # so that all have seen the folder as it was
        if not ranks.is_first():
            yield
            return
        with locked(self.folder):
            if _content(self.folder / RECORD) != self._known:
                raise UsageError(
                    f"Another process has worked on the run in {self.folder} since it was opened; "
                    "call the command again, with --resume."
                )
            for folder in (self / ".", self / "checkpoints", *self.folder.glob("synthetic*/*")):
                remove_parts(folder)
            self.progress.note(f"Run: {self.folder}")
            yield

    def meet(self) -> None:
        """Waits for the processes that share the run, which then know what the first one knows."""
        if ranks.count() == 1:
            return
        ranks.wait()
        if not ranks.is_first() and (self.folder / RECORD).exists():
            self.record = read_record(self.folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def checkpoints(self, stage: str) -> Checkpoints:
        """Where a stage keeps its states and metrics."""
        return Checkpoints(self.folder, stage, self.progress)

    def done(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return stage in self.record.done

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage and, when the block succeeds, records that it has finished.

        Seconds add up over interruptions. A run whose first stage fails before it has kept
        anything leaves no record behind.
        """
        self.write()
        start = time.monotonic()
        finished = False
        try:
            yield
            finished = True
        finally:
            seconds = self.record.seconds
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - start, 3)
            if finished and name not in self.record.done:
                self.record.done.append(name)
            self._close(finished)

    def _close(self, finished: bool) -> None:
        if finished or not ranks.is_first():
            self.write()
            return
        with suppress(OSError):  # another error is on its way, which is the one to show
            if self.record.done or not _is_blank(self.folder):
                self.write()
            else:
                (self.folder / ASKED).unlink(missing_ok=True)
                (self.folder / RECORD).unlink()
                self._known = None
                self.folder.rmdir()


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _is_blank(folder: Path) -> bool:
    """Whether a folder holds nothing but the record of a run that has kept nothing yet."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return names - {ASKED} == {RECORD}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
