"""Pictures of reports: every name can be read, every class and stage is there."""

import itertools

import pytest
import torch
from report_cases import SEARCH, costs, row

from freia_kd.report.plots import (
    plot_comparison,
    plot_costs,
    plot_curves,
    plot_grid,
    plot_sensitivity,
    write_png,
)

BASELINE = "compression only"
# Methods with their minutes and agreements, close together as they were for a ResNet14.
CLOSE = {
    "bdnf": (2.6, 0.64),
    "bdnf(samples)": (1.2, 0.62),
    "kw-inception": (1.6, 0.615),
    "deepinversion": (2.0, 0.59),
    "kw-mixture": (2.1, 0.585),
    "kw-bns": (2.1, 0.54),
    "adaptive-deepinversion": (1.7, 0.50),
    "spectral": (1.65, 0.49),
    "a_package.of.somebody:Synthesizer": (5.7, 0.49),
    BASELINE: (0.0, 0.31),
}


def made(name, minutes, level):
    kind = "baseline" if name == BASELINE else "method"
    return row(name, level, minutes, kind, std=0.07)


def names(figure):
    figure.canvas.draw()
    return {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}


def test_no_name_hides_another_or_leaves_the_plot():
    figure = plot_comparison([made(name, *values) for name, values in CLOSE.items()])
    boxes = names(figure)
    assert set(boxes) == set(CLOSE)
    for one, other in itertools.combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other]), (one, other)
    frame = figure.axes[0].bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes.values())


def test_without_judges_it_says_so():
    figure = plot_comparison([made(BASELINE, 0, 0.3), made("uniform", 1, None)])
    assert list(names(figure)) == ["No method was judged by another."]


@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "RGB"), (5, "RGB")])
def test_the_grid_has_its_classes_at_the_left(channels, mode, tmp_path):
    images = torch.zeros(20, channels, 28, 28)
    images[:10] = 1
    picture = plot_grid(images, ["3", "cat"], scale=2)
    assert picture.mode == mode
    assert picture.height == 2 + 2 * 58
    margin = picture.width - (2 + 10 * 58)
    assert margin > 10
    assert picture.getpixel((margin + 30, 30)) == (255, 255, 255)
    assert picture.getpixel((margin + 30, 90)) == (0, 0, 0)
    for top in (0, 60):  # a name in each row
        assert min(picture.convert("L").crop((0, top, margin, top + 58)).tobytes()) < 128
    write_png(tmp_path / "grid.png", picture)
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_the_grid_refuses_uneven_rows():
    with pytest.raises(ValueError, match="3 classes; got 10"):
        plot_grid(torch.rand(10, 1, 8, 8), range(3))


def test_curves_have_every_term_and_agreement_on_an_axis_of_its_own(tmp_path):
    lines = [{"stage": "fit", "step": s, "loss": -1.0, "cls": 0.5} for s in (1, 2)]
    lines += [{"stage": "student-1", "step": s, "loss": 0.5 / s} for s in (1, 2)]
    lines += [{"stage": "student-1", "step": 2, "loss": 0.2, "agreement": 0.9}]
    lines += [{"stage": "third", "step": 1, "loss": 0.0}]
    figure = plot_curves(lines)
    shown = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert {"fit", "student-1", "third"} <= set(shown)
    assert [line.get_label() for line in shown["fit"].lines] == ["loss", "cls"]
    assert shown["student-1"].get_yscale() == "log"
    assert shown["third"].get_yscale() == "linear"
    (agreement,) = (axes for axes in figure.axes if "agreement" in axes.get_ylabel())
    assert list(agreement.lines[0].get_ydata()) == [90.0]
    write_png(tmp_path / "curves.png", figure)
    assert (tmp_path / "curves.png").stat().st_size > 1_000


def test_costs_are_bars_before_and_after():
    figure = plot_costs(costs())
    figure.canvas.draw()
    parameters = figure.axes[0]
    before, after = ([bar.get_width() for bar in bars] for bars in parameters.containers)
    assert (before, after) == ([2_416, 48_120], [600, 10_400])
    assert [text.get_text() for text in parameters.get_yticklabels()] == ["conv2", "fc1"]


def test_the_legend_of_the_costs_lies_over_no_bar():
    figure = plot_costs(costs())
    figure.canvas.draw()
    (legend,) = figure.legends
    of_legend = legend.get_window_extent()
    assert not any(axes.get_window_extent().overlaps(of_legend) for axes in figure.axes)


def test_sensitivity_is_a_line_for_each_layer():
    figure = plot_sensitivity(SEARCH["sensitivity"])
    figure.canvas.draw()
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["conv2", "fc1"]
    assert list(lines[0].get_ydata()) == pytest.approx([80, 65, 55])
