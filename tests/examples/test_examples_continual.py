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


@pytest.mark.slow
def test_replay_keeps_the_old_classes_and_learns_the_new_ones(rows):
    assert list(rows) == NAMES
    old, new = ({name: row[i] for name, row in rows.items()} for i in (0, 1))
    assert old["(the old classifier)"] > 95
    assert old["nothing"] < 20
    assert old["deepinversion"] > old["nothing"] + 40
    assert old["the real old images"] > old["deepinversion"]
    assert new["(the old classifier)"] == 0
    assert all(new[name] > 90 for name in NAMES[1:])


@pytest.mark.slow
def test_all_digits_are_both_parts(rows):
    for old, new, both in rows.values():
        assert both == pytest.approx((180 * old + 180 * new) / 360, abs=0.1)


@pytest.fixture
def untrained():
    """The example, an old classifier that knows nothing, and the old and new test digits."""
    example = runpy.run_path(EXAMPLE)
    old, new = example["load"]("test")
    with torch.random.fork_rng():
        teacher = example["Teacher"](example["make_net"](), example["measure_domain"](old), "c")
    return example, teacher, old, new


def test_as_many_images_of_each_old_class(untrained):
    example, teacher, *_ = untrained
    data = example["synthesize"](example["Spectral"](), teacher, 10, torch.Generator())
    assert data.labels.bincount().tolist() == [2] * 5


def test_the_former_self_is_followed_where_images_are_replayed(untrained):
    example, teacher, _, new = untrained
    black = example["LabelledData"](torch.zeros(5, 1, 16, 16), torch.arange(5), "black")
    seen = []

    def spy(student_logits, teacher_logits):
        seen.append((student_logits.detach(), teacher_logits))
        return student_logits.sum()

    example["learn"].__globals__["forward_kl"] = spy
    example["learn"](teacher, new, black, 1, torch.Generator().manual_seed(0))
    ((student_logits, teacher_logits),) = seen
    assert student_logits.shape == (64, 5)
    torch.testing.assert_close(student_logits, student_logits[:1].expand(64, 5))  # all are black
    torch.testing.assert_close(teacher_logits, teacher(black.inputs[:1]).expand(64, 5))


def test_the_wider_classifier_begins_as_the_old_one(untrained):
    example, teacher, old, _ = untrained
    with torch.random.fork_rng():
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
