"""What came out of a run, for scripts (JSON), for reading (Markdown) and for showing (HTML)."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import write_json, write_text
from .details import Block, Rows, student_blocks
from .pictures import draw_curves
from .run import Run


@dataclass(frozen=True)
class Report:
    """The report of a run.

    Arguments:
        folder: The run's folder.
        data: The contents of `report.json`.
    """

    folder: Path
    data: dict[str, Any]

    @property
    def students(self) -> list[dict[str, Any]]:
        """One entry for each student."""
        return self.data["students"]

    def table(self) -> list[list[str]]:
        """The main results as rows of text, the first of which is the header."""
        teacher = self.data["teacher"]
        measured = teacher["accuracy"] is not None
        rows = [["", *(["accuracy", "agreement,\nreal"] if measured else [])]]
        rows[0] += ["agreement,\nsynthetic", "parameters", "MACs", "latency"]

        def row(title: str, scores: list[float | None], costs: list[str]) -> list[str]:
            shown = [f"{100 * s:.1f} %" if s is not None else "" for s in scores]
            return [title, *(shown if measured else shown[2:]), *costs]

        first = self.students[0] if self.students else None
        latency = f"{first['teacher_latency_ms']:.2f} ms" if first else ""
        costs = [f"{teacher['parameters']:,}", f"{teacher['macs']:,}", latency]
        rows.append(row("teacher", [teacher["accuracy"], None, None], costs))
        for s in self.students:
            costs = [
                f"{s['parameters']:,} (1/{s['compression']:.1f})",
                f"{s['macs']:,} (1/{teacher['macs'] / s['macs']:.1f})",
                f"{s['latency_ms']:.2f} ms",
            ]
            before = [s["accuracy_before"], s["real_agreement_before"], s["agreement_before"]]
            after = [s["accuracy"], s["real_agreement"], s["agreement"]]
            rows.append(row(f"{_untrained(s)}, {s['name']}", before, costs))
            rows.append(row(f"student {s['name']}", after, costs))
        return rows

    def blocks(self) -> list[Block]:
        """The details of all students."""
        return [block for student in self.students for block in student_blocks(student)]

    def sensitivities(self) -> list[Block]:
        """What the layers suffer, of students that were found for a budget."""
        return [block for block in self.blocks() if block.title.endswith(": sensitivity")]

    def remarks(self) -> list[str]:
        """What a reader should know before trusting the table."""
        real, latency = self.data["real_data"], []
        for s in self.students:
            if (
                s["macs"] < self.data["teacher"]["macs"]
                and s["latency_ms"] > 0.97 * s["teacher_latency_ms"]
            ):
                latency.append(s["name"])
        used = (
            f"{real['count']} real images, from {real['samples']}"
            if real["training"] == "samples"
            else "no real image"
        )
        remarks = [
            f"Training used {used}.",
            f"Accuracy was measured on {real['evaluation']}, read after the last weight was fixed."
            if real["evaluation"] != "none"
            else "No real data was given to measure accuracy; agreement with the teacher on "
            "synthetic images is all the evidence there is, and often higher than on real ones.",
        ]
        worse = [s["name"] for s in self.students if _is_worse(s)]
        if worse:
            remarks.append(
                f"Student {', '.join(worse)}: distillation made it worse than compression alone on "
                "the evaluation data; the synthetic images do not suit this teacher. Take the one "
                "of freiakd compress, or give a few real images with --samples."
            )
        if latency:
            remarks.append(
                f"Student {', '.join(latency)}: fewer MACs did not make it faster on this machine "
                "at batch 1; its layers are too small for that."
            )
        for stage, health in self.data["synthesizer"]["health"].items():
            remarks += [f"{stage}: {warning}" for warning in health["warnings"]]
        for name, count in self.data["synthesizer"]["distinct"].items():
            if count is not None:
                remarks.append(f"{name} made {count:,} different inputs, which are repeated.")
        if any(s["agreement"] < 0.8 for s in self.students):
            remarks.append(
                "A student agrees with its teacher on fewer than 80 % of the synthetic images: "
                "choose a larger student or a longer preset."
            )
        return remarks


def _untrained(student: dict[str, Any]) -> str:
    """What a student is called before any training."""
    methods = student["recipe"]["methods"]
    return "Tucker only" if methods == ["tucker"] else "untrained"


def _is_worse(student: dict[str, Any]) -> bool:
    before, after = student["accuracy_before"], student["accuracy"]
    return before is not None and after < before


def write_report(run: Run, data: dict[str, Any]) -> Report:
    """Draws the curves and writes `report.json`, `report.md` and `report.html`."""
    report = Report(run.folder, data)
    draw_curves(run / "curves.png", run.metrics())
    write_json(run / "report.json", data)
    write_text(run / "report.md", _markdown(report))
    write_text(run / "report.html", _html(report))
    return report


def read_report(folder: str | os.PathLike[str]) -> Report:
    """The report of a finished run.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    path = Path(folder) / "report.json"
    try:
        return Report(Path(folder), json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Expected the report of a run in {path}; {error}.") from error


def _markdown(report: Report) -> str:
    lines = [f"# {report.data['teacher']['arch']} distilled without its data", ""]
    lines += _markdown_table(report.table())
    lines += [*[f"- {remark}" for remark in report.remarks()], ""]
    for block in report.blocks():
        lines += [f"## {block.title}", "", *_markdown_table(block.rows)]
        lines += [*[f"- {remark}" for remark in block.remarks], ""] if block.remarks else []
    for name in ("sensitivity.png", "synthetic.png", "curves.png"):
        if (report.folder / name).exists():
            lines += [f"![{name}]({name})", ""]
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in report.data["seconds"].items())
    lines += [f"Time: {seconds}. Seed {report.data['seed']}.", ""]
    return "\n".join(lines)


def _markdown_table(rows: Rows) -> list[str]:
    header, *rest = [[cell.replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rest), ""]


def _html(report: Report) -> str:
    from jinja2 import Environment, PackageLoader

    def picture(name: str) -> str | None:
        path = report.folder / name
        if not path.exists():
            return None
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

    template = Environment(loader=PackageLoader("freia_kd.runs", "."), autoescape=True)
    header, *rows = report.table()
    return template.get_template("report.html").render(
        data=report.data,
        header=header,
        rows=rows,
        remarks=report.remarks(),
        blocks=report.blocks(),
        sensitivity=picture("sensitivity.png"),
        synthetic=picture("synthetic.png"),
        curves=picture("curves.png"),
        options=json.dumps(report.data["options"], indent=2),
    )
