"""Accuracy and agreement, and that they are computed in one place."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from freia_kd.data.datasets import LabelledData
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, dequantise, quantise
from freia_kd.evaluation import accuracy, agreement, predict, share_equal

ROOT = Path(__file__).parents[1]


@pytest.fixture
def data(teacher, tmp_path):
    x = quantise(torch.rand(63, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        logits = teacher(dequantise(x))
    SyntheticWriter(tmp_path / "set", teacher.domain).append(x, logits, logits.argmax(1))
    return SyntheticSet(tmp_path / "set")


@pytest.fixture
def other(teacher):
    """A net that is of the teacher's mind now and then."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(1024, 10))


def test_predictions_are_the_likeliest_classes_in_eval_mode(other, evaluation, monkeypatch):
    with torch.no_grad():
        expected = other.eval()(evaluation.inputs.float() / 255).argmax(1)
    other.train()
    monkeypatch.setattr("freia_kd.evaluation.BATCH_SIZE", 7)
    assert torch.equal(predict(other, evaluation), expected)
    assert other.training
    right = sum(int(a == b) for a, b in zip(expected, evaluation.labels, strict=True)) / 50
    assert accuracy(other, evaluation) == pytest.approx(right)


def test_a_constant_net_is_as_right_as_its_class_is_frequent():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

        def forward(self, x):
            return self.logits.expand(len(x), 3)

    labels = torch.tensor([0, 1, 1, 2, 1])
    assert accuracy(Constant(), LabelledData(torch.zeros(5, 2), labels, "five")) == 0.6
    assert share_equal(torch.tensor([1, 2]), torch.tensor([1, 2])) == 1


def test_agreement_is_the_share_of_equal_answers(teacher, other, data, monkeypatch):
    monkeypatch.setattr("freia_kd.evaluation.BATCH_SIZE", 7)
    x, logits, _ = data.batch(torch.arange(63))
    with torch.no_grad():
        same = (other.eval()(x).argmax(1) == logits.argmax(1)).double()
    assert same[::2].mean() != same[1::2].mean()
    assert agreement(teacher, data) == 1
    assert agreement(other, data) == pytest.approx(same.mean().item())
    assert agreement(other, data, half="even") == pytest.approx(same[::2].mean().item())
    assert agreement(other, data, half="odd") == pytest.approx(same[1::2].mean().item())


def test_accuracy_is_computed_in_one_place():
    """No other module takes the mean of answers that are equal to labels."""
    by_hand = re.compile(r"argmax\(1\)\s*==\s*\w*(labels|y)\b.*mean|\.eq\(\w*labels\).*mean")
    found = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "freia_kd").rglob("*.py")
        if by_hand.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
