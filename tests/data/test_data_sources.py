"""Real data from wherever a user has them, data sets of torch among them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from freia_kd import distill
from freia_kd.config import DistillationOptions, Preset
from freia_kd.data.datasets import LabelledData
from freia_kd.data.sources import RealData, read_dataset
from freia_kd.domain import Domain
from freia_kd.errors import UsageError
from freia_kd.teachers import Teacher

GREY = Domain((1, 28, 28), 10, (0.1307,), (0.3081,))
COLOUR = Domain((3, 6, 5), 4)
VECTORS = Domain((3,), 2)
generator = torch.Generator().manual_seed(0)
PIXELS = torch.randint(256, (12, 28, 28), generator=generator, dtype=torch.uint8)


@pytest.fixture
def mnist(tmp_path):
    """Twelve made-up digits in torchvision's own class, with a transform as asked for."""
    torchvision = pytest.importorskip("torchvision")

    def make(transform=None):
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for name, count in (("train", 12), ("t10k", 12)):
            head = [0x803, count, 28, 28], [0x801, count]
            images, labels = (np.array(h, ">i4").tobytes() for h in head)
            (raw / f"{name}-images-idx3-ubyte").write_bytes(images + PIXELS.numpy().tobytes())
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(
                labels + bytes(i % 10 for i in range(12))
            )
        return torchvision.datasets.MNIST(tmp_path, transform=transform)

    return make


def test_torchvisions_mnist_without_a_transform(mnist):
    data = read_dataset(mnist(), GREY)
    assert torch.equal(data.inputs, PIXELS[:, None])
    assert data.labels.tolist() == [i % 10 for i in range(12)]
    assert data.name == "MNIST"


def test_torchvisions_mnist_as_tensors(mnist):
    from torchvision.transforms import Compose, ToTensor

    data = read_dataset(mnist(Compose([ToTensor()])), GREY)
    torch.testing.assert_close(data.inputs, PIXELS[:, None].float() / 255)


def test_a_transform_that_normalises_is_refused(mnist):
    from torchvision.transforms import Compose, Normalize, ToTensor

    transform = Compose([ToTensor(), Normalize(0.1307, 0.3081)])
    for data in (mnist(transform), Subset(mnist(transform), range(3))):
        with pytest.raises(UsageError, match=r"MNIST normalises.*Normalize"):
            read_dataset(data, GREY)


def test_normalised_pixels_are_refused_whoever_normalised_them():
    data = TensorDataset((torch.rand(6, 1, 4, 4) - 0.13) / 0.3, torch.arange(6) % 4)
    with pytest.raises(UsageError, match=r"pixels in \[0, 1\]; got -"):
        read_dataset(data, Domain((1, 4, 4), 4))


def test_tensors_and_vectors():
    x, y = torch.rand(6, 3, 6, 5), torch.arange(6) % 4
    data = read_dataset(TensorDataset(x, y), COLOUR)
    assert torch.equal(data.inputs, x)
    assert torch.equal(data.labels, y)
    v = torch.randn(6, 3)
    assert torch.equal(read_dataset(TensorDataset(v, y % 2), VECTORS).inputs, v)
    part = Subset(TensorDataset(x, y), [3, 1])
    assert read_dataset(part, COLOUR).labels.tolist() == [3, 1]


class Pictures(Dataset):
    """Images of PIL, in a mode."""

    def __init__(self, mode, labels=(0, 1)):
        self.mode, self.labels = mode, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.new("RGB", (5, 6), (255, 0, 51)).convert(self.mode), self.labels[index]


def test_pictures_have_the_channels_of_the_domain():
    data = read_dataset(Pictures("RGB"), COLOUR)
    assert data.inputs.shape == (2, 3, 6, 5)
    assert data.inputs[0, :, 0, 0].tolist() == [255, 0, 51]
    grey = read_dataset(Pictures("RGB"), Domain((1, 6, 5), 2))
    assert grey.inputs.shape == (2, 1, 6, 5)
    assert read_dataset(Pictures("L"), COLOUR).inputs.shape == (2, 3, 6, 5)


class Odd(Dataset):
    """Whatever entries it is given."""

    def __init__(self, *entries):
        self.entries = entries

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        return self.entries[index]


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3, 6, 5), 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Odd(), "one shape in Odd; got none"),
        (
            Odd((torch.zeros(3), 0), (torch.zeros(4), 1)),
            r"one shape in Odd; got \[\(3,\), \(4,\)\]",
        ),
        (Odd(torch.zeros(3)), r"\(image, label\) pairs in Odd; entry 0 is something else"),
        (Odd((torch.zeros(3), 0), (torch.zeros(3), "cat")), "entry 1 is something else"),
        (Odd((torch.zeros(3), -1)), "labels that are integers from 0"),
        (Odd((torch.full((3,), torch.nan), 0)), "finite inputs"),
    ],
)
def test_what_is_no_labelled_data_is_refused(data, message):
    with pytest.raises(UsageError, match=message):
        read_dataset(data, VECTORS)


def test_what_seems_wrong_is_refused_without_reading():
    with pytest.raises(UsageError, match=r"map-style data set.*got a Endless|got an? Endless"):
        RealData(Endless()).check()
    with pytest.raises(UsageError, match=r"There are no data 'digitz'.*digits, mnist"):
        RealData("digitz").check()
    with pytest.raises(UsageError, match=r"no folder .* with mnist; pass --data-root"):
        RealData("mnist", root="nowhere").check()
    RealData("digits").check()
    RealData("some.module:function").check()

    class Bomb(LabelledData):
        def __getitem__(self, index):
            raise AssertionError("read")

    RealData(Bomb(torch.zeros(2, 3), torch.arange(2), "bomb")).check()


def test_data_fit_the_domain_or_are_refused():
    data = TensorDataset(torch.rand(4, 3, 9, 9), torch.arange(4))
    with pytest.raises(UsageError, match=r"expected inputs of shape \(3, 6, 5\)"):
        RealData(data).load(COLOUR, "train")
    assert RealData(data, resize=True).load(COLOUR, "train").shape == (3, 6, 5)
    many = TensorDataset(torch.rand(4, 3, 6, 5), torch.arange(4) + 3)
    with pytest.raises(UsageError, match="labels below 4; got 6"):
        RealData(many).load(COLOUR, "train")


def test_the_place_is_what_a_record_can_hold(tmp_path):
    source = RealData(tmp_path / "x.npz", root=tmp_path, resize=True)
    assert RealData(**source.source_fields) == RealData(
        str(tmp_path / "x.npz"), str(tmp_path), False, True
    )
    assert RealData(TensorDataset(torch.zeros(1))).source_fields == {"source": None}


def test_data_sets_of_torch_serve_as_samples_and_for_evaluation(tmp_path, mnist):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 32), torch.nn.Linear(32, 10))
    preset = Preset("quick", 32, 16, DistillationOptions(steps=2, batch_size=8))
    report = distill(
        Teacher(net, GREY, "nameless"),
        preset=preset,
        synthesizer="spectral+samples",
        samples=TensorDataset(torch.rand(5, 1, 28, 28), torch.arange(5)),
        eval_data=mnist(),
        out=tmp_path / "run",
    ).report
    assert (report.real_data.samples, report.real_data.samples_count) == ("TensorDataset", 5)
    assert (report.real_data.evaluation, report.real_data.evaluation_count) == ("MNIST", 12)
