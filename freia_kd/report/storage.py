"""Reports as files: JSON for scripts, Markdown and HTML for people, and read back."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError
from ..files import write_text
from ..training.checkpoints import read_metrics
from .comparison import comparison_document
from .document import Document
from .plots import plot_comparison, plot_costs, plot_curves, plot_sensitivity, write_png
from .render import html, markdown
from .run import run_document
from .schema import VERSION, Comparison, Report, TableResult
from .table1 import table1_document

Kind = TypeVar("Kind", Report, Comparison, TableResult)
PathLike = str | os.PathLike[str]
FILES: dict[type, str] = {Report: "report", Comparison: "compare", TableResult: "table1"}


def write_report(folder: PathLike, report: Report) -> None:
    """Writes a run's pictures, `report.json`, `report.md` and `report.html`.

    The curves are those of the metrics that the folder holds.
    """
    folder = Path(folder)
    metrics = read_metrics(folder)
    if metrics:
        write_png(folder / "curves.png", plot_curves(metrics))
    for student in report.students:
        if student.costs.layers:
            write_png(folder / f"costs-{student.name}.png", plot_costs(student.costs))
        for search in student.searches:
            if search and search.get("sensitivity"):
                path = folder / f"sensitivity-{student.name}.png"
                write_png(path, plot_sensitivity(search["sensitivity"]))
    _write(folder, report, run_document(report))


def write_comparison(folder: PathLike, comparison: Comparison) -> None:
    """Writes a comparison's plot, `compare.json`, `compare.md` and `compare.html`."""
    write_png(Path(folder, "compare.png"), plot_comparison(comparison.rows))
    _write(folder, comparison, comparison_document(comparison))


def write_table1(folder: PathLike, result: TableResult) -> None:
    """Writes `table1.json`, `table1.md` and `table1.html`."""
    _write(folder, result, table1_document(result))


def _write(folder: PathLike, result: Kind, document: Document) -> None:
    stem = FILES[type(result)]
    write_text(Path(folder, f"{stem}.json"), to_json(result))
    write_text(Path(folder, f"{stem}.md"), markdown(document, folder))
    write_text(Path(folder, f"{stem}.html"), html(document, folder))


def to_json(result: Kind) -> str:
    """A report as the text of its JSON file."""
    return json.dumps(asdict(result), indent=2, allow_nan=False) + "\n"


def read_report(folder: PathLike) -> Report:
    """The report of a finished run.

    Raises:
        CheckpointError: If there is none, it is damaged, or of another version.
    """
    return read_result(folder, Report)


def read_result(folder: PathLike, kind: type[Kind]) -> Kind:
    """A :class:`Report`, :class:`Comparison` or :class:`TableResult` that a folder holds.

    Raises:
        CheckpointError: If there is none, it is damaged, or of another version.
    """
    from pydantic import TypeAdapter, ValidationError

    path = Path(folder, f"{FILES[kind]}.json")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"Expected the file {path}; there is none.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The file {path} is damaged: {error}.") from error
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise CheckpointError(
            f"Expected version {VERSION} in {path}; got {version!r}. Another version of freia_kd "
            "wrote it: read it with that one, or run again into a new folder."
        )
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise CheckpointError(f"The file {path} is damaged at {place}: {message}.") from error


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the three kinds of files, as `docs/report-schema.json` has it."""
    from pydantic import TypeAdapter

    kinds: Any = [(kind, "validation", TypeAdapter(kind)) for kind in FILES]
    found, shared = TypeAdapter.json_schemas(kinds)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What freiakd writes: report.json, compare.json and table1.json",
        "oneOf": [found[kind, "validation"] for kind in FILES],
        **shared,
    }
