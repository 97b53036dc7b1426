"""The comparison for scripts (JSON), for reading (Markdown) and for showing (HTML, a plot)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from ..files import write_json, write_text
from ..runs.pictures import draw_figure
from .cells import NONE, REFERENCE, Cell
from .evidence import Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Accuracies = Mapping[tuple[str, int, str], float | None]  # by method, seed and student
LEAST = 0.05  # what there must be to recover; of less, seeds differ by too large a share

# Where a name may stand beside its point, the best places first: points to the right and up.
NEAR = [(x, y) for y in (7, -7, 0, 16, -16, 25, -25) for x in (6, -6)]


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
    header += [f"{title},\nstudent {name}" for key, title in shown for name in students]
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
        "All but seconds and images in %, mean ± standard deviation over seeds (of the bootstrap "
        "for the independent agreement)."
    )
    said.append(
        "Agreement, independent: with the teacher, on held-out inputs of methods of other "
        "families, adjusted for which judges a method had. It alone names the winner."
    )
    if data["evaluation"]:
        said.append(
            f"Accuracy was measured on {data['evaluation']}, after the last weight was fixed, and "
            "decides nothing."
        )
    if data["conditions"].get("reference"):
        said.append(
            f"Recovery: (student - compressed) / (on {data['conditions']['reference']} - "
            f"compressed), where that is {100 * LEAST:.0f} points or more."
        )
    said += [f"Failed: {title}: {error}" for title, error in data["failed"].items()]
    said += [f"Left out: {name} {reason}." for name, reason in data["refused"].items()]
    return said


def write_comparison(folder: Path, data: dict[str, Any]) -> None:
    """Writes `compare.json`, `compare.md`, `compare.html` and the plot `compare.png`."""
    write_json(folder / "compare.json", data)
    draw_figure(folder / "compare.png", plot_comparison(data["rows"]))
    write_text(folder / "compare.md", _markdown(data))
    write_text(folder / "compare.html", _html(folder, data))


def plot_comparison(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The independent agreement of each method against the time that it took."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    judged = [row for row in rows if row["independent"] is not None]
    methods = [row for row in judged if row["method"] != NONE]
    for row in methods:
        level, error = (100 * row["independent"][k] for k in ("mean", "std"))
        axes.errorbar(row["seconds"]["mean"] / 60, level, error, fmt="o", capsize=3)
    for row in judged:
        if row["method"] == NONE and methods:
            _draw_baseline(axes, 100 * row["independent"]["mean"])
    axes.set_xlabel("minutes for all students of one seed")
    axes.set_ylabel("agreement with the teacher on independent inputs (%)")
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    if not methods:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(
            0.5,
            0.5,
            "No method was judged by another.",
            transform=axes.transAxes,
            ha="center",
            va="center",
        )
    _name_points(figure, axes, methods)
    return figure


def _draw_baseline(axes: Axes, level: float) -> None:
    axes.axhline(level, color="0.6", linestyle="--", linewidth=1)
    axes.annotate(
        NONE,
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 0),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize="small",
        color="0.4",
    )


def _name_points(figure: Figure, axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes each method beside its point, where it best keeps clear of the other marks."""
    from matplotlib.transforms import Bbox

    figure.canvas.draw()  # only now is it known where everything is, and there it has to stay
    figure.set_layout_engine("none")
    points = [(r["seconds"]["mean"] / 60, 100 * r["independent"]["mean"]) for r in rows]
    spots = [axes.transData.transform(point) for point in points]
    texts = [text.get_window_extent() for text in axes.texts]
    marks = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in spots]
    bars = [line.get_window_extent() for line in axes.collections]
    for row, point, own in zip(rows, points, marks, strict=True):
        tried: list[tuple[int, int, Annotation]] = []
        for right, up in NEAR:
            label = axes.annotate(
                row["method"],
                point,
                xytext=(right, up),
                textcoords="offset points",
                ha="left" if right > 0 else "right",
                va="center",
                fontsize="small",
            )
            box = label.get_window_extent()
            hidden = box.count_overlaps([*texts, *(m for m in marks if m is not own)])
            outside = box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1
            tried.append((100 * (hidden + outside) + box.count_overlaps(bars), len(tried), label))
        best = min(tried)[2]
        for _, _, label in tried:
            if label is not best:
                label.remove()
        texts.append(best.get_window_extent())


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
