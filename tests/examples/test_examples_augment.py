"""Data augmentation with regenerated images, in miniature."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "augment.py")


@pytest.mark.slow
def test_augment_reports_every_set_over_the_seeds(monkeypatch, capsys):
    options = ["--steps", "2", "--synthetic", "8", "--epochs", "2", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", [EXAMPLE, *options])
    with torch.random.fork_rng():
        runpy.run_path(EXAMPLE, run_name="__main__")
    table = capsys.readouterr().out
    found = re.findall(r"^([a-z' ]+?) +(\d+\.\d) ± \d+\.\d$", table, re.MULTILINE)
    assert [name for name, _ in found] == [
        "real images only",
        "and the flow's",
        "and labelled noise",
    ]
    assert all(0 <= float(accuracy) <= 100 for _, accuracy in found)
    assert "360 test digits" in table


def test_the_few_images_are_as_many_of_each_class():
    example = runpy.run_path(EXAMPLE)
    train = example["load_dataset"]("digits")
    few = example["pick"](train, 3, torch.Generator().manual_seed(0))
    other = example["pick"](train, 3, torch.Generator().manual_seed(1))
    assert few.labels.bincount().tolist() == [3] * 10
    assert not torch.equal(few.inputs, other.inputs)


@pytest.mark.parametrize("label", [2, 7])
def test_synthetic_images_are_learned_with_their_labels(label):
    """Were they left out, or other labels used, a classifier could not learn a class from them."""
    example = runpy.run_path(EXAMPLE)
    data, x = example["LabelledData"], torch.rand(1, 1, 32, 32)
    real = data(x, torch.tensor([0]), "real")
    synthetic = data(1 - x, torch.tensor([label]), "synthetic")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learned = example["learn"](real, synthetic, 30, torch.Generator().manual_seed(0))
    assert learned(torch.cat([x, 1 - x])).argmax(1).tolist() == [0, label]
