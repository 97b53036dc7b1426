"""A loss that stays non-finite is reported with options that exist, and with values for them."""

import re

import pytest
import torch
from job_cases import NOISE, TINY, make_resnet, make_teacher

from freia_kd import distill
from freia_kd.config import DistillationOptions
from freia_kd.errors import TrainingError
from freia_kd.synthesizers import build_synthesizers
from freia_kd.training import TrainingLoop
from pace import slow_but

# What learns in loops, with its learning rate.
LEARNING = {
    "bdnf": "learning_rate",
    "kegnet": "learning_rate",
    "rdskd": "learning_rate",
    "dfad": "student_learning_rate",
    "deepinversion": "learning_rate",
    "adaptive-deepinversion": "learning_rate",
    "kw-bns": "learning_rate",
}


@pytest.fixture
def broken(monkeypatch):
    """Loops of one stage whose losses are not finite."""
    accept = TrainingLoop.accept

    def breaking(stage):
        def patched(self, loss, terms=()):
            mine = self.checkpoints and self.checkpoints.stage.startswith(stage)
            return accept(self, loss * torch.nan if mine else loss, terms)

        monkeypatch.setattr(TrainingLoop, "accept", patched)

    return breaking


def advice(**options):
    """The option that a run's error advises to set, with its value and what it was."""
    with pytest.raises(TrainingError) as caught:
        distill(make_resnet(), **{**NOISE, **options})
    text = str(caught.value)
    found = re.search(r"\(--set (\S+)=(\S+); it was (\S+)\)", text)
    assert found, text
    return found.group(1), float(found.group(2)), float(found.group(3)), text


@pytest.mark.parametrize("name", slow_but(("bdnf", "deepinversion"), LEARNING))
def test_a_synthesizer_names_its_learning_rate(name, broken, tmp_path):
    broken(name)
    option, value, was, text = advice(synthesizer=name, out=tmp_path / "run")
    assert option == f"{name}.{LEARNING[name]}"
    (before,) = build_synthesizers(name, TINY.name)
    (changed,) = build_synthesizers(name, TINY.name, {option: value})
    assert getattr(before.options, LEARNING[name]) == pytest.approx(was)
    assert getattr(changed.options, LEARNING[name]) == pytest.approx(was / 10, rel=0.1)
    assert "--amp" not in text


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_a_student_names_its_learning_rate_and_its_precision(precision, broken, tmp_path):
    broken("student-1")
    training = TINY.training.changed(learning_rate=3e-4)
    option, value, was, text = advice(training=training, precision=precision, out=tmp_path / "run")
    assert (option, was) == ("student.learning_rate", 3e-4)
    assert DistillationOptions().changed(learning_rate=value).learning_rate == 3e-5
    assert ("--amp float32" in text) == (precision is not None)


def test_a_rate_that_is_too_large_is_found_by_itself(tmp_path):
    training = TINY.training.changed(learning_rate=1e25, steps=30)
    with pytest.raises(TrainingError, match=r"student\.learning_rate=1e\+24; it was 1e\+25"):
        distill(make_teacher(), out=tmp_path / "run", **{**NOISE, "training": training})
