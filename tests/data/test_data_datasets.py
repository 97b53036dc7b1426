"""Labelled data: named sets, image folders, npz files, and their faults."""

import gzip
import hashlib
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from freia_kd.data.datasets import (
    LabelledData,
    load_dataset,
    measure_domain,
    resize_images,
)
from freia_kd.data.sources import TORCHVISION
from freia_kd.domain import DOMAINS, Domain
from freia_kd.errors import UsageError

GREY = Domain((1, 6, 5), 3)
COLOUR = Domain((3, 6, 5), 3)


# --- LabelledData ---


def some_data(n=10):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (n, 1, 6, 5), dtype=torch.uint8, generator=generator)
    return LabelledData(inputs, torch.arange(n) % 3, "some")


def test_items_are_float_pixels_and_labels():
    data = some_data()
    x, y = data[4]
    assert torch.equal(x, data.inputs[4].float() / 255)
    assert (len(data), y, data.shape) == (10, 1, (1, 6, 5))


def test_batches_cover_the_data_in_order():
    data = some_data()
    batches = list(data.batches(4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.inputs.float() / 255)
    assert torch.equal(torch.cat([y for _, y in batches]), data.labels)


def test_shuffled_batches_are_a_permutation_that_the_generator_decides():
    data = LabelledData(torch.arange(10.0)[:, None], torch.arange(10), "range")

    def order(seed):
        batches = data.batches(4, torch.Generator().manual_seed(seed))
        return [(int(a), int(b)) for x, y in batches for a, b in zip(x, y, strict=True)]

    assert sorted(order(0)) == [(i, i) for i in range(10)]
    assert order(0) == order(0) != order(1)
    assert order(0) != sorted(order(0))


def test_a_smaller_last_batch_can_be_left_out():
    batches = some_data().batches(4, torch.Generator().manual_seed(0), drop_last=True)
    assert [len(x) for x, _ in batches] == [4, 4]


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), "expected at least one input"),
        (torch.zeros(3, 2), torch.arange(2), "one label for each"),
        (torch.zeros(3, 2), torch.zeros(3), "labels that are integers"),
        (torch.zeros(3, 2), torch.arange(3) - 1, "labels that are integers from 0"),
        (torch.zeros(3, 2, 2), torch.arange(3), r"got torch.float32 of shape \(3, 2, 2\)"),
        (torch.zeros(3, 1, 2, 2).int(), torch.arange(3), "got torch.int32"),
        (torch.full((3, 2), float("nan")), torch.arange(3), "got NaN or infinity"),
        (torch.full((3, 1, 2, 2), 255.0), torch.arange(3), r"in \[0, 1\]; got 255 to 255.*Divide"),
        (torch.full((3, 1, 2, 2), -0.5), torch.arange(3), r"in \[0, 1\]; got -0.5"),
    ],
)
def test_impossible_data_are_refused(inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        LabelledData(inputs, labels, "bad")


def test_measured_domain_has_the_statistics_of_all_pixels():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2500, 3, 4, 5), dtype=torch.uint8, generator=generator)
    images[:, 1] //= 2
    domain = measure_domain(LabelledData(images, torch.arange(2500) % 7, "noise"))
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    assert domain.mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-6)
    assert domain.std == pytest.approx(pixels.std(1, correction=0).tolist(), abs=1e-6)
    assert (domain.shape, domain.classes, domain.name) == ((3, 4, 5), 7, "noise")


def test_measured_domain_of_vectors_has_one_statistic_a_feature():
    x = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    domain = measure_domain(LabelledData(x, torch.tensor([0, 1]), "points"), "mine")
    assert domain == Domain((2,), 2, (1.0, 5.0), (1.0, 1.0), "mine")


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_28_to_32_gives_the_pixels_of_torchvision(channels):
    images = random_pixels(20, channels, 28, 28)
    expected = [
        np.stack([Image.fromarray(c).resize((32, 32), Image.Resampling.BILINEAR) for c in image])
        for image in images
    ]
    resized = resize_images(torch.from_numpy(images), (32, 32))
    assert torch.equal(resized, torch.from_numpy(np.stack(expected)))


def test_resizing_in_chunks_is_that_of_each_image():
    images = torch.from_numpy(random_pixels(4100, 1, 4, 4))
    resized = resize_images(images, (6, 5))
    assert resized.dtype == torch.uint8
    assert torch.equal(resized[4090:], resize_images(images[4090:], (6, 5)))
    assert resize_images(images, (4, 4)) is images


def test_resizing_floats_equals_torch():
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images, (6, 5), mode="bilinear", antialias=True)
    assert torch.equal(resize_images(images, (6, 5)), expected)


def test_resizing_down_antialiases():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(8).expand(1, 1, 16, 16)
    middle = resize_images(stripes, (4, 4))[0, 0, :, 1:-1].float()
    assert (middle - 127.5).abs().max() < 2


# --- digits ---


def test_digits_splits_are_stratified_fixed_and_do_not_overlap():
    train, test = load_dataset("digits"), load_dataset("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    assert torch.equal(train.inputs, load_dataset("digits").inputs)
    seen = {image.numpy().tobytes() for image in train.inputs}
    assert not seen & {image.numpy().tobytes() for image in test.inputs}
    shares = [data.labels.bincount(minlength=10) / len(data) for data in (train, test)]
    assert (shares[0] - shares[1]).abs().max() < 0.005


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    native = Domain((1, 8, 8), 10)
    parts = [load_dataset("digits", native, split) for split in ("train", "test")]
    ours = {
        (*(part.inputs[i].flatten() / 255 * 16).round().int().tolist(), int(part.labels[i]))
        for part in parts
        for i in range(len(part))
    }
    pixels, labels = load_digits(return_X_y=True)
    theirs = {(*map(int, x), int(y)) for x, y in zip(pixels, labels, strict=True)}
    assert ours == theirs


def test_digits_domain_has_the_statistics_of_the_training_split():
    measured = measure_domain(load_dataset("digits"))
    assert measured.mean == pytest.approx(DOMAINS["digits"].mean, abs=1e-4)
    assert measured.std == pytest.approx(DOMAINS["digits"].std, abs=1e-4)


def test_loading_leaves_the_global_generators_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load_dataset("digits")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


# --- torchvision's formats, on made-up files ---


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
@pytest.mark.parametrize(("split", "prefix", "count"), [("train", "train", 5), ("test", "t10k", 3)])
def test_idx_files_load(tmp_path, name, folder, split, prefix, count):
    raw = tmp_path / folder / "raw"
    images = random_pixels(5, 28, 28)
    for stem, n in (("train", 5), ("t10k", 3)):
        write_idx(raw / f"{stem}-images-idx3-ubyte", images[:n])
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8))
    data = load_dataset(name, split=split, root=tmp_path)
    assert data.shape == (1, 32, 32)
    assert data.labels.tolist() == list(range(count))
    native = load_dataset(name, Domain((1, 28, 28), 10), split, root=tmp_path)
    assert np.array_equal(native.inputs[:, 0].numpy(), images[:count])


def without_checksums(monkeypatch):
    import torchvision.datasets.svhn

    monkeypatch.setattr(torchvision.datasets.svhn, "check_integrity", lambda *a, **k: True)


def test_svhn_files_load(tmp_path, monkeypatch):
    from scipy.io import savemat

    without_checksums(monkeypatch)
    images, labels = random_pixels(32, 32, 3, 4), np.array([[1], [9], [10], [3]], np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": images, "y": labels})
    data = load_dataset("svhn", split="test", root=tmp_path)
    assert data.labels.tolist() == [1, 9, 0, 3]  # 10 stands for the digit 0
    assert np.array_equal(data.inputs.numpy(), images.transpose(3, 2, 0, 1))


def test_cifar10_files_load(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    images = random_pixels(2, 3, 32, 32)

    def write(name, batch):
        (folder / name).write_bytes(pickle.dumps(batch))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    batch = {"data": images.reshape(2, -1), "labels": [3, 7]}
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", [write("data_batch_1", batch)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch)])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta[1]})
    for split in ("train", "test"):
        data = load_dataset("cifar10", split=split, root=tmp_path)
        assert data.labels.tolist() == [3, 7]
        assert np.array_equal(data.inputs.numpy(), images)


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_data_say_how_to_get_them(tmp_path, name, split):
    with pytest.raises(UsageError, match=f"{name} .*--data-root.*--download"):
        load_dataset(name, split=split, root=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_damaged_data_are_reported(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    for stem in ("train", "t10k"):
        write_idx(raw / f"{stem}-images-idx3-ubyte", random_pixels(5, 28, 28))
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    file = raw / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match="no sound mnist data"):
        load_dataset("mnist", root=tmp_path)


def test_a_failed_download_is_reported(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    def fail(self):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(MNIST, "download", fail)
    with pytest.raises(OSError, match=r"mnist .*Error downloading"):
        load_dataset("mnist", root=tmp_path, download=True)


def test_real_mnist_has_the_statistics_of_its_domain():
    root = Path(os.environ.get("FREIAKD_DATA", Path(__file__).parents[2] / "../shared/data"))
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST in {root} (set FREIAKD_DATA)")
    data = load_dataset("mnist", Domain((1, 28, 28), 10), "test", root=root)
    assert len(data) == 10000
    assert data.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert measure_domain(data).mean == pytest.approx(DOMAINS["mnist"].mean, abs=5e-3)


# --- Image folders ---


def write_image(path, value=0, size=(5, 6), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_class_folders_named_by_index(tmp_path):
    write_image(tmp_path / "2" / "a.png", 20)
    write_image(tmp_path / "0" / "deep" / "b.PNG", 40)
    (tmp_path / "0" / "notes.txt").write_text("not an image")
    (tmp_path / "0" / "._b.png").write_text("what macOS leaves")
    data = load_dataset(tmp_path, GREY)
    assert data.labels.tolist() == [0, 2]
    assert data.inputs[:, 0, 0, 0].tolist() == [40, 20]
    assert data.shape == GREY.shape


def test_indices_are_numbers_not_positions(tmp_path):
    for i in range(11):
        write_image(tmp_path / str(i) / "a.png", 10 * i)
    data = load_dataset(tmp_path, Domain((1, 6, 5), 11))
    assert dict(zip(data.inputs[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)) == {
        10 * i: i for i in range(11)
    }


def test_class_folders_by_name_count_in_their_order(tmp_path):
    for value, name in ((1, "cat"), (2, "ant"), (3, "dog")):
        write_image(tmp_path / name / "a.png", value)
    data = load_dataset(str(tmp_path), GREY)
    assert dict(zip(data.inputs[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)) == {
        2: 0,
        1: 1,
        3: 2,
    }


def test_file_names_that_begin_with_the_label(tmp_path):
    for value, name in ((1, "2.png"), (2, "0_foo.png"), (3, "1-bar.png"), (4, "02 baz.bmp")):
        write_image(tmp_path / name, value)
    data = load_dataset(tmp_path, GREY)
    assert dict(zip(data.inputs[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)) == {
        1: 2,
        2: 0,
        3: 1,
        4: 2,
    }


def test_train_and_test_folders_are_the_splits(tmp_path):
    write_image(tmp_path / "train" / "0_a.png", 10)
    write_image(tmp_path / "test" / "0_a.png", 20)
    values = [load_dataset(tmp_path, GREY, split).inputs[0, 0, 0, 0] for split in ("train", "test")]
    assert values == [10, 20]


def test_colours_are_kept_or_made_as_the_domain_asks(tmp_path):
    write_image(tmp_path / "0_a.png", (255, 0, 10), mode="RGB")
    write_image(tmp_path / "1_b.png", 7)
    colour = load_dataset(tmp_path, COLOUR)
    assert colour.inputs[:, :, 0, 0].tolist() == [[255, 0, 10], [7, 7, 7]]
    grey = load_dataset(tmp_path, GREY)
    assert grey.inputs[:, 0, 0, 0].tolist() == [round(0.299 * 255 + 0.114 * 10), 7]


def test_without_a_domain_the_images_decide(tmp_path):
    for name in ("b", "a"):
        write_image(tmp_path / name / "x.png", (1, 2, 3), mode="RGB")
    data = load_dataset(tmp_path)
    assert (data.shape, data.labels.tolist()) == ((3, 6, 5), [0, 1])
    write_image(tmp_path / "a" / "y.png", (1, 2, 3), size=(9, 9), mode="RGB")
    with pytest.raises(UsageError, match=r"several shapes: \[\(3, 6, 5\), \(3, 9, 9\)\]"):
        load_dataset(tmp_path)


def test_all_faults_are_listed_together(tmp_path):
    write_image(tmp_path / "0_good.png")
    write_image(tmp_path / "0_large.png", size=(9, 8))
    write_image(tmp_path / "3_label.png")
    write_image(tmp_path / "no_label.png")
    write_image(tmp_path / "1_deep.png", mode="I;16")
    (tmp_path / "1_text.png").write_text("no image")
    (tmp_path / "2_empty.jpg").touch()
    whole = tmp_path / "2_cut.png"
    Image.fromarray(random_pixels(6, 5)).save(whole)
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(UsageError) as caught:
        load_dataset(tmp_path, GREY)
    message = str(caught.value)
    assert "has 7 faulty files" in message
    expected = {
        "0_large.png": "expected 6x5 pixels; got 8x9 (--resize resizes it)",
        "3_label.png": "label 3 of 3 classes",
        "no_label.png": "its name does not begin with the label",
        "1_deep.png": "expected 8 bits a channel; got mode I;16",
        "1_text.png": "cannot identify image file",
        "2_empty.jpg": "cannot identify image file",
        "2_cut.png": "",
    }
    for name, fault in expected.items():
        assert f"{name}: {fault}" in message
    assert "0_good" not in message


def test_a_long_list_of_faults_is_cut(tmp_path):
    for i in range(30):
        (tmp_path / f"0_{i}.png").touch()
    with pytest.raises(UsageError, match="has 30 faulty files") as caught:
        load_dataset(tmp_path, GREY)
    assert str(caught.value).count("\n") == 21
    assert str(caught.value).endswith("and 10 more")


def test_faults_in_class_folders_are_listed_together(tmp_path):
    write_image(tmp_path / "0" / "a.png")
    write_image(tmp_path / "5" / "a.png")
    write_image(tmp_path / "loose.png")
    (tmp_path / "1").mkdir()
    with pytest.raises(UsageError) as caught:
        load_dataset(tmp_path, GREY)
    message = str(caught.value)
    assert "has 3 faulty files" in message
    assert f"{tmp_path / '5' / 'a.png'}: label 5 of 3 classes" in message
    assert f"{tmp_path / 'loose.png'}: lies outside the class folders" in message
    assert f"{tmp_path / '1'}: has no images" in message


def test_resizing_cures_the_wrong_size_and_nothing_else(tmp_path):
    Image.fromarray(random_pixels(8, 9)).save(tmp_path / "0_large.png")
    data = load_dataset(tmp_path, GREY, resize=True)
    expected = resize_images(torch.from_numpy(random_pixels(8, 9))[None, None], (6, 5))
    assert torch.equal(data.inputs, expected)
    write_image(tmp_path / "9_label.png", size=(9, 8))
    with pytest.raises(UsageError, match=r"has 1 faulty files.*\n.*label 9 of 3 classes"):
        load_dataset(tmp_path, GREY, resize=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog"], r"Expected 3 class folders.*got cat, dog"),
        (["1", "cat"], r"Expected 3 class folders.*got 1, cat"),
        (["1", "01"], r"or folders named by class index; got 01, 1"),
    ],
)
def test_class_folders_that_do_not_map_to_classes_are_refused(tmp_path, names, message):
    for name in names:
        write_image(tmp_path / name / "a.png")
    with pytest.raises(UsageError, match=message):
        load_dataset(tmp_path, GREY)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(UsageError, match="There are no images in"):
        load_dataset(tmp_path, GREY)


def test_a_folder_is_no_source_of_vectors_or_odd_channels(tmp_path):
    write_image(tmp_path / "0_a.png")
    with pytest.raises(UsageError, match=r"Expected vectors of shape \(2,\)"):
        load_dataset(tmp_path, Domain((2,), 3))
    with pytest.raises(UsageError, match="has 1 or 3 channels; expected 4"):
        load_dataset(tmp_path, Domain((4, 6, 5), 3))


# --- npz files ---


def save_npz(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


LABELS = np.array([0, 2, 1, 0])


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels"), ("x_train", "y_train")])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_npz_layouts_and_keys(tmp_path, keys, layout):
    images = random_pixels(4, 3, 6, 5)
    stored = images if layout == "NCHW" else images.transpose(0, 2, 3, 1)
    path = save_npz(tmp_path, **{keys[0]: stored, keys[1]: LABELS})
    data = load_dataset(path, COLOUR)
    assert np.array_equal(data.inputs.numpy(), images)
    assert data.labels.tolist() == LABELS.tolist()
    assert np.array_equal(load_dataset(path).inputs.numpy(), images)


@pytest.mark.parametrize("stored", [(4, 6, 5), (4, 1, 6, 5), (4, 6, 5, 1)])
def test_npz_of_grey_images(tmp_path, stored):
    images = random_pixels(4, 6, 5)
    data = load_dataset(save_npz(tmp_path, x=images.reshape(stored), y=LABELS), GREY)
    assert np.array_equal(data.inputs[:, 0].numpy(), images)


def test_npz_that_could_be_read_both_ways_is_channels_first(tmp_path):
    images = random_pixels(4, 3, 6, 3)
    data = load_dataset(save_npz(tmp_path, x=images, y=LABELS), Domain((3, 6, 3), 3))
    assert np.array_equal(data.inputs.numpy(), images)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_npz_of_floats(tmp_path, dtype):
    images = (random_pixels(4, 6, 5) / 255).astype(dtype)
    data = load_dataset(save_npz(tmp_path, x=images, y=LABELS.astype(np.uint8)), GREY)
    assert data.inputs.dtype == torch.float32
    assert np.array_equal(data[0][0][0].numpy(), images[0].astype(np.float32))


def test_npz_of_vectors(tmp_path):
    x = np.array([[-3.0, 4.0], [5.0, 100.0]])
    data = load_dataset(save_npz(tmp_path, x=x, y=LABELS[:2]), Domain((2,), 3))
    assert np.array_equal(data.inputs.numpy(), x)


def test_npz_splits(tmp_path):
    images = random_pixels(4, 6, 5)
    path = save_npz(tmp_path, x_train=images, y_train=LABELS, x_test=images[:2], y_test=LABELS[:2])
    assert [len(load_dataset(path, GREY, split)) for split in ("train", "test")] == [4, 2]


def test_npz_of_another_size_is_refused_or_resized(tmp_path):
    images = random_pixels(4, 1, 8, 9)
    path = save_npz(tmp_path, x=images, y=LABELS)
    with pytest.raises(UsageError, match=r"shape \(1, 6, 5\); got \(1, 8, 9\).*Pass --resize"):
        load_dataset(path, GREY)
    data = load_dataset(path, GREY, resize=True)
    assert torch.equal(data.inputs, resize_images(torch.from_numpy(images), (6, 5)))


IMAGES = random_pixels(4, 6, 5)
NOT_A_NUMBER = np.where(IMAGES > 200, np.nan, 0.5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "expected arrays x or images, and y or labels; got x"),
        ({}, "expected arrays x or images, and y or labels; got none"),
        ({"x": IMAGES, "y": LABELS[:3]}, "one label for each"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "at least one input"),
        ({"x": IMAGES, "y": LABELS + 1}, "labels below 3; got 3"),
        ({"x": IMAGES, "y": LABELS - 1}, "integers from 0"),
        ({"x": IMAGES, "y": LABELS / 2}, "integer labels; got uint8 and float64"),
        ({"x": IMAGES, "y": np.eye(4, dtype=int)}, r"labels of shape \(4, 4\)"),
        ({"x": IMAGES.astype(int), "y": LABELS}, "got int64 and int64"),
        ({"x": IMAGES > 9, "y": LABELS}, "got bool and int64"),
        ({"x": IMAGES.astype(float), "y": LABELS}, r"float pixels in \[0, 1\].*Divide by 255"),
        ({"x": NOT_A_NUMBER, "y": LABELS}, "got NaN or infinity"),
        ({"x": random_pixels(4, 3, 6, 5), "y": LABELS}, r"shape \(1, 6, 5\); got \(3, 6, 5\)"),
        ({"x": random_pixels(4, 30), "y": LABELS}, r"got torch.uint8 of shape \(4, 30\)"),
        ({"x": np.zeros((4, 30)), "y": LABELS}, r"shape \(1, 6, 5\); got \(30,\)"),
        ({"x": np.array([object()] * 4), "y": LABELS}, "not a sound .npz file of plain arrays"),
    ],
)
def test_npz_faults(tmp_path, arrays, message):
    with pytest.raises(UsageError, match=message):
        load_dataset(save_npz(tmp_path, **arrays), GREY)


class Payload:
    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_a_hostile_npz_does_not_run(tmp_path):
    trace = tmp_path / "trace"
    path = save_npz(tmp_path, x=np.array([Payload(trace)] * 4, dtype=object), y=LABELS)
    with pytest.raises(UsageError, match=r"not a sound \.npz"):
        load_dataset(path, GREY)
    assert not trace.exists()
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(UsageError, match=r"not a sound \.npz"):
        load_dataset(tmp_path / "raw.npz", GREY)
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "gzip", "npy", "flipped"])
def test_files_that_are_no_npz_are_refused(tmp_path, kind):
    path = save_npz(tmp_path, x=IMAGES, y=LABELS)
    whole = path.read_bytes()
    content = {
        "empty": b"",
        "text": b"0,1,2\n" * 9,
        "truncated": whole[:-40],
        "gzip": gzip.compress(whole),
        "npy": None,
        "flipped": whole.replace(IMAGES.tobytes(), bytes(IMAGES.size)),
    }[kind]
    if content is None:
        np.save(tmp_path / "one.npy", IMAGES)
        content = (tmp_path / "one.npy").read_bytes()
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not a sound \.npz") as error:
        load_dataset(path, GREY)
    assert "unsafe" not in str(error.value)  # which numpy advises


# --- Sources ---


def test_an_unknown_source_lists_what_there_is(tmp_path):
    with pytest.raises(UsageError, match=r"'imagenet' is neither a data set \(digits, mnist"):
        load_dataset("imagenet")
    with pytest.raises(UsageError, match="is neither"):
        load_dataset(tmp_path / "none.npz", GREY)


def test_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="train or test; got 'validation'"):
        load_dataset("digits", split="validation")


def test_a_data_set_of_the_users_own_loads_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "own_data_for_test.py").write_text(
        "import torch\n"
        "from freia_kd.data.datasets import LabelledData\n"
        "def make(split, root, download):\n"
        "    n = {'train': 4, 'test': 2}[split]\n"
        "    return LabelledData(torch.rand(n, 1, 6, 5), torch.arange(n) % 3, 'own')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_dataset("own_data_for_test:make", GREY, "test")) == 2


def test_named_data_that_do_not_fit_a_domain_are_refused():
    with pytest.raises(UsageError, match=r"digits: expected inputs of shape \(3, 32, 32\)"):
        load_dataset("digits", DOMAINS["svhn"])
    with pytest.raises(UsageError, match="digits: expected labels below 3; got 9"):
        load_dataset("digits", Domain((1, 32, 32), 3))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.rand(4, 1, 3, 3) / 255, "from 0 to 1; got none above .* Multiply by 255, or store"),
        (torch.tensor([0, 1] * 18, dtype=torch.uint8).view(4, 1, 3, 3), "from 0 to 255; got none"),
        (torch.rand(4, 1, 3, 3) - 0.5, "Leave the normalisation out"),
        (torch.rand(4, 1, 3, 3) * 255, "Divide by 255"),
    ],
)
def test_pixels_of_another_scale_are_refused_with_the_remedy(inputs, message):
    """Seen to fail: pixels that were divided by 255 twice gave a plain, low accuracy."""
    with pytest.raises(ValueError, match=message):
        LabelledData(inputs, torch.arange(4), "scaled")


def test_black_images_are_images():
    LabelledData(torch.zeros(4, 1, 3, 3, dtype=torch.uint8), torch.arange(4), "night")
    LabelledData(torch.rand(4, 2) / 255, torch.arange(4), "vectors")
