"""Tests of figures on a ground."""

import pytest
import torch

from freia_kd.domain import DOMAINS, Domain
from freia_kd.synthesizers.figures import FigureOnGround, FiguresOptions

PLAIN = {"texture": 0.0, "blur": 0.0, "textured": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 20, 33), (2, 7, 5), (1, 1, 3)])
@pytest.mark.parametrize("count", [1, 3, 300])
def test_any_shape_and_count(shape, count):
    paint = FigureOnGround(Domain(shape, 2, (0.3,), (0.2,)))
    x = paint(count, generator())
    assert x.shape == (count, *shape)
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.equal(x, paint(count, generator()))


def silhouettes(**options):
    paint = FigureOnGround(DOMAINS["mnist"], FiguresOptions(**options))
    return paint._figures(400, generator()).view(400, 32, 32)


@pytest.mark.parametrize("blobs", [0.0, 1.0])
@pytest.mark.parametrize(("mirrored", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_that_figures_are_mirrored_where_they_are_to_be(blobs, mirrored, share):
    found = silhouettes(blobs=blobs, mirrored=mirrored)
    shown = found[found.flatten(1).any(1) & ~found.flatten(1).all(1)]
    same = (shown == shown.flip(2)).flatten(1).all(1).double().mean().item()
    assert same == pytest.approx(share, abs=0.05)  # a disc in the middle mirrors itself


@pytest.mark.parametrize("blobs", [0.0, 1.0])
def test_that_figures_lie_in_the_middle_and_the_ground_around_them(blobs):
    found = silhouettes(blobs=blobs).double().mean(0)
    border = torch.cat([found[0], found[-1], found[:, 0], found[:, -1]]).mean()
    assert found[12:20, 12:20].mean() > 2 * border


def test_that_the_ground_is_one_level_and_half_of_the_figures_are_too():
    paint = FigureOnGround(DOMAINS["mnist"], FiguresOptions(**PLAIN))
    x = paint(400, generator())
    paint.contrast = torch.zeros(())
    flat = paint(400, generator()).flatten(1)
    levels = torch.tensor([len(image.unique()) for image in flat])
    assert (levels <= 2).double().mean() > 0.5
    assert x.flatten(1)[:, 0].unique().numel() > 50  # but not the same one in every image


def test_that_more_shapes_make_larger_figures():
    one, many = (silhouettes(shapes=n, blobs=0.0).double().mean() for n in (1, 16))
    assert many > 1.5 * one
