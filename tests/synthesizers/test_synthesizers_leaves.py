import numpy as np
import pytest
import scipy.stats
import torch

from freia_kd.domain import DOMAINS, Domain
from freia_kd.synthesizers.leaves import RING, DeadLeaves, Leaves, LeavesOptions, is_inside
from freia_kd.teachers import Teacher
from freia_kd.teachers.mlp import MLP

FLAT = LeavesOptions(texture=0.0, blur=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 20, 33), (2, 7, 5), (5, 16, 16), (1, 1, 3)])
@pytest.mark.parametrize("count", [1, 3, 300])
def test_any_shape_and_count(shape, count):
    paint = DeadLeaves(Domain(shape, 2, (0.3,), (0.2,)))
    x = paint(count, generator())
    assert x.shape == (count, *shape)
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.equal(x, paint(count, generator()))
    assert not torch.equal(x, paint(count, generator(1)))


@pytest.mark.parametrize("name", ["fashion-mnist", "svhn", "cifar10"])
def test_pixels_have_the_domains_statistics(name):
    domain = DOMAINS[name]
    x = DeadLeaves(domain, FLAT)(2_000, generator())
    np.testing.assert_allclose(x.mean((0, 2, 3)), domain.mean, atol=0.02)
    np.testing.assert_allclose(x.std((0, 2, 3)), domain.std, atol=0.02)


def test_grey_levels_are_of_the_beta_law():
    paint = DeadLeaves(Domain((1, 4, 4), 2, (0.3,), (0.2,)), LeavesOptions(most=1))
    levels = paint._colours(4_000, 1, generator()).flatten().numpy()
    total = 0.3 * 0.7 / 0.04 - 1
    law = scipy.stats.beta(0.3 * total, 0.7 * total)
    assert scipy.stats.kstest(levels, law.cdf).pvalue > 0.01


def test_domains_that_nobody_measured_get_every_grey():
    x = DeadLeaves(Domain((1, 32, 32), 2, (0.0,), (1.0,)), FLAT)(500, generator())
    assert x.mean().item() == pytest.approx(0.5, abs=0.05)
    assert x.std().item() == pytest.approx(12**-0.5, abs=0.05)


def test_channels_of_a_leaf_are_alike_but_not_the_same():
    x = DeadLeaves(DOMAINS["cifar10"], FLAT)(500, generator()).transpose(0, 1).flatten(1)
    correlation = np.corrcoef(x.numpy())
    assert 0.6 < correlation[0, 1] < 0.99
    assert 0.6 < correlation[0, 2] < 0.99


def test_leaves_are_flat_regions_with_edges():
    x = DeadLeaves(DOMAINS["fashion-mnist"], FLAT)(200, generator())
    levels = torch.tensor([len(image.unique()) for image in x])
    assert levels.max() <= FLAT.most + 1
    assert levels.min() <= 3
    assert len(levels.unique()) > 10  # their number varies
    same = (x.diff(dim=3) == 0).double().mean().item()
    assert 0.6 < same < 0.99


def test_sizes_follow_the_law():
    """Half of them have the density r^-3 from a pixel to the half side, half are uniform."""
    paint = DeadLeaves(Domain((1, 32, 32), 2, (0.5,), (0.2,)))
    frames = paint._frames(300, 40, generator())[..., :2].flatten(0, 1).double()
    radius = torch.linalg.det(frames).abs().rsqrt().numpy()  # a stretch keeps the area
    low = 2 / 32

    def share_below(r):
        law = (low**-2 - r**-2) / (low**-2 - 1)
        return (law + (r - low) / (1 - low)) / 2

    assert scipy.stats.kstest(radius, share_below).pvalue > 0.01


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        (0, [(0, 0), (0.7, 0.7), (-0.9, 0.3)], [(0.75, 0.75), (0, -1.1)]),
        (1, [(0, 0), (0.9, 0.9), (-0.9, 0.9)], [(1.1, 0), (0, -1.1)]),
        (2, [(0, 0.9), (0.9, -0.9), (-0.9, -0.9)], [(0.5, 0.5), (0, -1.1), (0, 1.1)]),
        (3, [(0.8, 0), (0, -0.9), (0.6, 0.6)], [(0, 0), (RING - 0.05, 0), (1.1, 0)]),
    ],
)
def test_shapes(kind, inside, outside):
    for points, expected in ((inside, True), (outside, False)):
        u, v = torch.tensor(points, dtype=torch.float32).T.unsqueeze(0).unbind(1)
        assert (is_inside(kind, u, v) == expected).all()


def test_a_later_leaf_covers_an_earlier_one(monkeypatch):
    paint = DeadLeaves(Domain((1, 8, 8), 2, (0.5,), (0.2,)))
    whole = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0]])  # covers every pixel
    monkeypatch.setattr(paint, "_frames", lambda n, leaves, _: whole.expand(n, leaves, 2, 3))
    monkeypatch.setattr("freia_kd.synthesizers.leaves.is_inside", lambda kind, u, v: u.abs() < 1)
    assert paint._cover([5, 5, 3, 1], 5, generator()).flatten(1).unique(
        dim=1
    ).flatten().tolist() == [
        5,
        5,
        3,
        1,
    ]


def test_blur_and_texture_do_what_they_say():
    domain = DOMAINS["fashion-mnist"]

    def roughness(**options):
        x = DeadLeaves(domain, LeavesOptions(**options))(300, generator())
        return x.diff(dim=3).square().mean().item(), (x.diff(dim=3) == 0).double().mean().item()

    edges, flat = roughness(texture=0.0, blur=0.0)
    blurred, _ = roughness(texture=0.0, blur=2.0)
    _, textured = roughness(texture=1.0, blur=0.0)
    assert blurred < edges / 2
    assert textured < 0.8 * flat


def test_vectors_are_refused_before_any_work():
    teacher = Teacher(MLP(3, 2), Domain((3,), 2), "mlp")
    with pytest.raises(ValueError, match=r"images; got .*\(3,\)"):
        Leaves().fit(teacher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most": 0}, "leaves.most: expected at least 1; got 0"),
        ({"most": 256}, "leaves.most: expected at most 255; got 256"),
        ({"textured": 1.5}, "leaves.textured: expected at most 1"),
        ({"blur": -1.0}, "leaves.blur: expected at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LeavesOptions(**options)
