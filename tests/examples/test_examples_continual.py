"""Continual learning without old data: what is replayed keeps the old classes."""

import re
import runpy
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "continual.py")
NAMES = [
    "(the old classifier)",
    "nothing",
    "labelled noise",
    "deepinversion",
    "the real old images",
]


@pytest.fixture(scope="module")
def rows():
    """One seed, with a quarter of the images and half of the steps."""
    options = Namespace(epochs=8, images=64, inversion=50, steps=50)
    with torch.random.fork_rng():
        return runpy.run_path(EXAMPLE)["run"](0, options)


def test_replay_keeps_the_old_classes_and_learns_the_new_ones(rows):
    assert list(rows) == NAMES
    old, new = ({name: row[i] for name, row in rows.items()} for i in (0, 1))
    assert old["(the old classifier)"] > 95
    assert old["nothing"] < 20
    assert old["deepinversion"] > old["nothing"] + 40
    assert old["the real old images"] > old["deepinversion"]
    assert new["(the old classifier)"] == 0
    assert all(new[name] > 90 for name in NAMES[1:])


def test_all_digits_are_both_parts(rows):
    for old, new, both in rows.values():
        assert both == pytest.approx((180 * old + 180 * new) / 360, abs=0.1)


def test_the_wider_classifier_begins_as_the_old_one():
    example = runpy.run_path(EXAMPLE)
    with torch.random.fork_rng():
        net = example["make_net"]().eval()
        old = example["load"]("test")[0]
        teacher = example["Teacher"](net, example["measure_domain"](old), "continual")
        wider = example["widen"](teacher).eval()
    x, _ = old.take(torch.arange(4))
    torch.testing.assert_close(wider(x)[:, :5], teacher(x))
    wider(x).sum().backward()
    assert all(p.grad is not None for p in wider.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_printed_table(monkeypatch, capsys):
    tiny = ["--seeds", "2", "--epochs", "1", "--images", "10", "--inversion", "1", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", [EXAMPLE, *tiny])
    with torch.random.fork_rng():
        runpy.run_path(EXAMPLE, run_name="__main__")
    cell = r" +(\d+\.\d ± \d+\.\d)"
    found = re.findall(rf"^(\S.*?){cell * 3}$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in found] == NAMES
