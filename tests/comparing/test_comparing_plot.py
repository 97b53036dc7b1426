"""The comparison's plot: every name can be read."""

import itertools

from freia_kd.compare.cells import NONE
from freia_kd.compare.report import plot_comparison

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
    NONE: (0.0, 0.31),
}


def row(method, minutes, level):
    independent = None if level is None else {"mean": level, "std": 0.07}
    return {"method": method, "seconds": {"mean": 60 * minutes}, "independent": independent}


def names(figure):
    figure.canvas.draw()
    return {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}


def test_no_name_hides_another_or_leaves_the_plot():
    figure = plot_comparison([row(name, *values) for name, values in CLOSE.items()])
    boxes = names(figure)
    assert set(boxes) == set(CLOSE)
    for one, other in itertools.combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other]), (one, other)
    frame = figure.axes[0].bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes.values())


def test_without_judges_it_says_so():
    figure = plot_comparison([row(NONE, 0, 0.3), row("uniform", 1, None)])
    assert list(names(figure)) == ["No method was judged by another."]
