"""Pictures of a run: synthetic images by class, and the curves of the losses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_grid(path: str | os.PathLike[str], images: Tensor, rows: int, scale: int = 2) -> None:
    """Writes a PNG with one row of images for each class.

    Arguments:
        path: The file.
        images: Images with shape `(rows * columns, C, H, W)` in [0, 1], row by row. Other than 1
            or 3 channels are averaged to grey.
        rows: The number of rows.
        scale: How many pixels of the picture an image's pixel takes, each way.
    """
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    images = images.detach().cpu()
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(images, nrow=len(images) // rows, padding=2, pad_value=0.5)
    with atomic(path) as temporary:
        to_pil_image(grid).save(temporary, format="PNG")


def draw_curves(path: str | os.PathLike[str], metrics: Sequence[dict[str, Any]]) -> None:
    """Writes a PNG with the loss terms of every stage over its steps.

    Arguments:
        path: The file.
        metrics: The lines of a run's `metrics.jsonl`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(m["stage"] for m in metrics))
    if not stages:
        return
    figure = Figure(figsize=(4.2 * len(stages), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        lines = [m for m in metrics if m["stage"] == stage]
        names = [name for name in lines[0] if name not in ("stage", "step")]
        for name in names:
            points = [(m["step"], m[name]) for m in lines if name in m]
            axes.plot(*zip(*points, strict=True), label=name, lw=1)
        axes.set(title=stage, xlabel="step", ylabel="loss")
        spread = [abs(m["loss"]) for m in lines]
        if len(names) == 1 and min(spread) > 0:
            axes.set_yscale("log")
        else:
            axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    draw_figure(path, figure)


def draw_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Writes a matplotlib figure as a PNG."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
