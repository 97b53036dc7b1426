"""The comparison for scripts (JSON), for reading (Markdown) and for showing (HTML, a plot)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..files import atomic, write_json, write_text
from .cells import NONE, REFERENCE, Cell
from .evidence import Ranking

Accuracies = Mapping[tuple[str, int, str], float | None]  # by method, seed and student
LEAST = 0.01  # what there must be to recover, before a recovery means anything


def summarise(
    cells: Sequence[Cell], ranking: Ranking | None, accuracies: Accuracies
) -> list[dict[str, Any]]:
    """One row for each method: means over seeds and their spread, the best first."""
    scores = {} if ranking is None else ranking.scores
    methods = list(dict.fromkeys(cell.method for cell in cells))
    ordered = sorted(methods, key=lambda m: (m == REFERENCE, -scores.get(m, -1)))
    return [_summary(m, [c for c in cells if c.method == m], ranking, accuracies) for m in ordered]


def _summary(
    method: str, cells: Sequence[Cell], ranking: Ranking | None, accuracies: Accuracies
) -> dict[str, Any]:
    results = [cell.result or {} for cell in cells]
    students = cells[0].students

    def over_seeds(value: Callable[[Cell, str], float | None]) -> dict[str, Any]:
        return {name: spread([value(cell, name) for cell in cells]) for name in students}

    def own(cell: Cell, name: str) -> float | None:
        return (cell.result or {})["students"][name]["agreement"]

    def right(cell: Cell, name: str) -> float | None:
        return accuracies.get((method, cell.seed, name))

    def recovery(cell: Cell, name: str) -> float | None:
        low, high = (accuracies.get((m, cell.seed, name)) for m in (NONE, REFERENCE))
        value = right(cell, name)
        if low is None or high is None or value is None or high - low < LEAST:
            return None
        return None if method in (NONE, REFERENCE) else (value - low) / (high - low)

    return {
        "method": method,
        "seeds": len(cells),
        "independent": None
        if ranking is None or method not in ranking.scores
        else {"mean": ranking.scores[method], "std": ranking.spread[method]},
        "own": over_seeds(own),
        "accuracy": over_seeds(right),
        "recovery": over_seeds(recovery),
        "seconds": spread([r["seconds"] for r in results]),
        "images": 0 if method == NONE else max(r["images"] for r in results),
        "warnings": sorted({w for r in results for w in r["warnings"]}),
    }


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and standard deviation of the values that there are; `None` if there are none."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    return {"mean": mean(known), "std": stdev(known) if len(known) > 1 else 0.0}


def table(data: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table as text, the first of which is the header."""
    rows = data["rows"]
    students = list(rows[0]["own"])
    columns = [("accuracy", "accuracy"), ("recovery", "recovery"), ("own", "own agreement")]
    shown = [(k, t) for k, t in columns if any(v for row in rows for v in row[k].values())]
    header = ["method", "agreement,\nindependent"]
    header += [f"{title},\n{name}" for key, title in shown for name in students]
    header += ["seconds", "images"]
    lines = [header]
    for row in rows:
        cells = [row["method"], _percent(row["independent"])]
        cells += [_percent(row[key][name]) for key, _ in shown for name in students]
        seconds = row["seconds"]["mean"] if row["method"] != NONE else 0
        lines.append([*cells, f"{seconds:.0f}" if seconds else "", _count(row["images"])])
    return lines


def _percent(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}"


def _count(images: int) -> str:
    return f"{images:,}" if images else ""


def remarks(data: Mapping[str, Any]) -> list[str]:
    """What a reader should know."""
    said = []
    ranking = data["ranking"]
    if ranking is None:
        said.append("No method was judged by another, so no winner is named; compare several.")
    elif ranking["winner"] == NONE:
        said.append(f"{ranking['sentence']} No method helped: leave the students as compressed.")
    else:
        said.append(ranking["sentence"])
    said.append(
        "Agreement, independent: with the teacher, on held-out inputs of methods of other "
        "families, adjusted for which judges a method had. It alone names the winner."
    )
    if data["evaluation"]:
        said.append(
            f"Accuracy was measured on {data['evaluation']}, after the last weight was fixed, and "
            "decides nothing."
        )
    said += [f"Failed: {title}: {error}" for title, error in data["failed"].items()]
    said += [f"Left out: {name} {reason}." for name, reason in data["refused"].items()]
    return said


def write_comparison(folder: Path, data: dict[str, Any]) -> None:
    """Writes `compare.json`, `compare.md`, `compare.html` and the plot `compare.png`."""
    write_json(folder / "compare.json", data)
    draw_comparison(folder / "compare.png", data["rows"])
    write_text(folder / "compare.md", _markdown(data))
    write_text(folder / "compare.html", _html(folder, data))


def draw_comparison(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plots the independent agreement of each method against the time that it took."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row["independent"] is None:
            continue
        level, error = (100 * row["independent"][k] for k in ("mean", "std"))
        if row["method"] == NONE:
            axes.axhline(level, color="0.6", linestyle="--", linewidth=1)
            axes.annotate(
                NONE,
                (1, level),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize="small",
                color="0.4",
            )
            continue
        minutes = row["seconds"]["mean"] / 60
        axes.errorbar(minutes, level, error, fmt="o", capsize=3)
        axes.annotate(
            row["method"],
            (minutes, level),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize="small",
        )
    axes.set_xlabel("minutes for all students of one seed")
    axes.set_ylabel("agreement with the teacher on independent inputs (%)")
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _markdown(data: Mapping[str, Any]) -> str:
    header, *rows = table(data)
    header = [cell.replace("\n", " ") for cell in header]
    lines = [f"# Methods compared on a {data['teacher']['arch']}", ""]
    lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *[f"- {remark}" for remark in remarks(data)], "", "![plot](compare.png)", ""]
    return "\n".join(lines)


def _html(folder: Path, data: Mapping[str, Any]) -> str:
    import json

    from jinja2 import Environment, PackageLoader

    pictures = sorted((folder / "cells").glob("*-0/synthetic*.png"))
    template = Environment(loader=PackageLoader("freia_kd.compare", "."), autoescape=True)
    header, *rows = table(data)
    return template.get_template("compare.html").render(
        data=data,
        header=header,
        rows=rows,
        remarks=remarks(data),
        plot=_embed(folder / "compare.png"),
        pictures=[(path.parent.name.removesuffix("-0"), _embed(path)) for path in pictures],
        conditions=json.dumps(data["conditions"], indent=2),
    )


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
