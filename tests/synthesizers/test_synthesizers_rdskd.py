import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from freia_kd.domain import Domain
from freia_kd.objectives.contract import Terms
from freia_kd.synthesizers.rdskd import (
    RDSKD,
    IncrementPenalty,
    RDSKDOptions,
    authenticity,
    class_diversity,
    losses,
    sample_diversity,
)
from freia_kd.teachers import Teacher
from freia_kd.teachers.mlp import MLP


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def logits():
    return 3 * torch.randn(8, 5, generator=generator(), dtype=torch.float64)


def test_authenticity_is_the_cross_entropy_with_the_likeliest_class(logits):
    expected = -log_softmax(logits.numpy(), 1).max(1).mean()
    assert authenticity(logits).item() == pytest.approx(expected)


def test_class_diversity_is_the_negative_entropy_of_the_mean(logits):
    expected = -entropy(softmax(logits.numpy(), 1).mean(0))
    assert class_diversity(logits).item() == pytest.approx(expected)
    assert class_diversity(torch.zeros(4, 5)).item() == pytest.approx(-math.log(5))
    certain = torch.full((4, 5), -1e4)
    certain[:, 2] = 1e4
    certain.requires_grad_(True)
    loss = class_diversity(certain)
    loss.backward()
    assert loss.item() == 0
    assert certain.grad.isfinite().all()


def test_sample_diversity_is_the_ratio_of_the_norms(logits):
    x = torch.randn(8, 1, 4, 4, generator=generator(1), dtype=torch.float64)
    p, a = softmax(logits.numpy(), 1), x.numpy().reshape(8, -1)
    expected = np.linalg.norm((p[4:] - p[:4]).ravel()) / np.linalg.norm((a[4:] - a[:4]).ravel())
    assert sample_diversity(x, logits).item() == pytest.approx(expected)


def test_inputs_are_compared_in_the_units_of_the_net():
    domain = Domain((2,), 3, (1.0, 5.0), (0.5, 4.0))
    teacher = Teacher(MLP(2, 3), domain, "mlp")
    x = torch.randn(6, 2, generator=generator())
    terms = dict(losses(teacher, x).items())
    u = (x - torch.tensor([1.0, 5.0])) / torch.tensor([0.5, 4.0])
    logits = teacher.net(u)
    assert terms["authenticity"].item() == pytest.approx(authenticity(logits).item())
    assert terms["class_diversity"].item() == pytest.approx(class_diversity(logits).item())
    assert terms["sample_diversity"].item() == pytest.approx(sample_diversity(u, logits).item())


def test_identical_inputs_give_finite_gradients():
    teacher = Teacher(MLP(2, 3), Domain((2,), 3), "mlp")
    x = torch.ones(6, 2, requires_grad=True)
    losses(teacher, x).total.backward()
    assert x.grad.isfinite().all()


def test_sample_diversity_pushes_inputs_apart(logits):
    centre = torch.randn(1, 3, generator=generator(2), dtype=torch.float64)
    noise = torch.randn(8, 3, generator=generator(3), dtype=torch.float64)
    x = (centre + 0.01 * noise).requires_grad_(True)
    (gradient,) = torch.autograd.grad(sample_diversity(x, logits), x)
    apart = x - 1e-6 * gradient
    assert torch.dist(*apart.chunk(2)) > torch.dist(*x.chunk(2)) * (1 + 1e-6)


def test_class_diversity_pulls_predictions_to_all_classes():
    logits = torch.zeros(8, 5, dtype=torch.float64)
    logits[:, 0] = 2.0  # every input is a 0
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(class_diversity(logits), logits)
    with torch.no_grad():
        moved = logits - gradient
        assert entropy(moved.softmax(1).mean(0)) > entropy(logits.softmax(1).mean(0)) + 1e-3


def test_authenticity_makes_the_likeliest_class_likelier(logits):
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(authenticity(logits), logits)
    with torch.no_grad():
        before, after = (
            logits.softmax(1).max(1).values,
            (logits - gradient).softmax(1).max(1).values,
        )
    assert (after > before).all()


def terms(a, c, s):
    a, c, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a, c, s))
    return Terms(authenticity=a, class_diversity=c, sample_diversity=s)


def test_the_penalty_by_hand():
    penalty = IncrementPenalty()
    first = terms(0.5, -1.2, 0.3)
    assert penalty(first).item() == pytest.approx(math.exp(0.5) + math.exp(-1.2) + 0.3)
    penalty.refer_to(first)
    assert penalty(first).item() == pytest.approx(2.3)
    second = terms(0.9, -1.5, 0.4)
    assert penalty(second).item() == pytest.approx(math.exp(0.4) + math.exp(-0.3) + 0.4)


@pytest.mark.parametrize(
    ("rise", "weight"), [(0.0, 1.0), (0.7, math.exp(0.7)), (-0.7, math.exp(-0.7))]
)
def test_a_loss_that_rises_weighs_more_and_one_that_falls_less(rise, weight):
    penalty = IncrementPenalty()
    penalty.refer_to(terms(0.5, -1.0, 9.0))
    now = terms(0.5 + rise, -1.0, 0.2)
    penalty(now).backward()
    gradients = {name: value.grad.item() for name, value in now.items()}
    assert gradients["authenticity"] == pytest.approx(weight)
    assert gradients["class_diversity"] == pytest.approx(1.0)
    assert gradients["sample_diversity"] == pytest.approx(1.0)


def test_the_penalty_remembers_its_references():
    penalty, other = IncrementPenalty(), IncrementPenalty()
    penalty.refer_to(terms(0.5, -1.0, 9.0))
    other.load_state_dict(penalty.state_dict())
    now = terms(0.1, -0.3, 0.2)
    assert other(now).item() == penalty(now).item()


def fit(monkeypatch=None, seen=None, **settings):
    net = torch.nn.Linear(2, 4)  # a class in each direction of the plane
    net.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    net.bias.data.zero_()
    teacher = Teacher(net, Domain((2,), 4), "linear")
    if monkeypatch is not None:
        monkeypatch.setattr(IncrementPenalty, "refer_to", lambda self, terms: seen.append(terms))
    synthesizer = RDSKD(RDSKDOptions(batch_size=32, latents=8, channels=(16,), **settings))
    synthesizer.fit(teacher, generator=generator())
    return teacher, synthesizer


def test_references_are_taken_once_an_epoch(monkeypatch):
    seen = []
    fit(monkeypatch, seen, steps=7, epoch=3)
    assert len(seen) == 3  # in steps 0, 3 and 6


def test_the_penalty_is_an_option():
    drawn = [
        fit(steps=4, penalty=penalty)[1].sample(5, generator=generator(1))[0]
        for penalty in (True, False)
    ]
    assert not torch.equal(*drawn)


def test_training_makes_the_teacher_sure_and_keeps_the_classes():
    def measure(**settings):
        teacher, synthesizer = fit(**settings)
        x, y = synthesizer.sample(500, generator=generator(1))
        with torch.no_grad():
            return authenticity(teacher(x)).item(), entropy(torch.bincount(y, minlength=4))

    before, _ = measure(steps=1, learning_rate=1e-9)
    after, classes = measure(steps=200, learning_rate=3e-3)
    assert after < before - 0.05
    assert classes > 0.8 * math.log(4)
