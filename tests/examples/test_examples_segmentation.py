import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "segmentation.py"


def test_it_reports_the_student_before_and_after(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--steps", "2", "--rounds", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    found = re.search(r"student (0\.\d+) before, (0\.\d+) after the game", capsys.readouterr().out)
    assert all(0 <= float(value) <= 1 for value in found.groups())


def test_shapes_are_where_the_labels_are():
    draw = runpy.run_path(str(EXAMPLE))["draw"]
    x, y = draw(50, torch.Generator().manual_seed(0))
    assert x.shape == (50, 1, 20, 20)
    assert x[:, 0][y > 0].mean() == pytest.approx(0.7, abs=0.02)
    assert x[:, 0][y == 0].mean() == pytest.approx(0.3, abs=0.02)
    assert (y == 2).sum((1, 2)).tolist() == [49] * 50  # pixels within 4 of a centre
    assert (y == 1).sum((1, 2)).max() == 49  # 7 x 7, where the disc does not lie on it


def test_mean_iou_by_hand():
    mean_iou = runpy.run_path(str(EXAMPLE))["mean_iou"]
    seen, y = torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[0, 1], [1, 2]]])
    expected = np.mean([1 / 1, 1 / 2, 1 / 2])
    logits = torch.nn.functional.one_hot(seen, 3).permute(0, 3, 1, 2).float()
    assert mean_iou(lambda x: logits, None, y) == pytest.approx(expected)
