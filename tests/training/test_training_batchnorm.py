"""Batch normalisation by the statistics of all processes' rows."""

import copy

import pytest
import torch
from torch import nn

from freia_kd import ranks
from freia_kd.training.batchnorm import WholeBatchNorm

LAYERS = {
    "vectors": (nn.BatchNorm1d(3), (5, 3)),
    "images": (nn.BatchNorm2d(3, momentum=0.4, eps=1e-2), (5, 3, 4, 2)),
    "no weights": (nn.BatchNorm2d(3, affine=False), (5, 3, 4, 2)),
    "cumulative": (nn.BatchNorm2d(3, momentum=None), (5, 3, 4, 2)),
    "nothing remembered": (nn.BatchNorm2d(3, track_running_stats=False), (5, 3, 4, 2)),
}


@pytest.fixture
def twins(monkeypatch):
    """This process as one of two that have the same rows."""
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "whole", lambda rows: torch.cat([rows, rows]))


def outcome(layer, x, weights):
    """Outputs of two batches, gradients of the inputs, and what the layer remembers."""
    layer, x = copy.deepcopy(layer).double(), x.clone().requires_grad_(True)
    y = torch.stack([layer(x), layer(x * x)])
    (gradient,) = torch.autograd.grad((weights * y).sum(), x)
    return y.detach(), gradient, dict(layer.named_buffers())


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_normalise_by_the_rows_of_all_processes(kind, twins):
    layer, shape = LAYERS[kind]
    draw = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(shape, generator=draw, dtype=torch.float64)
    weights = torch.randn(2, *shape, generator=draw, dtype=torch.float64)
    if layer.affine:
        nn.init.uniform_(layer.weight, 0.5, 2.0, generator=draw)
        nn.init.normal_(layer.bias, generator=draw)
    expected = outcome(layer, torch.cat([x, x]), torch.cat([weights, weights], 1))
    with WholeBatchNorm():
        found = outcome(layer, x, weights)
    n = len(x)
    torch.testing.assert_close(found[0], expected[0][:, :n])
    torch.testing.assert_close(found[1], expected[1][:n])
    torch.testing.assert_close(found[2], expected[2])


def test_layers_that_do_not_learn_are_left_alone(twins):
    layer, x = nn.BatchNorm2d(3).eval(), torch.ones(5, 3, 4, 2)
    expected = layer(x)
    with WholeBatchNorm():
        assert torch.equal(layer(x), expected)
    assert not layer.running_mean.any()
