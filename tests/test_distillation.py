"""How a student is trained, and how its agreement is measured."""

import copy
from dataclasses import replace

import pytest
import torch

from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, dequantise, quantise
from freia_kd.distillation import DistillationOptions, agreement, train_student
from freia_kd.runs import Run
from freia_kd.teachers import Classifier


@pytest.fixture
def data(teacher, tmp_path):
    x = quantise(torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        logits = teacher(dequantise(x))
    SyntheticWriter(tmp_path / "set", teacher.domain).append(x, logits, logits.argmax(1))
    return SyntheticSet(tmp_path / "set")


def worse(teacher):
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter += 0.02 * noise
    return Classifier(student.net, teacher.domain, teacher.arch)


def test_agreement_is_the_share_of_equal_answers(teacher, data):
    student = worse(teacher)
    x, logits, _ = data.batch(torch.arange(64))
    with torch.no_grad():
        same = (student(x).argmax(1) == logits.argmax(1)).double()
    assert agreement(teacher, data) == 1
    assert agreement(student, data, batch_size=7) == pytest.approx(same.mean().item())
    assert agreement(student, data, half="even") == pytest.approx(same[::2].mean().item())
    assert agreement(student, data, half="odd") == pytest.approx(same[1::2].mean().item())


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "js", "l1"])
def test_training_brings_the_student_to_the_teacher(teacher, data, divergence):
    student = worse(teacher)
    x, logits, _ = data.batch(torch.arange(64))

    def distance():
        with torch.no_grad():
            return (student(x).softmax(1) - logits.softmax(1)).abs().mean().item()

    before = distance()
    options = DistillationOptions(divergence, steps=30, batch_size=32)
    train_student(student, data, options, torch.Generator().manual_seed(0))
    assert distance() < before / 2
    assert not student.training


def test_the_best_weights_on_held_out_inputs_are_kept(teacher, data, monkeypatch):
    """Told that the second of three checks was the best, the student ends with its weights."""
    scores, seen = iter([0.1, 0.9, 0.2]), []

    def score(student, heldout, half):
        assert half == "even"  # the others measure
        seen.append(copy.deepcopy(student.state_dict()))
        return next(scores)

    monkeypatch.setattr("freia_kd.distillation.agreement", score)
    student = worse(teacher)
    options = DistillationOptions(steps=6, batch_size=8, check_every=2)
    train_student(student, data, options, torch.Generator().manual_seed(0), heldout=data)
    assert len(seen) == 3
    assert all(torch.equal(v, seen[1][k]) for k, v in student.state_dict().items())
    assert any(not torch.equal(v, seen[2][k]) for k, v in student.state_dict().items())


def test_the_best_weights_survive_a_resume(teacher, data, tmp_path, monkeypatch):
    monkeypatch.setattr("freia_kd.runs.loop.SAVE_EVERY", 0.0)
    options = DistillationOptions(steps=8, batch_size=8, learning_rate=0.5, check_every=2)

    def train(run):
        student = worse(teacher)
        generator = torch.Generator().manual_seed(0)
        train_student(student, data, options, generator, run, heldout=data)
        return student.state_dict()

    whole = train(Run(tmp_path / "a", {}))
    accept = "freia_kd.runs.loop.TrainingLoop.accept"
    from freia_kd.runs.loop import TrainingLoop

    original = TrainingLoop.accept

    def interrupted(self, *arguments):
        if self.step == 5:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(accept, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(Run(tmp_path / "b", {}))
    resumed = train(Run(tmp_path / "b", {}, resume=True))
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())


def test_training_stops_early_when_agreement_gets_no_better(teacher, data, tmp_path):
    options = DistillationOptions(steps=50, batch_size=8, learning_rate=0.0, check_every=2)
    for patience, steps in ((None, 50), (3, 8)):  # the first check is better than none
        run = Run(tmp_path / str(patience), {})
        train_student(
            worse(teacher), data, replace(options, patience=patience), run=run, heldout=data
        )
        assert run.load("student")["step"] == steps
        again = Run(tmp_path / str(patience), {}, resume=True)
        train_student(
            worse(teacher), data, replace(options, patience=patience), run=again, heldout=data
        )
        assert again.load("student")["step"] == steps


def test_batch_statistics_of_the_student_stay_the_teachers(tmp_path):
    from freia_kd.domain import Domain
    from freia_kd.teachers import Teacher, build_net

    domain = Domain((1, 16, 16), 3)
    torch.manual_seed(0)
    teacher = Teacher(build_net("resnet14", domain), domain, "resnet14")
    x = quantise(torch.rand(16, 1, 16, 16))
    with torch.no_grad():
        logits = teacher(dequantise(x))
    SyntheticWriter(tmp_path / "set", domain).append(x, 2 * logits, logits.argmax(1))
    student = Classifier(copy.deepcopy(teacher.net), domain, "resnet14")
    options = DistillationOptions(steps=2, batch_size=8)
    train_student(student, SyntheticSet(tmp_path / "set"), options)
    before, after = teacher.net.state_dict(), student.net.state_dict()
    running = [k for k in before if "running" in k]
    assert running
    assert all(torch.equal(before[k], after[k]) for k in running)
    assert not torch.equal(before["linear.weight"], after["linear.weight"])
