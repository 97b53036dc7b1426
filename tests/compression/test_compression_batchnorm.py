"""Batch normalisation in a student: frozen, re-estimated, trained."""

import pytest
import torch
from torch import nn

from freia_kd.compression.batchnorm import prepare_batchnorm, reestimate_batchnorm, train_mode
from freia_kd.compression.plans import make_plan
from freia_kd.compression.surgery import apply_plan
from freia_kd.teachers.resnet14 import ResNet14


@pytest.fixture
def inputs():
    return 3 + 2 * torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_frozen_statistics_stay_and_the_affine_part_learns(inputs):
    net = apply_plan(ResNet14(), make_plan(ResNet14(), "layers3.*", 0.25))
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    train_mode(net)
    net(inputs).square().sum().backward()
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())
    assert net.layers3[0].bn1.weight.grad.any()
    train_mode(net, "train")
    net(inputs)
    assert not any(torch.equal(net.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("batch", [64, 16])
def test_reestimated_statistics_are_those_of_the_inputs(inputs, batch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    reestimate_batchnorm(net, inputs, batch)
    with torch.no_grad():
        seen = net[0](inputs).transpose(0, 1).flatten(1)
    torch.testing.assert_close(net[1].running_mean, seen.mean(1))
    torch.testing.assert_close(net[1].running_var, seen.var(1), rtol=0.02, atol=0)
    assert net[1].momentum == 0.1
    assert net.training
    assert net[1].training


def test_modes(inputs):
    net = nn.BatchNorm2d(3)
    for mode in ("freeze", "train"):
        prepare_batchnorm(net, mode, inputs)
        assert not net.running_mean.any()
    prepare_batchnorm(net, "reestimate", inputs)
    assert (net.running_mean > 2.5).all()


def test_bad_input(inputs):
    net = ResNet14()
    with pytest.raises(ValueError, match="freeze, reestimate or train; got 'thaw'"):
        prepare_batchnorm(net, "thaw")
    with pytest.raises(ValueError, match="Expected inputs, from which"):
        prepare_batchnorm(net, "reestimate")
    with pytest.raises(ValueError, match="at least 2 inputs"):
        reestimate_batchnorm(net, inputs[:1])
    with pytest.raises(ValueError, match=r"that the net takes; got \(64, 2, 16, 16\)"):
        reestimate_batchnorm(net, inputs[:, :2])
    assert net.norm1.momentum == 0.1
