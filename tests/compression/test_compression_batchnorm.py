"""Batch normalisation in a student: statistics matched to its features."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from freia_kd.compression.batchnorm import match_batchnorm
from freia_kd.compression.tucker.plan import apply_plan, make_plan
from freia_kd.teachers.resnet14 import ResNet14


@pytest.fixture
def inputs():
    return 3 + 2 * torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_what_compression_left_alone_keeps_its_statistics(inputs):
    origin = trained_resnet()
    net = apply_plan(origin, make_plan(origin, "layers3.*", 0.25))
    match_batchnorm(net, origin, inputs, 32)
    moved = [k for k, v in origin.state_dict().items() if "running" in k and differs(net, k, v)]
    assert {k.rsplit(".", 1)[0] for k in moved} == {
        f"layers3.{block}.bn{i}" for block in (0, 1) for i in (1, 2)
    }


def trained_resnet():
    """A ResNet14 whose statistics are those of no inputs of these tests."""
    torch.manual_seed(0)
    net = ResNet14()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return net


def differs(net, key, value):
    return not torch.allclose(net.state_dict()[key], value, rtol=1e-4, atol=1e-4)


def test_scaled_and_shifted_channels_are_normalised_as_before(inputs):
    torch.manual_seed(0)
    origin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    origin = nn.Sequential(*origin, nn.BatchNorm2d(4))
    for i in (1, 4):  # far below what the inputs do, so that the prior says nothing
        origin[i].running_mean.normal_()
        origin[i].running_var.fill_(1e-3)
    net = copy.deepcopy(origin).train()
    with torch.no_grad():
        for i, factor in ((0, 3.0), (3, 0.5)):
            net[i].weight.mul_(factor)
            net[i].bias.mul_(factor).add_(2.0)
    match_batchnorm(net, origin, inputs, 16)
    assert net.training
    unseen = torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        expected, got = origin.eval()(unseen), net.eval()(unseen)
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))


def test_matched_statistics_are_those_of_a_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, generator=generator, dtype=torch.float64)
    mix = torch.tensor([[1.0, 0.7], [-0.2, 0.4]], dtype=torch.float64)
    origin = nn.Sequential(nn.Identity(), nn.BatchNorm1d(2, eps=0.0)).double()
    origin[1].running_mean.copy_(torch.tensor([0.5, -2.0]))
    origin[1].running_var.copy_(torch.tensor([1e-4, 2e-4]))
    net = copy.deepcopy(origin)
    net[0] = nn.Linear(2, 2).double()
    with torch.no_grad():
        net[0].weight.copy_(mix)
        net[0].bias.fill_(1.0)
    match_batchnorm(net, origin, x, 500)
    t, s = x.numpy(), x.numpy() @ mix.numpy().T + 1.0
    for k, (mean, variance) in enumerate([(0.5, 1e-4), (-2.0, 2e-4)]):
        slope, offset = np.polyfit(t[:, k], s[:, k], 1)
        assert net[1].running_mean[k].item() == pytest.approx(slope * mean + offset, rel=1e-4)
        share = s[:, k].var() / t[:, k].var()
        assert net[1].running_var[k].item() == pytest.approx(variance * share, rel=1e-4)


def test_matched_statistics_are_averages_over_whole_batches():
    torch.manual_seed(0)
    x = torch.randn(50, 1, dtype=torch.float64)
    x[20:40] = 2 * x[20:40] + 3
    x[40:] += 100  # less than a batch, which is left out
    origin = nn.Sequential(nn.Identity(), nn.BatchNorm1d(1, eps=0.0)).double()
    origin[1].running_var.fill_(1e-4)
    net = copy.deepcopy(origin)
    net[0] = nn.ReLU()
    match_batchnorm(net, origin, x, 20)
    fits = []
    for part in (x[:20, 0].numpy(), x[20:40, 0].numpy()):
        seen = np.maximum(part, 0)
        fits.append((np.polyfit(part, seen, 1)[1], 1e-4 * seen.var() / part.var()))
    mean, variance = np.mean(fits, axis=0)
    assert not np.allclose(fits[1], (mean, variance), rtol=0.01)
    assert net[1].running_mean.item() == pytest.approx(mean, rel=1e-3)
    assert net[1].running_var.item() == pytest.approx(variance, rel=1e-3)


def test_a_hundredth_of_the_variance_speaks_for_no_change():
    origin = nn.Sequential(nn.Identity(), nn.BatchNorm1d(1))
    origin[1].running_mean.fill_(10.0)
    origin[1].running_var.fill_(4.0)
    net = copy.deepcopy(origin)
    net[0] = nn.Linear(1, 1)
    net[0].weight.data.fill_(3.0)
    net[0].bias.data.fill_(1.0)
    # The inputs' variance is a hundredth of 4 too, so what is found is halfway to 3 and to 9.
    match_batchnorm(net, origin, torch.tensor([[0.8], [1.2]]))
    assert net[1].running_mean.item() == pytest.approx(4 + 2 * (10 - 1), rel=1e-3)
    assert net[1].running_var.item() == pytest.approx(5 * 4, rel=1e-3)


def test_dead_channels_stay_finite():
    origin = nn.Sequential(nn.BatchNorm1d(1))
    origin[0].running_var.zero_()
    net = copy.deepcopy(origin)
    match_batchnorm(net, origin, torch.zeros(4, 1))
    assert (net[0].running_mean.item(), net[0].running_var.item()) == (0, 0)


def test_channels_that_the_inputs_do_not_move_are_only_shifted():
    origin = nn.BatchNorm1d(1)
    origin.running_var.fill_(4.0)
    net = nn.Sequential(copy.deepcopy(origin))
    origin = nn.Sequential(origin)
    match_batchnorm(net, origin, torch.full((4, 1), 7.0))
    assert net[0].running_mean.item() == pytest.approx(0)
    assert net[0].running_var.item() == pytest.approx(4)


def test_nets_without_batch_normalisation_are_not_run(inputs):
    match_batchnorm(nn.Linear(1, 1), nn.Linear(1, 1), inputs)  # which neither of them takes


def test_layers_of_another_width_keep_what_they_have(inputs):
    origin = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    match_batchnorm(net, origin, inputs)
    assert not net[1].running_mean.any()


def test_bad_input(inputs):
    net = ResNet14()
    with pytest.raises(ValueError, match="at least 2 inputs"):
        match_batchnorm(net, net, inputs[:1])
    with pytest.raises(ValueError, match="inputs that both nets take"):
        match_batchnorm(net, copy.deepcopy(net), inputs[:, :1])
