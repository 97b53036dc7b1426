"""The paper's figures 3 and 4, in miniature."""

import re

import pytest
import torch
from PIL import Image

from freia_kd.data.datasets import LabelledData
from freia_kd.domain import Domain
from freia_kd.errors import UsageError
from freia_kd.experiments import figures
from freia_kd.experiments.figures import CELL, GAMMAS, HEADER, MARGIN, TITLE, measure
from freia_kd.runs.lock import locked
from freia_kd.synthesizers.bdnf import BDNF
from freia_kd.teachers import Teacher
from freia_kd.training import Progress


def size(rows, titles, columns=10):
    return MARGIN + CELL * columns, 2 * TITLE + CELL * rows + TITLE * titles


def test_figure_3_paints_three_flows(tmp_path):
    made = figures.figure3("digits", out=tmp_path, epochs=1, steps=1)
    assert made.picture == str(tmp_path / "figure3-digits.png")
    assert made.rows == ()
    with Image.open(made.picture) as picture:
        assert picture.size == size(6, 0)


@pytest.mark.slow
def test_it_begins_with_its_folder_and_what_is_left_to_train(tmp_path):
    class Notes(Progress):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    first, again, more = Notes(), Notes(), Notes()
    options = {"out": tmp_path, "epochs": 1, "steps": 3}
    figures.figure3("digits", **options, progress=first)
    assert first.notes[0] == f"Run: {tmp_path}"
    assert re.fullmatch(
        r"Plan: 3 flows of 3 steps; left are teacher .* s, flows .* s\.", first.notes[1]
    )
    figures.figure3("digits", **options, progress=again)
    assert again.notes == [f"Run: {tmp_path}"]
    figures.figure4("digits", **options, gammas=[0.5], progress=more)  # one is new, one is there
    assert re.fullmatch(r"Plan: 2 flows of 3 steps; left are flows .* s\.", more.notes[1])


def test_a_flow_that_memory_cannot_hold_is_refused_before_the_teacher_is_trained(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(figures, "fits_memory", lambda *a: False)
    monkeypatch.setattr(figures, "train_new", None)  # must not be called
    with pytest.raises(UsageError, match="The stage flows needs more memory than"):
        figures.figure3("digits", out=tmp_path / "out", epochs=1)
    assert not (tmp_path / "out").exists()


def test_two_processes_do_not_paint_in_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(UsageError, match="Another process works on the run in"):
        figures.figure3("digits", out=tmp_path, epochs=1, steps=1)


@pytest.mark.parametrize("as_published", [False, True])
def test_the_heading_says_what_was_painted(as_published, tmp_path, monkeypatch):
    headings = []
    monkeypatch.setattr(figures, "plot", lambda path, heading, panels: headings.append(heading))
    monkeypatch.setattr(figures.Studio, "plan", lambda *a: [])
    figures.figure3("digits", out=tmp_path, epochs=1, steps=1, as_published=as_published)
    made = "as published (white base, no prior)" if as_published else "today's default"
    assert headings == [f"digits, lenet5: {made}, flows of 1 steps"]


@pytest.mark.slow
def test_figure_4_is_painted_and_measured_and_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(figures.Studio, "plan", lambda *a: [])  # which takes steps too
    common = {"out": tmp_path, "epochs": 1, "steps": 1, "as_published": True}
    made = figures.figure4("digits", **common)
    assert made.picture == str(tmp_path / "figure4-digits-as-published.png")
    assert made.header == HEADER
    assert [row[0] for row in made.rows] == [*map(str, GAMMAS), "0"]
    with Image.open(made.picture) as picture:
        assert picture.size == size(1 + 2 * 4, 4)
    monkeypatch.setattr(figures, "train_new", None)  # must not be called again
    steps = []
    loss = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda *a, **k: steps.append(1) or loss(*a, **k))
    assert figures.figure4("digits", **common) == made
    assert not steps
    assert len(figures.figure4("digits", gammas=[0.5], **common).rows) == 2
    assert len(steps) == 1  # without samples the flow is the same


@pytest.mark.slow
def test_as_published_is_the_papers_flow_and_the_default_ours(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(figures.Studio, "plan", lambda *a: [])
    fit = BDNF.fit
    monkeypatch.setattr(BDNF, "fit", lambda self, *a: seen.append(self.options) or fit(self, *a))
    for as_published in (False, True):
        figures.figure4(
            "digits", out=tmp_path, epochs=1, steps=1, gammas=[0.1], as_published=as_published
        )
    assert [(o.base, o.prior, o.gamma) for o in seen] == [
        ("spectral", True, 0.1), ("spectral", True, 0.0),
        ("gaussian", False, 0.1), ("gaussian", False, 0.0),
    ]  # fmt: skip


class Painter:
    """Paints given images, with the noise asked for."""

    def __init__(self, images, noise):
        self.images, self.noise = images, noise

    def sample(self, n, labels, generator):
        noise = torch.randn(n, *self.images.shape[1:], generator=generator)
        return self.images[labels] + self.noise * noise, labels


def test_measures_tell_copies_from_others():
    domain = Domain((1, 2, 5), 10)
    net = torch.nn.Flatten()  # the class is the brightest pixel
    teacher = Teacher(net, domain, "brightest")
    images = torch.eye(10).view(10, 1, 2, 5)
    samples = LabelledData(images, torch.arange(10), "ten")
    copies = measure(Painter(images, 0.0), teacher, samples)
    assert copies == ("100 %", "0.000", "100 %", "100 %", "0.000")
    others = measure(Painter(images.roll(1, 0), 0.0), teacher, samples)
    assert others == ("0 %", "0.200", "0 %", "0 %", "0.000")
    # Two independent draws of noise 0.2 are 2 * 0.2^2 apart, the sample and a draw 0.2^2.
    _, distance, _, _, variety = measure(Painter(images, 0.2), teacher, samples)
    assert abs(float(distance) - 0.04) < 0.003
    assert abs(float(variety) - 0.08) < 0.005
