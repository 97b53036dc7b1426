import pytest
import torch

from freia_kd.data.augment import Augmentation
from freia_kd.domain import DOMAINS, Domain
from freia_kd.synthesizers.samples import SamplesOptions

STILL = {"rotation": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "elastic": 0.0, "mixing": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape):
    return torch.rand(*shape, generator=generator(9))


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (5, 3, 20, 33), (3, 2, 7, 5), (1_030, 1, 4, 4)])
def test_any_shape(shape):
    x, change = draw(*shape), Augmentation(flip=True, colour=0.5)
    changed = change(x, generator())
    assert changed.shape == shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert torch.equal(changed, change(x, generator()))
    assert not torch.equal(changed, change(x, generator(1)))


def test_nothing_asked_for_changes_nothing():
    x = draw(6, 3, 9, 11)
    torch.testing.assert_close(Augmentation(**STILL)(x, generator()), x, atol=1e-5, rtol=0)


def test_a_mirror_is_exact_and_takes_half_of_the_images():
    x = draw(400, 1, 6, 7)
    changed = Augmentation(**STILL, flip=True)(x, generator())
    mirrored = (changed - x.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    kept = (changed - x).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored | kept).all()
    assert 150 < mirrored.sum() < 250


def test_maps_of_turns_and_mirrors_keep_distances():
    change = Augmentation(**{**STILL, "rotation": 40.0}, flip=True)
    maps = change._maps(200, generator(), torch.device("cpu"))[:, :, :2]
    torch.testing.assert_close(maps @ maps.mT, torch.eye(2).expand(200, 2, 2))
    assert 70 < (torch.linalg.det(maps) < 0).sum() < 130


def test_a_shift_moves_the_image():
    x = torch.zeros(300, 1, 40, 40)
    x[:, :, 18:22, 18:22] = 1
    changed = Augmentation(**{**STILL, "shift": 0.2})(x, generator())
    at = torch.arange(40) - 19.5
    columns = (changed.sum((1, 2)) * at).sum(1) / changed.sum((1, 2, 3))
    rows = (changed.sum((1, 3)) * at).sum(1) / changed.sum((1, 2, 3))
    for moved in (columns, rows):
        assert 7 < moved.abs().max() <= 8.1  # a fifth of 40 pixels
        assert moved.std().item() == pytest.approx(16 / 12**0.5, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([rows, columns]))[0, 1]) < 0.2


@pytest.mark.parametrize("name", ["rotation", "scale", "shear", "shift", "elastic"])
def test_each_change_changes(name):
    x, usual = draw(8, 1, 16, 16), getattr(Augmentation(), name)
    changed = Augmentation(**{**STILL, name: usual})(x, generator())
    assert ((changed - x).abs().amax((1, 2, 3)) > 1e-3).all()


def test_rotation_keeps_the_radius():
    x = torch.zeros(50, 1, 41, 41)
    x[:, :, 20, 32] = 1.0
    changed = Augmentation(**{**STILL, "rotation": 90.0})(x, generator())
    best = changed.flatten(1).argmax(1)
    radius = torch.hypot((best // 41 - 20).float(), (best % 41 - 20).float())
    assert (radius - 12).abs().max() < 1.5
    assert len(best.unique()) > 20


def test_mixing_takes_its_share_each_way():
    x = torch.eye(300).view(300, 1, 15, 20)  # one pixel each
    changed = Augmentation(**{**STILL, "mixing": 0.6})(x, generator())
    own = changed.flatten(1).diagonal()
    pixels = (changed.flatten(1) > 1e-4).sum(1)
    alone = (pixels == 1) & (own > 0.999)
    blended = (own < 0.999) & (own > 1e-3)
    doubled = (pixels == 2) & (own > 0.999)
    assert 0.35 < alone.double().mean() < 0.65  # 0.4, and patches that show nothing
    assert 0.12 < blended.double().mean() < 0.28
    assert 0.12 < doubled.double().mean() < 0.28
    sums = changed.flatten(1).sum(1)
    torch.testing.assert_close(sums[blended], torch.ones(int(blended.sum())), atol=1e-4, rtol=0)


def test_a_patch_shows_the_other_image():
    x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 30, 30)
    patch = Augmentation()._patches(x.repeat(200, 1, 1, 1), generator())
    assert patch.shape == (400, 1, 30, 30)
    assert patch.double().mean().item() == pytest.approx(0.32, abs=0.05)  # less at the edges


def test_inputs_without_a_partner_are_not_mixed():
    x = draw(1, 1, 8, 8)
    change = Augmentation(**{**STILL, "mixing": 1.0})
    torch.testing.assert_close(change(x, generator()), x, atol=1e-5, rtol=0)
    assert Augmentation(mixing=0.7).without_mixing() == Augmentation(mixing=0.0)


def test_vectors_get_noise_in_their_own_units():
    domain = Domain((2,), 2, (0.0, 0.0), (1.0, 100.0))
    x = torch.zeros(3_000, 2)
    changed = Augmentation(mixing=0.0, noise=0.2)(x, generator(), domain)
    torch.testing.assert_close(changed.std(0), torch.tensor([0.2, 20.0]), rtol=0.05, atol=0)
    mixed = Augmentation(mixing=1.0, noise=0.0)(torch.eye(200), generator())
    torch.testing.assert_close(mixed.sum(1), torch.ones(200))
    assert ((mixed > 0).sum(1) == 2).sum() > 190


@pytest.mark.parametrize(
    ("domain", "natural"),
    [
        (DOMAINS["cifar10"], True),
        (Domain((3, 64, 64), 5), True),
        (DOMAINS["svhn"], False),
        (DOMAINS["mnist"], False),
        (Domain((3, 32, 32), 10, name="MNIST-M"), False),
        (Domain((4,), 2), False),
    ],
)
def test_flips_and_colours_are_for_natural_images(domain, natural):
    change = Augmentation.for_domain(domain, mixing=0.25)
    assert change.flip == natural
    assert (change.colour > 0) == natural
    assert change.mixing == 0.25


@pytest.mark.parametrize("natural", [True, False])
def test_whether_images_are_natural_can_be_said(natural):
    for domain in (DOMAINS["cifar10"], DOMAINS["mnist"]):
        change = Augmentation.for_domain(domain, natural, mixing=0.0)
        assert (change.flip, change.colour > 0) == (natural, natural)
        x = torch.rand(64, *domain.shape, generator=generator())
        assert change(x, generator(), domain).shape == x.shape
    options = SamplesOptions(natural=natural)
    assert options.augmentation(DOMAINS["cifar10"], 10).flip == natural


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": -1.0}, "rotation of at least 0; got -1.0"),
        ({"mixing": 1.5}, r"mixing in \[0, 1\]; got 1.5"),
        ({"scale": 2.0}, r"scale in \[0, 1\]"),
        ({"elastic": float("nan")}, "elastic of at least 0; got nan"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)
