"""The pictures of reports. Figures belong to no window; :func:`write_png` writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..compression.comparison import Comparison as CostComparison
from ..files import atomic
from .schema import MethodRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from PIL.Image import Image

DPI = 110
COLUMNS = 2  # of curves side by side

# Where a name may stand beside its point, the best places first: points to the right and up.
NEAR = [(x, y) for y in (7, -7, 0, 16, -16, 25, -25) for x in (6, -6)]


def write_png(path: str | os.PathLike[str], picture: Figure | Image) -> None:
    """Writes a picture atomically."""
    with atomic(path) as temporary:
        if hasattr(picture, "savefig"):
            picture.savefig(temporary, format="png", dpi=DPI)
        else:
            picture.save(temporary, format="PNG")


def plot_grid(images: Tensor, classes: Sequence[object], scale: int = 2) -> Image:
    """One row of images for each class, its number or name to the left.

    Arguments:
        images: Images with shape `(rows * columns, C, H, W)` in [0, 1], row by row. Other than 1
            or 3 channels are averaged to grey.
        classes: The class of each row.
        scale: How many pixels of the picture an image's pixel takes, each way.

    Raises:
        ValueError: If the images do not fill that many rows.
    """
    from PIL import Image as Images
    from PIL import ImageDraw
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    if not classes or len(images) == 0 or len(images) % len(classes):
        raise ValueError(
            f"Expected equally many images for each of {len(classes)} classes; got {len(images)}."
        )
    images = images.detach().cpu()
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(images, nrow=len(images) // len(classes), padding=2, pad_value=0.5)
    names = [str(name) for name in classes]
    margin = 8 + max(round(ImageDraw.Draw(Images.new("L", (1, 1))).textlength(n)) for n in names)
    picture = Images.new("RGB", (grid.shape[2] + margin, grid.shape[1]), "white")
    picture.paste(to_pil_image(grid), (margin, 0))
    draw, step = ImageDraw.Draw(picture), images.shape[2] + 2
    for row, name in enumerate(names):
        middle = (margin - 4, 1 + row * step + step // 2)
        draw.text(middle, name, fill="black", anchor="rm" if _has_anchors() else None)
    return picture


def _has_anchors() -> bool:
    """Whether Pillow's own font can be set from the middle of its right side."""
    from PIL import ImageFont

    return isinstance(ImageFont.load_default(), ImageFont.FreeTypeFont)


def plot_curves(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss terms of every stage over its steps; agreement has an axis of its own.

    Arguments:
        metrics: The lines of a run's metrics, at least one.
    """
    stages = list(dict.fromkeys(m["stage"] for m in metrics))
    rows = -(-len(stages) // COLUMNS)
    columns = min(len(stages), COLUMNS)
    figure = _figure(3.8 * columns, 2.9 * rows)
    plots = [*figure.subplots(rows, columns, squeeze=False).flat]
    for axes, stage in zip(plots, stages, strict=False):
        _plot_stage(axes, stage, [m for m in metrics if m["stage"] == stage])
    for axes in plots[len(stages) :]:
        axes.set_visible(False)
    return figure


def _plot_stage(axes: Axes, stage: str, lines: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(k for m in lines for k in m if k not in ("stage", "step")))
    losses = [name for name in names if name != "agreement"]
    for name in losses:
        points = [(m["step"], m[name]) for m in lines if name in m]
        axes.plot(*zip(*points, strict=True), label=name, lw=1)
    axes.set(title=stage, xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if losses == ["loss"] and all(m["loss"] > 0 for m in lines if "loss" in m):
        axes.set_yscale("log")
    elif losses:
        axes.legend(fontsize="small")
    if "agreement" in names:
        other = axes.twinx()
        points = [(m["step"], 100 * m["agreement"]) for m in lines if "agreement" in m]
        other.plot(*zip(*points, strict=True), "k.--", lw=1)
        other.set_ylabel("agreement (%), dashed")


def plot_sensitivity(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Agreement against the share of a layer's weights that is left, one line for each layer.

    Arguments:
        rows: The entry `"sensitivity"` of a search, with `name`, `share` and `agreement` each.
    """
    figure = _figure(7, 4)
    axes = figure.subplots()
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        shares, agreements = [r["share"] for r in own], [100 * r["agreement"] for r in own]
        axes.plot(shares, agreements, ".-", label=name)
    axes.set_xlabel("share of the weights left, in one layer at a time")
    axes.set_ylabel("agreement with the teacher (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2)
    return figure


def plot_costs(costs: CostComparison) -> Figure:
    """Bars for what each compressed layer costs, before and after."""
    names = [layer.name for layer in costs.layers]
    figure = _figure(9, 1.2 + 0.42 * max(len(names), 1))
    values: dict[str, list[tuple[float, ...]]] = {
        "parameters": [layer.parameters for layer in costs.layers],
        "MACs for one input": [layer.macs for layer in costs.layers],
        "latency alone (ms)": [tuple(t.median for t in layer.latency) for layer in costs.layers],
    }
    plots = [*figure.subplots(1, len(values), sharey=True, squeeze=False).flat]
    for axes, (title, pairs) in zip(plots, values.items(), strict=True):
        for side, (label, colour) in enumerate((("before", "0.7"), ("after", "C0"))):
            places = [row + 0.4 * side for row in range(len(names))]
            axes.barh(places, [pair[side] for pair in pairs], 0.38, label=label, color=colour)
        axes.set_title(title, fontsize="medium")
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
        axes.grid(axis="x", alpha=0.3)
    plots[0].set_yticks([row + 0.2 for row in range(len(names))], names, fontsize="small")
    plots[0].invert_yaxis()
    bars = plots[-1].get_legend_handles_labels()
    figure.legend(*bars, loc="outside right upper", fontsize="small")  # over no bar
    return figure


def plot_comparison(rows: Sequence[MethodRow]) -> Figure:
    """The independent agreement of each method against the time that it took."""
    figure = _figure(8, 5)
    axes = figure.subplots()
    points: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row.independent is None:
            continue
        level = 100 * row.independent.mean
        if row.kind == "baseline":
            _plot_baseline(axes, row.method, level)
        else:
            points[row.method] = (row.seconds.mean / 60, level)
            error = 100 * (row.independent.std or 0)
            axes.errorbar(*points[row.method], error, fmt="o", capsize=3)
    axes.set_xlabel("minutes for all students of one seed")
    axes.set_ylabel("agreement with the teacher on independent inputs (%)")
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    if not points:
        for text in [*axes.texts]:
            text.remove()
        axes.set(xticks=[], yticks=[])
        said = "No method was judged by another."
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center")
    _name_points(figure, axes, points)
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, on a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plot_baseline(axes: Axes, name: str, level: float) -> None:
    axes.axhline(level, color="0.6", linestyle="--", linewidth=1)
    axes.annotate(
        name,
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 0),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize="small",
        color="0.4",
    )


def _name_points(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Writes each name beside its point, where it best keeps clear of the other marks."""
    from matplotlib.transforms import Bbox

    figure.canvas.draw()  # only now is it known where everything is, and there it has to stay
    figure.set_layout_engine("none")
    spots = [axes.transData.transform(point) for point in points.values()]
    texts = [text.get_window_extent() for text in axes.texts]
    marks = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in spots]
    bars = [line.get_window_extent() for line in axes.collections]
    for (name, point), own in zip(points.items(), marks, strict=True):
        tried: list[tuple[int, int, Annotation]] = []
        for right, up in NEAR:
            label = axes.annotate(
                name,
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
