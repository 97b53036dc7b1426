"""Teachers that say the same whatever they are shown, and those that only seem to."""

import pytest
import torch
from torch import nn

from freia_kd.api import train_teacher
from freia_kd.compression import load_teacher
from freia_kd.data.datasets import LabelledData, load_dataset
from freia_kd.domain import DOMAINS, Domain
from freia_kd.errors import UsageError
from freia_kd.evaluation import accuracy
from freia_kd.synthesizers.answers import check_answers
from freia_kd.teachers import Teacher, build_net, train_new
from freia_kd.training import Progress
from pace import slow_but

MNIST = DOMAINS["mnist"]
SAME = "nearly the same logits to 256 inputs of 8 kinds"


class Notes(Progress):
    def __init__(self):
        self.said = []

    def note(self, message):
        self.said.append(message)


def notes(teacher):
    progress = Notes()
    check_answers(teacher, progress)
    return progress.said


def changed(teacher, **changes):
    net = Teacher(teacher.net, teacher.domain, teacher.arch).net
    for name, change in changes.items():
        parameter = net.get_parameter(name.replace("_", "."))
        parameter.data = change(parameter.data)
    return Teacher(net, teacher.domain, teacher.arch)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A LeNet5 of scikit-learn's digits."""
    path = tmp_path_factory.mktemp("digits") / "lenet5.pt"
    train_teacher("digits", path, epochs=8)
    return load_teacher(path)


def test_a_sound_teacher_is_not_named(digits):
    assert notes(digits) == []


@pytest.mark.parametrize("table", slow_but("iris", ["iris", "wine"]))
def test_nor_are_tables(table, tmp_path):
    train_teacher(table, tmp_path / "mlp.pt")
    assert notes(load_teacher(tmp_path / "mlp.pt")) == []


@pytest.mark.slow
def test_nor_is_a_detector_that_hardly_ever_fires():
    """It says "none" to more than 99 % of all noise, and yet there are inputs that it detects."""
    data = load_dataset("digits", DOMAINS["digits"])
    domain = Domain((1, 32, 32), 2, (0.3054,), (0.3236,))
    few = LabelledData(data.inputs, (data.labels == 8).long(), "eights")
    net = train_new("lenet5", few, domain, 30)
    noise = torch.rand(256, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (net(noise).argmax(1) == 0).float().mean() > 0.99
    assert notes(Teacher(net.net, domain, "lenet5")) == []
    lazy = train_new("lenet5", few, domain, 3)  # which has learned to say "none" to eights too
    assert accuracy(lazy, few) == (few.labels == 0).double().mean().item()
    assert len(notes(Teacher(lazy.net, domain, "lenet5"))) == 1


@pytest.mark.slow
def test_nor_are_mnist_teachers(data_root):
    data = load_dataset("mnist", MNIST, "train", data_root)
    few = LabelledData(data.inputs[:6_000], data.labels[:6_000], "mnist")
    assert notes(Teacher(train_new("lenet5", few, MNIST, 1).net, MNIST, "lenet5")) == []
    eights = LabelledData(few.inputs, (few.labels == 8).long(), "eights")
    domain = Domain((1, 32, 32), 2, MNIST.mean, MNIST.std)
    assert notes(Teacher(train_new("lenet5", eights, domain, 4).net, domain, "lenet5")) == []


@pytest.mark.parametrize("seed", range(3))
def test_nor_are_untrained_nets(seed):
    torch.manual_seed(seed)
    assert notes(Teacher(build_net("lenet5", MNIST), MNIST, "lenet5")) == []


DEAD = {
    "all zero": dict.fromkeys(("conv1_weight", "fc2_weight", "fc2_bias"), torch.zeros_like),
    "no head": {"fc2_weight": torch.zeros_like},
    "no first layer": {"conv1_weight": torch.zeros_like},
    "one class far above": {"fc2_bias": lambda b: b + 1e4 * torch.eye(10)[3]},
    "inputs hardly seen": {"conv1_weight": lambda w: w / 1e4},  # as if divided by a huge std
}


@pytest.mark.parametrize("kind", DEAD)
def test_dead_teachers_are_refused(digits, kind):
    with pytest.raises(UsageError, match=SAME):
        notes(changed(digits, **DEAD[kind]))


def test_so_are_dead_tables():
    net = nn.Linear(4, 3)
    net.weight.data.zero_()
    with pytest.raises(UsageError, match="192 inputs of 6 kinds"):
        notes(Teacher(net, Domain((4,), 3), "custom"))


def test_one_class_that_no_input_changes_is_named(digits):
    (said,) = notes(changed(digits, fc2_bias=lambda b: b + 60 * torch.eye(10)[3]))
    assert "gives class 3 to 100.0 %" in said
    assert "--mean and --std" in said
