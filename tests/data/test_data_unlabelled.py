import numpy as np
import pytest
import torch
from PIL import Image

from freia_kd.data.unlabelled import read_unlabelled
from freia_kd.domain import Domain
from freia_kd.errors import UsageError

GREY, COLOUR = Domain((1, 6, 8), 3), Domain((3, 6, 8), 3)


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path, *shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(*shape)).save(path)


@pytest.mark.parametrize("domain", [GREY, COLOUR])
def test_a_folder_of_any_sizes_and_colours(domain, tmp_path):
    save(tmp_path / "b.png", 6, 8, 3)
    save(tmp_path / "deep" / "er" / "a.jpg", 30, 20)
    save(tmp_path / "c.png", 5, 5)
    (tmp_path / "notes.txt").write_text("no image")
    x = read_unlabelled(tmp_path, domain)
    assert x.shape == (3, *domain.shape)
    assert x.dtype == torch.uint8
    if domain is COLOUR:
        assert np.array_equal(x[0].permute(1, 2, 0), pixels(6, 8, 3))  # b.png, of the same size
    assert torch.equal(read_unlabelled(tmp_path, domain, most=3), x)


def test_the_most_that_are_read_come_from_every_folder(tmp_path):
    shades = np.repeat(np.arange(6, dtype=np.uint8), 48).reshape(6, 6, 8)
    names = ("cat/1", "cat/2", "cat/3", "dog/1", "dog/2", "emu/1")
    for name, shade in zip(names, shades, strict=True):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(shade).save(path)
    np.savez(tmp_path / "a.npz", x=shades)
    for most, rows in ((3, [0, 2, 4]), (4, [0, 1, 3, 4]), (9, list(range(6)))):
        for source in (tmp_path, tmp_path / "a.npz"):
            assert read_unlabelled(source, GREY, most)[:, 0, 0, 0].tolist() == rows


@pytest.mark.parametrize(
    "shape", [(4, 6, 8), (4, 1, 6, 8), (4, 3, 6, 8), (4, 6, 8, 3), (4, 12, 9, 3), (4, 9, 9)]
)
@pytest.mark.parametrize("domain", [GREY, COLOUR])
def test_npz_files(shape, domain, tmp_path):
    np.savez(tmp_path / "a.npz", x=pixels(*shape), y=np.arange(4))
    x = read_unlabelled(tmp_path / "a.npz", domain)
    assert x.shape == (4, *domain.shape)
    np.savez(tmp_path / "b.npz", anything=pixels(*shape) / 255)
    assert torch.equal(read_unlabelled(str(tmp_path / "b.npz"), domain), x)


def test_grey_is_that_of_pillow(tmp_path):
    colours = pixels(4, 6, 8, 3)
    np.savez(tmp_path / "a.npz", images=colours)
    x = read_unlabelled(tmp_path / "a.npz", GREY)[:, 0].int()
    expected = torch.stack(
        [torch.tensor(np.array(Image.fromarray(c).convert("L"))) for c in colours]
    )
    assert (x - expected.int()).abs().max() <= 1


def test_vectors(tmp_path):
    domain = Domain((2,), 2)
    np.savez(tmp_path / "a.npz", x=np.eye(2))
    assert torch.equal(read_unlabelled(tmp_path / "a.npz", domain), torch.eye(2))
    np.savez(tmp_path / "b.npz", x=np.eye(3))
    with pytest.raises(
        UsageError, match=r"vectors of shape \(2,\); got torch.float64 of shape \(3,\)"
    ):
        read_unlabelled(tmp_path / "b.npz", domain)
    with pytest.raises(UsageError, match=r"Expected vectors of shape \(2,\).*is a folder"):
        read_unlabelled(tmp_path, domain)


def test_faults_are_named(tmp_path):
    with pytest.raises(UsageError, match="There is no folder or file"):
        read_unlabelled(tmp_path / "nowhere", GREY)
    with pytest.raises(UsageError, match="There are no images in"):
        read_unlabelled(tmp_path, GREY)
    for x, words in ((np.float32(1), "no inputs"), (np.array(["a"]), "expected numbers; got <U1")):
        np.savez(tmp_path / "odd.npz", x=x)
        with pytest.raises(UsageError, match=words):
            read_unlabelled(tmp_path / "odd.npz", GREY)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is not a sound"):
        read_unlabelled(tmp_path / "bad.npz", GREY)
    (tmp_path / "one.png").write_bytes(b"nothing")
    (tmp_path / "two.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"2 faulty files:(.|\n)*one.png(.|\n)*two.png"):
        read_unlabelled(tmp_path, GREY)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(1), "b": np.zeros(1)}, "expected an array x or images; got a, b"),
        ({"x": np.zeros((0, 6, 8))}, "holds no inputs"),
        ({"x": np.full((1, 6, 8), 2.0)}, r"float pixels in \[0, 1\]; got 2 to 2"),
        ({"x": np.full((1, 6, 8), np.nan)}, r"float pixels in \[0, 1\]; got nan"),
        ({"x": np.zeros((1, 2, 6, 8))}, r"1 or 3 channels.*got shape \(1, 2, 6, 8\)"),
        ({"x": pixels(2, 8, 8, 4)}, r"1 or 3 channels.*got shape \(2, 8, 8, 4\)"),
        ({"x": pixels(2, 6, 8) // 128}, "none above 1, which is all but black. Multiply by 255"),
        ({"x": np.zeros((1, 6))}, r"images \(N, C, H, W\); got torch.float64 of shape \(1, 6\)"),
        ({"x": np.array([{}])}, "not a sound .npz file"),
    ],
)
def test_arrays_that_do_not_fit(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        read_unlabelled(tmp_path / "a.npz", GREY)


def test_files_of_another_kind_are_told_from_npz_files(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(pixels(6, 8, 3)).save(path)
    with pytest.raises(UsageError, match=r"nor even a zip archive.*Give the folder"):
        read_unlabelled(path, GREY)


def test_masks_in_a_folder_are_refused(tmp_path):
    Image.fromarray(pixels(6, 8) // 128).save(tmp_path / "mask.png")
    with pytest.raises(UsageError, match="all but black"):
        read_unlabelled(tmp_path, GREY)
