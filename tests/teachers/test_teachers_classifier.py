"""Classifier, Teacher and the checks on them."""

import pytest
import torch
from torch import nn

from freia_kd.domain import Domain
from freia_kd.teachers import Classifier, Teacher, build_net, check_classifier

DOMAIN = Domain((1, 4, 4), 3, (0.25,), (0.5,))


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_classifier_normalises_pixels():
    net, x = small_net().eval(), torch.rand(5, 1, 4, 4)
    assert torch.equal(Classifier(net, DOMAIN, "own")(x), net((x - 0.25) / 0.5))


def test_teacher_is_a_frozen_copy_and_leaves_the_net_as_it_was():
    net = small_net()
    net[0].bias.requires_grad_(False)
    net[1].eval()
    trainable = {k: p.requires_grad for k, p in net.named_parameters()}
    modes = [m.training for m in net.modules()]

    teacher = Teacher(net, DOMAIN, "own")

    assert {k: p.requires_grad for k, p in net.named_parameters()} == trainable
    assert [m.training for m in net.modules()] == modes
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())
    with torch.no_grad():
        net[3].bias.add_(1)
    assert not torch.equal(teacher.net[3].bias, net[3].bias)


def test_teacher_stays_in_eval_mode_and_its_statistics_stay():
    teacher = Teacher(small_net(), DOMAIN, "own")
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    parent = nn.ModuleList([teacher]).train()
    assert teacher.train() is teacher
    teacher(torch.rand(8, 1, 4, 4))
    assert parent.training
    assert not any(m.training for m in teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_gradients_flow_to_the_input_only():
    teacher = Teacher(small_net(), DOMAIN, "own")
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    teacher(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_teacher_says_when_a_net_cannot_be_copied():
    net = small_net()
    net.handle = (i for i in range(3))  # generators cannot be copied
    with pytest.raises(TypeError, match=r"copy\.deepcopy.*Sequential cannot be"):
        Teacher(net, DOMAIN, "own")


def test_check_accepts_a_sound_net_and_changes_nothing():
    net = small_net()
    net[1].eval()
    classifier = Classifier(net, DOMAIN, "own")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    random_state = torch.get_rng_state()
    check_classifier(classifier)
    assert [m.training for m in net] == [True, False, True, True]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_check_goes_with_the_dtype_of_the_weights():
    check_classifier(Classifier(small_net().double(), DOMAIN, "own"))


def with_nan(where):
    net = small_net()
    with torch.no_grad():
        net.get_parameter(where).view(-1)[0] = float("nan")
    return net


class Infinite(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] / 0 * 1e9


class Pair(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3], x


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), r"takes inputs of shape \(2, 1, 4, 4\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), r"shape \(2, 3\).*got \(2, 5\)"),
        (nn.Conv2d(1, 3, 4), r"got \(2, 3, 1, 1\)"),
        (with_nan("3.weight"), r"'3\.weight' holds NaN"),
        (with_nan("1.bias"), r"'1\.bias' holds NaN"),
        (Infinite(), "Expected finite logits"),
        (Pair(), "Expected a tensor of logits; got tuple"),
    ],
)
def test_check_refuses(net, message):
    with pytest.raises(ValueError, match=message):
        check_classifier(Classifier(net, DOMAIN, "own"))


def test_check_refuses_infinite_running_statistics():
    net = small_net()
    net[1].running_var[1] = float("inf")
    with pytest.raises(ValueError, match=r"'1\.running_var' holds NaN or infinity"):
        check_classifier(Classifier(net, DOMAIN, "own"))


def test_check_refuses_lazy_parameters():
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'1\.weight' is lazily initialised"):
        check_classifier(Classifier(net, DOMAIN, "own"))


def test_wrong_input_shape_is_named():
    classifier = Classifier(build_net("mlp", Domain((2,), 3)), Domain((2,), 3), "mlp")
    with pytest.raises(ValueError, match=r"Expected inputs with shape \(B, 2\); got \(4, 3\)"):
        classifier(torch.zeros(4, 3))
