import numpy as np
import pytest
import torch

from freia_kd.domain import DOMAINS, Domain
from freia_kd.synthesizers.photos import Crops, Photos, PhotosOptions, load_photographs

UNMEASURED = Domain((3, 8, 8), 2, (0.0,), (1.0,))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 20, 33), (2, 7, 5), (5, 16, 16), (3, 500, 700)])
@pytest.mark.parametrize("count", [1, 3])
def test_any_shape_and_count(shape, count):
    crops = Crops(load_photographs(), Domain(shape, 2, (0.3,), (0.2,)))
    x = crops(count, generator())
    assert x.shape == (count, *shape)
    assert 0 <= x.min() < x.max() <= 1
    assert torch.equal(x, crops(count, generator()))
    assert not torch.equal(x, crops(count, generator(1)))


def test_crops_have_about_the_domains_statistics():
    domain = DOMAINS["cifar10"]
    x = Crops(load_photographs(), domain)(1_000, generator())
    np.testing.assert_allclose(x.mean((0, 2, 3)), domain.mean, atol=0.05)
    np.testing.assert_allclose(x.std((0, 2, 3)), domain.std, atol=0.07)


def test_no_two_crops_are_the_same():
    x = Crops(load_photographs(), DOMAINS["mnist"])(300, generator())
    assert len(x.flatten(1).unique(dim=0)) == 300


def test_crops_are_places_of_the_image():
    """Of an image whose colours are its coordinates, without turns: the sizes are as stated."""
    down, across = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    image = torch.stack([down, across, torch.zeros(64, 96)])
    options = PhotosOptions(rotation=0.0, stretch=1.0)
    x = Crops([image], UNMEASURED, options)(400, generator())
    x = torch.where(x[:, 2:].mean((1, 2, 3), keepdim=True) > 0.5, 1 - x, x)  # half are inverted
    height = (x[:, 0].amax((1, 2)) - x[:, 0].amin((1, 2))) * 64 * 8 / 7
    width = (x[:, 1].amax((1, 2)) - x[:, 1].amin((1, 2))) * 96 * 8 / 7
    torch.testing.assert_close(height, width, rtol=0.15, atol=1.0)
    assert 7 < height.min() < 10  # from the size of an input
    assert 55 < height.max() < 66  # to that of the image
    assert height.median().item() == pytest.approx((8 * 64) ** 0.5, rel=0.15)  # log-uniform
    mirrored = (x[:, 1, :, 0] > x[:, 1, :, -1]).all(1)
    assert 150 < mirrored.sum() < 250


def test_large_crops_are_not_aliased():
    """Stripes of one pixel become grey."""
    stripes = (torch.arange(256) % 2).float().expand(3, 256, 256)
    options = PhotosOptions(rotation=0.0, stretch=1.0)
    x = Crops([stripes], UNMEASURED, options)(300, generator())
    contrast = x.std((1, 2, 3))
    assert (contrast < 0.01).double().mean() > 0.6
    assert contrast.max() > 0.2


def test_the_report_says_what_they_are():
    assert "not the teacher's data" in Photos.real_images


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="a domain of images"):
        Crops(load_photographs(), Domain((3,), 2))
    with pytest.raises(ValueError, match=r"photos.stretch: expected at least 1; got 0.5"):
        PhotosOptions(stretch=0.5)
