"""A row of the paper with one seed."""

from dataclasses import replace

import pytest
import torch

from freia_kd.data.datasets import LabelledData
from freia_kd.domain import DOMAINS
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.evaluation import accuracy
from freia_kd.experiments import trial as module
from freia_kd.experiments.recipes import Recipe
from freia_kd.experiments.trial import PublishedTrial, divergence, fresh_student
from freia_kd.synthesizers.kegnet import KegNetOptions
from freia_kd.teachers import Classifier, Teacher, build_net, save_classifier

RECIPE = Recipe(
    width=8, steps=2, kegnet_steps=2, kegnet_batch=4, batch_size=4, set_size=20, student_batch=8,
    epochs=3, student_rate=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The file of a LeNet5 of a moment."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_net("lenet5", DOMAINS["mnist"])
    net.fc2.weight.data *= 20
    path = tmp_path_factory.mktemp("teacher") / "lenet5.pt"
    save_classifier(path, Classifier(net, DOMAINS["mnist"], "lenet5"))
    return path


def make(teacher, folder, row="uniform", **changes):
    generator = torch.Generator().manual_seed(1)
    test = LabelledData(torch.rand(30, 1, 32, 32, generator=generator), torch.arange(30) % 10, "t")
    ten = LabelledData(torch.rand(10, 1, 32, 32, generator=generator), torch.arange(10), "ten")
    fields = {
        "name": "T+row", "row": row, "data": "mnist", "seed": 0, "students": ("bdnf-3",),
        "recipe": RECIPE,
        "kegnet": KegNetOptions(), "teacher": teacher, "test": test, "folder": folder,
        "samples": ten if row == "samples" else None, "device": "cpu",
    }  # fmt: skip
    return PublishedTrial(**{**fields, **changes})


@pytest.mark.parametrize("row", ["uniform", "normal", "kegnet", "bdnf", "samples"])
def test_every_row_runs(row, teacher, tmp_path):
    trial = make(teacher, tmp_path / "run", row)
    trial.run()
    result = trial.result
    (curve,) = result.curve.values()
    assert len(curve) == 1 + RECIPE.epochs  # the start included
    assert result.last == {"bdnf-3": curve[-1]}
    assert result.best == {"bdnf-3": max(curve)}
    assert list(result.stages) == ["inputs", "student bdnf-3"]
    assert not list((tmp_path / "run/checkpoints").glob("*"))


def test_the_best_look_may_be_that_before_any_training(teacher, tmp_path, monkeypatch):
    looks = iter([0.9, 0.2, 0.5, 0.3])  # of Fashion-MNIST the paper prints "<71.5" for such rows
    monkeypatch.setattr(module, "accuracy", lambda *a: next(looks))
    trial = make(teacher, tmp_path / "run")
    trial.run()
    assert (trial.result.best, trial.result.last) == ({"bdnf-3": 0.9}, {"bdnf-3": 0.3})


def test_students_learn_by_kl_in_the_order_of_the_inputs(teacher, tmp_path):
    trial = make(teacher, tmp_path / "run", recipe=RECIPE.changed(epochs=2, check_every=5))
    trial.run()
    # Once more by hand.
    net = module.load_teacher(teacher)
    generator = module.seeded_generator(0, "uniform")
    made = module.noise_inputs("uniform", net, trial.recipe, generator)
    student = fresh_student(net, "bdnf-3", 0)
    looks = [accuracy(student, trial.test)]
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(2):
        for x, target in zip(*(part.split(8) for part in made), strict=True):
            p = student.net(x).softmax(1)
            loss = (target * (target.log() - p.log())).sum(1).mean()
            torch.testing.assert_close(loss, divergence(student.net, x, target))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    looks.append(accuracy(student, trial.test))
    assert trial.result.curve["bdnf-3"] == looks  # no look between but the last


def test_samples_are_all_in_every_step(teacher, tmp_path, monkeypatch):
    sizes = []
    kept = module.divergence
    monkeypatch.setattr(
        module, "divergence", lambda net, x, y: sizes.append(len(x)) or kept(net, x, y)
    )
    make(teacher, tmp_path / "run", "samples").run()
    assert sizes == [10] * 10 * RECIPE.epochs


def test_a_stopped_trial_goes_on(teacher, tmp_path, monkeypatch):
    whole = make(teacher, tmp_path / "whole", "bdnf", students=("bdnf-1", "bdnf-3"))
    whole.run()
    monkeypatch.setattr("freia_kd.training.checkpoints.SAVE_EVERY", -1.0)
    calls, kept = [], module.divergence

    def failing(net, x, target):
        calls.append(1)
        if len(calls) == 14:  # in the second student, of nine steps each
            raise KeyboardInterrupt
        return kept(net, x, target)

    monkeypatch.setattr(module, "divergence", failing)
    stopped = make(teacher, tmp_path / "stopped", "bdnf", students=("bdnf-1", "bdnf-3"))
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert stopped.result is None
    monkeypatch.setattr(module, "flow_inputs", None)  # must not be called again
    stopped.run()
    assert len(calls) == 14 + 5  # nothing of the first student, and five steps of the second
    assert stopped.result.curve == whole.result.curve


def test_another_recipe_is_refused(teacher, tmp_path, monkeypatch):
    trial = make(teacher, tmp_path / "run")
    monkeypatch.setattr(module, "train_on", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trial.run()
    with pytest.raises(UsageError, match=r"recipe.epochs was 3, is 4"):
        replace(trial, recipe=RECIPE.changed(epochs=4)).run()


def test_batch_normalisation_stays_as_it_is():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_net("resnet14", DOMAINS["fashion-mnist"])
    teacher = Teacher(net, DOMAINS["fashion-mnist"], "resnet14")
    student = fresh_student(teacher, "bdnf-2", 0)
    theirs = dict(teacher.net.named_buffers())
    for name, buffer in student.net.named_buffers():
        torch.testing.assert_close(buffer, theirs[name])
    frozen = {name for name, p in student.net.named_parameters() if not p.requires_grad}
    norms = {n for n, _ in student.net.named_parameters() if ".bn" in n or n.startswith("norm1")}
    assert frozen == norms


def test_a_result_that_is_damaged_is_named_with_what_to_do(teacher, tmp_path):
    trial = make(teacher, tmp_path / "trial")
    trial.folder.mkdir()
    for text in ("{", "[1]", '{"other": 1}'):
        (trial.folder / "trial.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"trial\.json is damaged .*--repair"):
            _ = trial.result
