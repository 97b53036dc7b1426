import numpy as np
import pytest
import torch
from objectives_ranks import draw, randomized, reduced_gradient, two_layers
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from freia_kd.objectives import BatchStatistics, moments, normalization_layers

LAYERS = {
    "1d": (lambda: nn.BatchNorm1d(4), (6, 4)),
    "1d-long": (lambda: nn.BatchNorm1d(4), (6, 4, 5)),
    "2d": (lambda: nn.BatchNorm2d(4), (6, 4, 3, 2)),
    "3d": (lambda: nn.BatchNorm3d(4), (6, 4, 3, 2, 2)),
    "sync": (lambda: nn.SyncBatchNorm(4), (6, 4, 3, 2)),
    "frozen": (lambda: FrozenBatchNorm2d(4), (6, 4, 3, 2)),
}


def expected(layer, x):
    channels = np.moveaxis(x.numpy(), 1, 0).reshape(4, -1)
    return np.linalg.norm(channels.mean(1) - layer.running_mean.numpy()) + np.linalg.norm(
        channels.var(1) - layer.running_var.numpy()
    )


@pytest.mark.parametrize("name", LAYERS)
def test_distance_is_eq_7(name):
    make, shape = LAYERS[name]
    layer = randomized(make())
    teacher, x = nn.Sequential(nn.Identity(), layer), draw(*shape)
    with BatchStatistics().observe(teacher) as records:
        teacher(x)
    np.testing.assert_allclose(BatchStatistics().loss(records).item(), expected(layer, x))
    assert list(normalization_layers(teacher)) == ["1"]


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, (1, 1)),
        ({"first": 2.0}, (2, 1)),
        ({"weights": {"1": 0.5}}, (1, 0.5)),
        ({"first": 2.0, "weights": {"0": 3.0}}, (3, 1)),
    ],
)
def test_layers_are_weighted(options, weights):
    teacher, x = two_layers(), draw(6, 4, 3, 2)
    statistics = BatchStatistics(**options)
    with statistics.observe(teacher) as records:
        teacher(x)
    parts = expected(teacher[0], x), expected(teacher[1], teacher[0](x).detach())
    np.testing.assert_allclose(statistics.loss(records).item(), np.dot(weights, parts))


def test_momentum_blends_batches():
    layer, statistics = randomized(nn.BatchNorm1d(4)), BatchStatistics(momentum=0.75)
    mean, variance = None, None
    for step in range(3):
        x = draw(6, 4, seed=step)
        with statistics.observe(layer) as records:
            layer(x)
        share = 1.0 if mean is None else 0.25
        mean = share * x.numpy().mean(0) + (0 if mean is None else 0.75 * mean)
        variance = share * x.numpy().var(0) + (0 if variance is None else 0.75 * variance)
        distance = np.linalg.norm(mean - layer.running_mean.numpy())
        distance += np.linalg.norm(variance - layer.running_var.numpy())
        np.testing.assert_allclose(statistics.loss(records).item(), distance)


def test_momentum_remembers_no_graph():
    layer, x = randomized(nn.BatchNorm1d(4)), draw(6, 4).requires_grad_()
    earlier = {"": (draw(4, seed=5), draw(4, seed=6).exp())}

    def loss(x):
        statistics = BatchStatistics(momentum=0.75, earlier=dict(earlier))
        with statistics.observe(layer) as records:
            layer(x)
        result = statistics.loss(records)
        assert not any(value.requires_grad for value in statistics.earlier[""])
        return result

    assert torch.autograd.gradcheck(loss, x)


def test_gradient_flows_to_the_images():
    teacher, x = two_layers(), draw(6, 4, 3, 2).requires_grad_()

    def loss(x):
        with BatchStatistics().observe(teacher) as records:
            teacher(x)
        return BatchStatistics().loss(records)

    assert torch.autograd.gradcheck(loss, x)


def fail_halfway(teacher):
    with BatchStatistics().observe(teacher):
        assert all(layer._forward_pre_hooks for layer in teacher)
        raise RuntimeError("halfway")


def test_hooks_are_removed_even_after_an_error():
    teacher = two_layers()
    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway(teacher)
    assert not any(layer._forward_pre_hooks for layer in teacher)


def test_layers_that_remember_nothing_do_not_count():
    teacher = nn.Sequential(
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
    )
    assert normalization_layers(teacher) == {}


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"names of normalisation layers, 0, 1; got 7"):
        BatchStatistics(weights={"7": 1.0}).observe(two_layers()).__enter__()
    with pytest.raises(ValueError, match="this teacher has none; got 7"):
        BatchStatistics(weights={"7": 1.0}).observe(nn.Identity()).__enter__()
    with pytest.raises(ValueError, match="got none"):
        BatchStatistics().loss([])
    with pytest.raises(ValueError, match="momentum"):
        BatchStatistics(momentum=1.0)
    with pytest.raises(ValueError, match="at least 0"):
        BatchStatistics(first=-1.0)


def test_moments_of_large_means_keep_their_variance():
    x = 1e4 + torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(moments(x)[1], x.double().var(0, unbiased=False), rtol=1e-3)


@pytest.mark.slow
def test_statistics_are_those_of_all_ranks_together(tmp_path):
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(reduced_gradient, (tmp_path / "store", results), nprocs=2)
        results = dict(results)

    teacher, x = two_layers(), draw(6, 4, 3, 2)
    shift = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    with BatchStatistics().observe(teacher) as records:
        teacher(x * (1 + shift.view(1, 4, 1, 1)))
    loss = BatchStatistics().loss(records)
    loss.backward()
    for value, gradient in results.values():
        np.testing.assert_allclose(value, loss.item())
        np.testing.assert_allclose(gradient, shift.grad.numpy())
