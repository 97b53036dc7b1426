"""Labelled data looked at without their inputs."""

import numpy as np
import pytest
from PIL import Image

from freia_kd.data import preview
from freia_kd.data.datasets import DATASETS, load_dataset
from freia_kd.data.preview import TABLES, check_data
from freia_kd.domain import DOMAINS, Domain
from freia_kd.errors import UsageError

DOMAIN = Domain((1, 8, 8), 3)
PIXELS = np.zeros((6, 8, 8), np.uint8)
LABELS = np.arange(6) % 3


def arrays(path, **changes):
    np.savez(path, **{"x": PIXELS, "y": LABELS, **changes})
    return path


GOOD = {
    "grey": {},
    "with channels": {"x": PIXELS[:, None]},
    "channels last": {"x": PIXELS[..., None]},
    "floats": {"x": PIXELS.astype(np.float32)},
}
BAD = {
    "size": ({"x": PIXELS[:, :7]}, r"shape \(1, 8, 8\); got \(1, 7, 8\). Pass --resize"),
    "channels": ({"x": np.zeros((6, 3, 8, 8), np.uint8)}, r"got \(3, 8, 8\)\.$"),
    "vectors": ({"x": np.zeros((6, 4))}, r"got \(4,\)\.$"),
    "label": ({"y": LABELS + 1}, "expected labels below 3; got 3"),
    "negative label": ({"y": LABELS - 1}, "a label from 0 for each"),
    "float label": ({"y": LABELS + 0.5}, "integer labels"),
    "length": ({"y": LABELS[:5]}, "a label from 0 for each"),
    "empty": ({"x": PIXELS[:0], "y": LABELS[:0]}, "at least one input"),
    "type": ({"x": PIXELS.astype(np.uint16)}, "expected uint8 or float"),
    "objects": ({"x": np.array([None] * 6)}, "expected uint8 or float"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_arrays_that_fit(tmp_path, kind):
    check_data(arrays(tmp_path / "a.npz", **GOOD[kind]), DOMAIN, "test")


@pytest.mark.parametrize("kind", BAD)
def test_arrays_that_do_not(tmp_path, kind):
    changes, message = BAD[kind]
    path = arrays(tmp_path / "a.npz", **changes)
    with pytest.raises(UsageError, match=message):
        check_data(path, DOMAIN, "test")
    with pytest.raises(UsageError):  # nor does reading it
        load_dataset(path, DOMAIN, "test")


def test_resizing_forgives_the_size_alone(tmp_path):
    check_data(arrays(tmp_path / "a.npz", x=PIXELS[:, :7]), DOMAIN, "test", resize=True)
    with pytest.raises(UsageError, match="labels below 3"):
        check_data(arrays(tmp_path / "b.npz", y=LABELS + 1), DOMAIN, "test", resize=True)


def test_inputs_are_not_read(tmp_path):
    path = arrays(
        tmp_path / "a.npz", x=np.random.default_rng(0).random((6_000, 8, 8)), y=np.arange(6_000) % 3
    )
    content = bytearray(path.read_bytes())
    content[1_000_000:1_000_400] = bytes(400)  # somewhere in x, whose checksum is wrong from now on
    path.write_bytes(content)
    check_data(path, DOMAIN, "test")
    with pytest.raises(UsageError, match="sound"):
        load_dataset(path, DOMAIN, "test")


def test_folders_by_names_and_headers(tmp_path):
    for label in range(3):
        Image.new("L", (8, 8)).save(tmp_path / f"{label}_a.png")
    check_data(tmp_path, DOMAIN, "test")
    Image.new("L", (9, 8)).save(tmp_path / "0_wide.png")
    Image.new("L", (8, 8)).save(tmp_path / "7_b.png")
    (tmp_path / "1_text.png").write_text("no image")
    with pytest.raises(UsageError, match=r"3 faulty files[^!]*8x9[^!]*label 7 of 3") as caught:
        check_data(tmp_path, DOMAIN, "test")
    with pytest.raises(UsageError) as read:
        load_dataset(tmp_path, DOMAIN, "test")
    assert str(read.value) == str(caught.value)


def test_what_is_known_of_tables_is_true():
    for name, (features, classes) in TABLES.items():
        data = load_dataset(name)
        assert (data.shape, int(data.labels.max()) + 1) == ((features,), classes)
    assert {*TABLES, *DOMAINS} == set(DATASETS.builtin)


@pytest.mark.parametrize(
    ("name", "domain", "message"),
    [
        ("mnist", DOMAINS["cifar10"], r"expected inputs of shape \(3, 32, 32\); got \(1, 32, 32"),
        ("mnist", Domain((1, 64, 64), 7), "labels below 7; got 9"),
        ("iris", DOMAINS["mnist"], r"got \(4,\)"),
        ("digits", Domain((64,), 10), r"expected inputs of shape \(64,\)"),
    ],
)
def test_named_sets_that_do_not_fit(name, domain, message, monkeypatch):
    monkeypatch.setattr(preview, "_check_folder", None)
    with pytest.raises(UsageError, match=message):
        check_data(name, domain, "test")
    check_data("mnist", Domain((1, 64, 64), 12), "test")
