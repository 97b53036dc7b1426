"""The paper's figures 3 and 4, in miniature."""

import runpy
import sys
from pathlib import Path

import torch
from PIL import Image

from freia_kd.data.datasets import LabelledData
from freia_kd.domain import Domain
from freia_kd.teachers import Teacher

SCRIPT = str(Path(__file__).parents[2] / "benchmarks" / "figures.py")


def test_figure_4_is_drawn_and_measured(monkeypatch, capsys, tmp_path):
    options = ["4", "--data", "digits", "--epochs", "1", "--steps", "2", "--gammas", "0.1"]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *options, "--out", str(tmp_path)])
    runpy.run_path(SCRIPT, run_name="__main__")
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| 0")]
    assert [row.split()[1] for row in rows] == ["0.1", "0"]
    with Image.open(tmp_path / "figure4-digits.png") as picture:
        assert picture.size == (110 + 10 * 66, 7 * 66 + 2 * 22)


class Painter:
    """Paints given images, with the noise asked for."""

    def __init__(self, images, noise):
        self.images, self.noise = images, noise

    def sample(self, n, labels, generator):
        noise = torch.randn(n, *self.images.shape[1:], generator=generator)
        return self.images[labels] + self.noise * noise, labels


def test_measures_tell_copies_from_others():
    figures = runpy.run_path(SCRIPT)
    domain = Domain((1, 2, 5), 10)
    net = torch.nn.Flatten()  # the class is the brightest pixel
    teacher = Teacher(net, domain, "brightest")
    images = torch.eye(10).view(10, 1, 2, 5)
    samples = LabelledData(images, torch.arange(10), "ten")
    copies = figures["measure"](Painter(images, 0.0), teacher, samples)
    assert copies == ("100 %", "0.000", "100 %", "100 %", "0.000")
    others = figures["measure"](Painter(images.roll(1, 0), 0.0), teacher, samples)
    assert others == ("0 %", "0.200", "0 %", "0 %", "0.000")
    # Two independent draws of noise 0.2 are 2 * 0.2^2 apart, the sample and a draw 0.2^2.
    _, distance, _, _, variety = figures["measure"](Painter(images, 0.2), teacher, samples)
    assert abs(float(distance) - 0.04) < 0.003
    assert abs(float(variety) - 0.08) < 0.005
