"""The inputs of the paper's rows."""

import pytest
import torch
from torch import nn

from freia_kd.data.datasets import LabelledData
from freia_kd.domain import Domain
from freia_kd.experiments.inputs import (
    flow_inputs,
    flow_loss,
    kegnet_inputs,
    noise_inputs,
    sample_inputs,
)
from freia_kd.experiments.keflow import KeFlow
from freia_kd.experiments.recipes import CODE, Recipe
from freia_kd.synthesizers.kegnet import KegNetOptions
from freia_kd.teachers import Teacher
from freia_kd.training import Checkpoints
from stopping import Stopping

DOMAIN = Domain((1, 8, 8), 3, mean=(0.2,), std=(0.4,))
TINY = {"width": 8, "steps": 2, "batch_size": 4, "set_size": 70}
TINY |= {"kegnet_steps": 2, "kegnet_batch": 4}


class Seen(nn.Module):
    """A net that remembers what it was shown."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
        self.inputs = []

    def forward(self, u):
        self.inputs.append(u.detach().clone())
        return self.layers(u)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    net = Seen()
    net(torch.zeros(1, 1, 8, 8))
    net.inputs.clear()
    return Teacher(net, DOMAIN, "custom")


@pytest.fixture
def samples():
    return LabelledData(torch.rand(3, 1, 8, 8), torch.arange(3), "three")


def generator():
    return torch.Generator().manual_seed(0)


def make_loss(teacher, recipe, samples=None):
    torch.manual_seed(1)
    flow = KeFlow(DOMAIN.shape, 3, hidden_features=recipe.width)
    teacher.net.inputs.clear()
    terms = flow_loss(flow, teacher, recipe, samples, generator())
    return flow, terms


def test_noise_is_not_clamped_and_in_the_units_of_the_net(teacher):
    recipe = Recipe(**TINY).changed(set_size=500)
    u, labels = noise_inputs("normal", teacher, recipe, generator())
    assert u.std() == pytest.approx(1, abs=0.02)
    assert DOMAIN.denormalize(u).min() < 0
    torch.testing.assert_close(labels, teacher.net(u).softmax(1))
    for half in (1.0, 0.5):  # the text's and the code's
        u, _ = noise_inputs("uniform", teacher, recipe.changed(uniform=half), generator())
        assert u.abs().max() == pytest.approx(half, abs=1e-3)


def test_samples_have_hard_labels_and_the_codes_are_not_normalised(teacher, samples):
    code, labels = sample_inputs(teacher, Recipe(**{**CODE, **TINY}), samples)
    assert torch.equal(code[:3], samples.inputs)
    assert code.shape == (30, 1, 8, 8)
    assert torch.equal(labels[:6].argmax(1), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert labels.unique().tolist() == [0, 1]
    text, _ = sample_inputs(teacher, Recipe(**TINY), samples)
    torch.testing.assert_close(text[:3], DOMAIN.normalize(samples.inputs))


def test_the_codes_objective(teacher):
    recipe = Recipe(**{**CODE, **TINY})
    flow, terms = make_loss(teacher, recipe)
    # Once more by hand, from the same random numbers.
    draws = generator()
    c = torch.randint(3, (4,), generator=draws)
    z = 0.5 * torch.randn(4, 1, 8, 8, generator=draws)
    a = 1 + torch.rand((), generator=draws)
    x, ladj = flow.decode(z, c)
    u = a * (x - 0.5)
    torch.testing.assert_close(teacher.net.inputs[0], u.detach())
    p = teacher.net(u).softmax(1)[torch.arange(4), c]
    values = dict(terms.items())
    torch.testing.assert_close(values["cls"], -(p + 0.01).log().mean())
    torch.testing.assert_close(values["volume"], -recipe.alpha * ladj.mean())
    assert list(values) == ["cls", "volume"]  # this teacher has no batch statistics


def test_the_texts_objective_shows_normalised_pixels(teacher):
    recipe = Recipe(**TINY)
    flow, terms = make_loss(teacher, recipe)
    draws = generator()
    c = torch.randint(3, (4,), generator=draws)
    x, _ = flow.decode(torch.randn(4, 1, 8, 8, generator=draws), c)
    torch.testing.assert_close(teacher.net.inputs[0], DOMAIN.normalize(x).detach())
    p = teacher.net(DOMAIN.normalize(x)).softmax(1)[torch.arange(4), c]
    torch.testing.assert_close(dict(terms.items())["cls"], -p.log().mean())


def test_with_samples_the_code_shows_pixels_and_has_no_floor(teacher, samples):
    recipe = Recipe(**{**CODE, **TINY, "gamma": 0.5})
    flow, terms = make_loss(teacher, recipe, samples)
    draws = generator()
    c = torch.randint(3, (4,), generator=draws)
    x, _ = flow.decode(0.5 * torch.randn(4, 1, 8, 8, generator=draws), c)
    torch.testing.assert_close(teacher.net.inputs[0], x.detach())
    p = teacher.net(x).softmax(1)[torch.arange(4), c]
    values = dict(terms.items())
    torch.testing.assert_close(values["cls"], -p.log().mean())
    # All samples, spread over five levels and shrunk to nine tenths of the range.
    spread = (255 * samples.inputs + 5 * torch.rand(3, 1, 8, 8, generator=draws)) / 256
    x = 0.5 + 0.9 * (spread.clamp(0, 1) - 0.5)
    torch.testing.assert_close(values["reverse"], -0.5 * flow.log_prob(x, samples.labels).mean())


def test_means_and_the_first_layer_weigh_double():
    torch.manual_seed(0)
    net = Seen(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    net(torch.zeros(1, 1, 8, 8))
    teacher = Teacher(net, DOMAIN, "custom")
    recipe = Recipe(**{**CODE, **TINY})
    _, terms = make_loss(teacher, recipe)
    u, layers = teacher.net.inputs[0], teacher.net.layers
    second = layers[1](layers[0](u))
    expected = 0.0
    for weight, value, layer in ((2, u, layers[0]), (1, second, layers[2])):
        rows = value.transpose(0, 1).flatten(1)
        mean, variance = rows.mean(1), rows.var(1, unbiased=False)
        expected += weight * 2 * (mean - layer.running_mean).norm()
        expected += weight * (variance - layer.running_var).norm()
    torch.testing.assert_close(dict(terms.items())["batchnorm"], 2 * expected)


def test_one_factor_a_batch_of_inputs(teacher, tmp_path):
    recipe = Recipe(**{**CODE, **TINY})
    u, labels = flow_inputs(teacher, recipe, None, generator(), Checkpoints(tmp_path, "bdnf"))
    assert u.shape == (70, 1, 8, 8)
    torch.testing.assert_close(labels, teacher.net(u).softmax(1))
    assert u.abs().max() <= 1  # 2 (1 - 1/2)
    text, _ = flow_inputs(
        teacher, Recipe(**TINY), None, generator(), Checkpoints(tmp_path / "text", "bdnf")
    )
    x = DOMAIN.denormalize(text)
    assert x.min() >= -1e-6
    assert x.max() <= 1 + 1e-6


def test_a_stopped_flow_goes_on(teacher, tmp_path):
    recipe = Recipe(**{**CODE, **TINY}).changed(steps=4)
    whole, _ = flow_inputs(teacher, recipe, None, generator(), Checkpoints(tmp_path / "a", "bdnf"))
    cut, rest = Stopping(tmp_path / "b", "bdnf", at=2), Stopping(tmp_path / "b", "bdnf")
    with pytest.raises(KeyboardInterrupt):
        flow_inputs(teacher, recipe, None, generator(), cut)
    again, _ = flow_inputs(teacher, recipe, None, generator(), rest)
    assert torch.equal(again, whole)
    assert (cut.seen, rest.seen) == ([0, 1], [2, 3])


def test_kegnets_inputs_are_not_clamped(teacher, tmp_path):
    options = KegNetOptions(beta=1.0)
    recipe = Recipe(**TINY)
    u, labels = kegnet_inputs(teacher, recipe, options, generator(), Checkpoints(tmp_path, "k"))
    flat = u.flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(70), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.square().mean(1), torch.ones(70), atol=1e-3, rtol=0)
    assert DOMAIN.denormalize(u).min() < 0
    torch.testing.assert_close(labels.sum(1), torch.ones(70))
