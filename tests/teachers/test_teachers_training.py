"""The loop that makes a teacher."""

import math

import pytest
import torch
from torch import nn

from freia_kd.data.datasets import LabelledData, hold_out
from freia_kd.domain import Domain
from freia_kd.errors import TrainingError
from freia_kd.teachers import Classifier, train_classifier, train_new
from freia_kd.teachers.mlp import MLP
from stopping import Stopping

DOMAIN = Domain((2,), 2, (1.0, -1.0), (2.0, 0.5))


@pytest.fixture
def data():
    """Two classes on either side of a line, after normalisation."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(203, 2, generator=generator)
    x = z * torch.tensor(DOMAIN.std) + torch.tensor(DOMAIN.mean)
    return LabelledData(x, (z[:, 0] > z[:, 1]).long(), "line")


def train(data, seed=0, **options):
    torch.manual_seed(0)
    net = MLP(2, 2, (16,))
    generator = torch.Generator().manual_seed(seed)
    options = {"epochs": 10, "batch_size": 20, "learning_rate": 1e-2} | options
    train_classifier(net, data, DOMAIN, generator=generator, **options)
    return net


def test_learns_and_leaves_the_net_in_eval_mode(data):
    net = train(data)
    classifier = Classifier(net, DOMAIN, "mlp")
    assert not net.training
    assert (classifier(data.inputs).argmax(1) == data.labels).float().mean() > 0.95


def test_reports_every_step_and_a_cosine_learning_rate(data):
    steps = []
    train(data, epochs=2, on_step=steps.append)
    assert [s["step"] for s in steps] == list(range(1, 21))  # 203 inputs: 10 whole batches
    assert {s["steps"] for s in steps} == {20}
    assert [s["epoch"] for s in steps] == [1] * 10 + [2] * 10
    expected = [1e-2 * (1 + math.cos(math.pi * k / 20)) / 2 for k in range(20)]
    assert [s["learning_rate"] for s in steps] == pytest.approx(expected)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_generator_alone_decides(data):
    torch.manual_seed(123)  # must not matter
    first, again, other = train(data), train(data), train(data, seed=1)
    equal = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(equal)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_takes_fewer_inputs_than_a_batch(data):
    few = LabelledData(data.inputs[:5], data.labels[:5], "few")
    steps = []
    train(few, epochs=3, on_step=steps.append)
    assert len(steps) == 3


def test_batch_normalisation_never_sees_a_batch_of_one(data):
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    odd = LabelledData(data.inputs[:21], data.labels[:21], "odd")
    train_classifier(net, odd, DOMAIN, 1, 20, generator=torch.Generator().manual_seed(0))


def test_a_loss_that_is_not_finite_stops_with_advice(data):
    with pytest.raises(TrainingError, match=r"not finite at step .*lower the learning rate"):
        train(data, learning_rate=1e30)


class Dropping(nn.Sequential):
    """With dropout, whose random numbers must go on too."""

    def __init__(self):
        super().__init__(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 2))


@pytest.mark.parametrize("at", [1, 10, 14, 37, 99])
def test_a_training_that_is_killed_ends_the_same_bit_for_bit(data, tmp_path, at):
    arch = f"{__name__}:Dropping"
    rest, heldout = hold_out(data)
    options = {"epochs": 10, "batch_size": 18, "heldout": heldout}
    whole = train_new(arch, rest, DOMAIN, **options)
    again = train_new(arch, rest, DOMAIN, **options)
    assert equal(whole, again)  # dropout follows the seed
    with pytest.raises(KeyboardInterrupt):
        train_new(arch, rest, DOMAIN, **options, checkpoints=Stopping(tmp_path, "teacher", at))
    torch.rand(7)  # what happened in between must not matter
    resumed = train_new(arch, rest, DOMAIN, **options, checkpoints=Stopping(tmp_path, "teacher"))
    assert equal(whole, resumed)


def test_the_weights_of_the_best_epoch_are_kept(data, monkeypatch):
    scores, seen = iter([0.5, 0.9, 0.9, 0.7]), []

    def score(classifier, heldout):
        seen.append({k: v.clone() for k, v in classifier.net.state_dict().items()})
        return next(scores)

    monkeypatch.setattr("freia_kd.teachers.training.accuracy", score)
    rest, heldout = hold_out(data)
    net = train(rest, epochs=4, heldout=heldout)
    assert equal(net, seen[2])  # the later one of two equal ones
    assert not equal(net, seen[3])


def equal(ours, theirs):
    ours = ours.state_dict()
    theirs = theirs if isinstance(theirs, dict) else theirs.state_dict()
    return all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "at least 1 epoch"), ({"batch_size": 0}, "at least 1 epoch")],
)
def test_nothing_to_do_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        train(data, **options)


def test_data_and_nets_that_do_not_fit_are_refused(data):
    wrong = LabelledData(data.inputs, data.labels + 1, "wrong")
    with pytest.raises(ValueError, match="wrong: expected labels below 2; got 2"):
        train(wrong)
    with pytest.raises(ValueError, match=r"expected inputs of shape \(2,\); got \(1,\)"):
        train(LabelledData(data.inputs[:, :1], data.labels, "narrow"))
    with pytest.raises(ValueError, match=r"Expected logits of shape \(2, 2\)"):
        train_classifier(MLP(2, 3), data, DOMAIN)
