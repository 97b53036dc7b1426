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


def gaussian_kl(mean, variance, other_mean, other_variance):
    return (
        np.log(other_variance / variance) / 2
        + (variance + (mean - other_mean) ** 2) / (2 * other_variance)
        - 0.5
    )


def divergence(teacher, x, **options):
    statistics = BatchStatistics("divergence", **options)
    with statistics.observe(teacher) as records:
        teacher(x)
    return statistics.loss(records)


@pytest.mark.parametrize("name", LAYERS)
def test_the_form_without_units_is_a_divergence_of_gaussians(name):
    make, shape = LAYERS[name]
    layer, x = randomized(make()), draw(*shape)
    channels = np.moveaxis(x.numpy(), 1, 0).reshape(4, -1)
    running = layer.running_var.numpy()
    floor = running.mean() / 1000
    values = gaussian_kl(
        channels.mean(1), channels.var(1) + floor, layer.running_mean.numpy(), running + floor
    )
    np.testing.assert_allclose(divergence(layer, x).item(), values.mean(), rtol=1e-6)


def test_the_form_without_units_is_the_mean_over_layers():
    teacher, x = two_layers(), draw(6, 4, 3, 2)
    first = divergence(teacher[0], x)
    second = divergence(teacher[1], teacher[0](x).detach())
    np.testing.assert_allclose(divergence(teacher, x).item(), ((first + second) / 2).item())
    weighted = divergence(teacher, x, first=3.0)
    np.testing.assert_allclose(weighted.item(), ((3 * first + second) / 4).item())


@pytest.mark.parametrize(("form", "grows"), [("norms", True), ("divergence", False)])
def test_only_the_norms_grow_with_the_teachers_units(form, grows):
    layer, x = randomized(nn.BatchNorm1d(4)), draw(6, 4)
    values = []
    for scale in (1.0, 100.0):
        large = randomized(nn.BatchNorm1d(4))
        large.running_mean.copy_(scale * layer.running_mean)
        large.running_var.copy_(scale**2 * layer.running_var)
        statistics = BatchStatistics(form)
        with statistics.observe(large) as records:
            large(scale * x)
        values.append(statistics.loss(records).item())
    assert (values[1] > 100 * values[0]) == grows
    if not grows:
        np.testing.assert_allclose(values[1], values[0], rtol=1e-6)


def test_dead_channels_and_layers_are_finite():
    layer = nn.BatchNorm1d(4).double()
    layer.running_var.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    x = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    divergence(layer, x).backward()
    assert x.grad.isfinite().all()
    layer.running_var.zero_()
    assert divergence(layer, x).item() == 0


def test_the_form_without_units_has_gradients():
    teacher, x = two_layers(), draw(6, 4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: divergence(teacher, x), x)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form norms or divergence of batch statistics; got 'l2'"):
        BatchStatistics("l2")
