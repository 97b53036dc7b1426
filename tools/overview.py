"""The picture of the README, from a results file: `python tools/overview.py`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STUDENT, CELL, ROWS, COLUMNS = "2", 66, (0, 2, 3, 4, 6, 9), 6
INK, ACCENT, PAPER = "#1f2933", "#00796b", "white"


def main() -> None:
    """Writes `docs/assets/overview.png`."""
    seeds = json.loads((RESULTS / "mnist-lenet5-standard.json").read_text("utf-8"))["seeds"]
    students = [seed["students"][STUDENT] for seed in seeds]

    def percent(name: str) -> str:
        return f"{100 * mean(s[name] for s in students):.1f} %"

    teacher = f"{100 * mean(s['teacher'] for s in seeds):.1f} %"
    share = f"1/{mean(s['compression'] for s in students):.1f} of the weights"
    figure = Figure(figsize=(8.4, 2.7), dpi=120, facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 8.4), ylim=(0, 2.7))
    axes.axis("off")
    box(axes, 1.1, "teacher", ["LeNet5 for MNIST", teacher])
    box(
        axes, 7.3, "student", [share, f"{percent('tucker_only')} as compressed", percent("student")]
    )
    grid = matplotlib.image.imread(RESULTS / "mnist-synthetic.png")
    picture = figure.add_axes((3.2 / 8.4, 0.3 / 2.7, 2.0 / 8.4, 2.0 / 2.7))
    rows = [grid[CELL * r : CELL * (r + 1), : CELL * COLUMNS] for r in ROWS]
    picture.imshow(np.concatenate(rows), cmap="gray", interpolation="nearest")
    picture.axis("off")
    axes.text(4.2, 2.45, "inputs that the teacher asks for", ha="center", color=INK)
    axes.text(4.2, 0.1, "no training data", ha="center", color=ACCENT, weight="bold")
    for start, end in ((2.15, 3.1), (5.3, 6.2)):
        axes.annotate(
            "", (end, 1.3), (start, 1.3), arrowprops={"arrowstyle": "-|>", "lw": 2, "color": ACCENT}
        )
    figure.savefig(ROOT / "docs" / "assets" / "overview.png")


def box(axes: Axes, x: float, title: str, lines: list[str]) -> None:
    """A net, by what is known of it; the last line is what counts."""
    axes.text(x, 2.0, title, ha="center", color=INK, size=14, weight="bold")
    for i, line in enumerate(lines):
        last = i == len(lines) - 1
        axes.text(
            x,
            1.6 - 0.32 * i - 0.15 * last,
            line,
            ha="center",
            color=ACCENT if last else INK,
            size=17 if last else 10.5,
            weight="bold" if last else "normal",
        )


if __name__ == "__main__":
    main()
