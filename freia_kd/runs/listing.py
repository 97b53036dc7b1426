"""Which runs a folder holds, and how each stands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError
from ..report.schema import Comparison, Proportion, Report, TableResult
from ..report.storage import FILES, read_result
from .lock import holder, is_locked
from .store import RECORD, RESULT, RunRecord, read_record

REPORTS = {"distill": Report, "compare": Comparison, "table1": TableResult}


@dataclass(frozen=True)
class RunSummary:
    """A run in a line.

    Arguments:
        folder: Its folder.
        kind: What made it; empty where the record cannot be read.
        state: `"finished"`, `"running"` with the process, `"stopped"` with the last stage that was
            done, or what is wrong with it.
        teacher: The teacher's file.
        students: The students by name.
        accuracy: The accuracy of each student that was measured.
        agreement: Its agreement with the teacher on held-out synthetic inputs.
        seconds: How long it has worked.
    """

    folder: str
    kind: str
    state: str
    teacher: str = ""
    students: list[str] = field(default_factory=list)
    accuracy: dict[str, Proportion] = field(default_factory=dict)
    agreement: dict[str, Proportion] = field(default_factory=dict)
    seconds: float = 0.0


def list_runs(folder: str | os.PathLike[str]) -> list[RunSummary]:
    """The runs in a folder and in the folders below it; not the trials of a comparison.

    Arguments:
        folder: The folder.
    """
    return [_summary(path) for path in _find(Path(folder))]


def _find(folder: Path) -> Iterator[Path]:
    if (folder / RECORD).exists():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _find(path)


def _summary(folder: Path) -> RunSummary:
    try:
        record = read_record(folder)
    except CheckpointError as error:
        return RunSummary(str(folder), "", str(error))
    report, damage, kind = None, "", REPORTS.get(record.kind)
    if kind is not None and (folder / f"{FILES[kind]}.json").exists():
        try:
            report = read_result(folder, kind)
        except CheckpointError as error:
            damage = str(error)
    measured = report.students if isinstance(report, Report) else []
    students = record.students or record.config.get("students", {})
    if not isinstance(students, dict):  # those of a table are of the paper, and have one name
        students = str(students)
    return RunSummary(
        folder=str(folder),
        kind=record.kind,
        state=damage or _state(folder, record, report is not None),
        teacher=str(record.config.get("teacher") or ""),
        students=[students] if isinstance(students, str) else list(students or ()),
        accuracy={s.name: s.distilled.accuracy for s in measured if s.distilled.accuracy},
        agreement={s.name: s.distilled.agreement for s in measured},
        seconds=sum(record.seconds.values()),
    )


def _state(folder: Path, record: RunRecord, has_report: bool) -> str:
    if is_locked(folder):
        who = holder(folder)
        return f"running (process {who.get('pid', '?')} on {who.get('host', '?')})"
    is_finished = has_report and (record.kind != "distill" or "report" in record.done)
    if is_finished or (folder / RESULT).exists():
        return "finished"
    return f"stopped after {record.done[-1]}" if record.done else "stopped in its first stage"
