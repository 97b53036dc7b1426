"""Labelled real data by name, from an image folder or an npz file; read only when asked for."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..domain import DOMAINS, Domain
from ..errors import UsageError
from ..registry import Registry

if TYPE_CHECKING:
    from PIL import Image

Split = Literal["train", "test"]
PathLike = str | os.PathLike[str]

DATASETS = Registry(
    "freia_kd.datasets",
    {
        "digits": "freia_kd.data.datasets:digits",
        "mnist": "freia_kd.data.datasets:mnist",
        "fashion-mnist": "freia_kd.data.datasets:fashion_mnist",
        "svhn": "freia_kd.data.datasets:svhn",
        "cifar10": "freia_kd.data.datasets:cifar10",
        "iris": "freia_kd.data.tables:iris",
        "wine": "freia_kd.data.tables:wine",
        "breast-cancer": "freia_kd.data.tables:breast_cancer",
        "digits-table": "freia_kd.data.tables:digits_table",
    },
    "data set",
)

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".tif", ".tiff"}
MAX_FAULTS = 20


@dataclass(eq=False)
class LabelledData(Dataset[tuple[Tensor, int]]):
    """Inputs and labels in memory.

    Arguments:
        inputs: Images as uint8, or floats in [0, 1], with shape `(N, C, H, W)`; or vectors as
            floats with shape `(N, D)`.
        labels: Class indices as int64 with shape `(N,)`.
        name: A name for reports.

    Raises:
        ValueError: If the two do not go together, are empty, or hold impossible values.

    Example:
        >>> data = LabelledData(torch.zeros(5, 1, 2, 2), torch.arange(5), "zeros")
        >>> [len(x) for x, y in data.batches(2)]
        [2, 2, 1]
    """

    inputs: Tensor
    labels: Tensor
    name: str

    def __post_init__(self) -> None:
        inputs, labels = self.inputs, self.labels
        if len(inputs) == 0 or labels.shape != inputs.shape[:1]:
            raise ValueError(
                f"{self.name}: expected at least one input and one label for each; got inputs of "
                f"shape {tuple(inputs.shape)} and labels of shape {tuple(labels.shape)}."
            )
        if labels.is_floating_point() or labels.min() < 0:
            raise ValueError(f"{self.name}: expected labels that are integers from 0.")
        self.labels = labels.long()
        if inputs.dtype == torch.uint8 and inputs.ndim == 4:
            expect_light(self.name, inputs)
            return
        if not inputs.is_floating_point() or inputs.ndim not in (2, 4):
            raise ValueError(
                f"{self.name}: expected uint8 or float images (N, C, H, W), or float vectors "
                f"(N, D); got {inputs.dtype} of shape {tuple(inputs.shape)}."
            )
        if not torch.isfinite(inputs).all():
            raise ValueError(f"{self.name}: expected finite inputs; got NaN or infinity.")
        if inputs.ndim == 4 and (inputs.min() < 0 or inputs.max() > 1):
            remedy = "Divide by 255, or store uint8."
            if inputs.min() < 0:
                remedy = "Leave the normalisation out, which is part of the net."
            raise ValueError(
                f"{self.name}: expected float pixels in [0, 1]; got {inputs.min():.3g} to "
                f"{inputs.max():.3g}. {remedy}"
            )
        self.inputs = inputs.float()
        if inputs.ndim == 4:
            expect_light(self.name, inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return _to_float(self.inputs[index]), int(self.labels[index])

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Float inputs and labels at the indices `rows` `(B,)`."""
        return _to_float(self.inputs[rows]), self.labels[rows]

    def to(self, device: torch.device | str) -> LabelledData:
        """The same data on a device, where `rows` are to be as well."""
        return LabelledData(self.inputs.to(device), self.labels.to(device), self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.inputs.shape[1:])

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterates once over all data, as float inputs and labels.

        Arguments:
            batch_size: The number of inputs in a batch.
            generator: Draws the order; in the order of the data if there is none.
            drop_last: Leave a last batch out that is smaller.
        """
        order = None if generator is None else torch.randperm(len(self), generator=generator)
        end = len(self) - len(self) % batch_size if drop_last else len(self)
        for start in range(0, end, batch_size):
            chosen = slice(start, min(start + batch_size, end))
            index = chosen if order is None else order[chosen]
            yield _to_float(self.inputs[index]), self.labels[index]

    def check(self, domain: Domain) -> None:
        """Raises `ValueError` unless the data fit a domain."""
        if self.shape != domain.shape:
            raise ValueError(
                f"{self.name}: expected inputs of shape {domain.shape}; got {self.shape}."
            )
        if self.labels.max() >= domain.classes:
            raise ValueError(
                f"{self.name}: expected labels below {domain.classes}; got {self.labels.max()}."
            )


def expect_light(name: str, images: Tensor) -> None:
    """Raises `ValueError` if all pixels are black but for one grey level: their scale is another.

    Arguments:
        name: What the images are, for the message.
        images: uint8 images, or floats in [0, 1], at least one.
    """
    most, level = images.max(), 1 if images.dtype == torch.uint8 else 1 / 255
    if 0 < most <= level:
        whole = "0 to 255" if level == 1 else "0 to 1"
        raise ValueError(
            f"{name}: expected pixels from {whole}; got none above {most:.3g}, which is all but "
            f"black. Multiply by 255, or store {'floats' if level == 1 else 'uint8'}."
        )


def _to_float(inputs: Tensor) -> Tensor:
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


def measure_domain(data: LabelledData, name: str | None = None) -> Domain:
    """The domain of a training set: its shape, number of classes, and per-channel statistics.

    Vectors have one statistic per feature, images one per channel; a std of zero becomes 1.

    Example:
        >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
        >>> measure_domain(LabelledData(pixels, torch.arange(2), "two")).mean
        (0.5,)
    """
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for x, _ in data.batches(1024):
        values = x.double().transpose(0, 1).flatten(1)
        total = total + values.sum(1)
        squares = squares + values.square().sum(1)
        count += values.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 0, std, 1.0)
    classes = max(2, int(data.labels.max()) + 1)
    return Domain(data.shape, classes, tuple(mean.tolist()), tuple(std.tolist()), name or data.name)


def load_dataset(
    source: PathLike,
    domain: Domain | None = None,
    split: Split = "train",
    root: PathLike | None = None,
    download: bool = False,
    resize: bool = False,
) -> LabelledData:
    """Loads labelled data.

    Arguments:
        source: A name of `DATASETS`; else a folder of images, whose subfolders are the classes
            or whose file names begin with the label (`3_foo.png`); else a file `.npz` with
            arrays `x` or `images` and `y` or `labels`. A folder with subfolders `train` and
            `test`, or arrays `x_train`, `y_train` and so on, are split; other folders and files
            are the same for both splits.
        domain: What the data must fit; if `None`, that of the named set, and anything goes for
            folders and files, as long as all images have one size.
        split: The part to load.
        root: The folder of torchvision's data sets, `data` if not given.
        download: Whether torchvision may download a set that `root` lacks.
        resize: Whether to resize images of another size; named sets always are.

    Raises:
        UsageError: If there is no such data, or it does not fit. Faulty files are listed together.
        OSError: If a download fails.
    """
    if split not in ("train", "test"):
        raise UsageError(f"Expected the split train or test; got {split!r}.")
    text, path = os.fspath(source), Path(source)
    if text in DATASETS or (":" in text and not path.exists()):
        domain = domain or DOMAINS.get(text)
        data, resize = (
            DATASETS[text](split=split, root=Path(root or "data"), download=download),
            True,
        )
    elif path.is_dir():
        data = read_folder(path, domain, split, resize)
    elif path.is_file():
        data = read_npz(path, domain, split)
    else:
        raise UsageError(
            f"{text!r} is neither a data set ({', '.join(DATASETS)}), nor a folder of images, nor "
            "an .npz file."
        )
    return data if domain is None else fit_domain(data, domain, resize)


def fit_domain(data: LabelledData, domain: Domain, resize: bool) -> LabelledData:
    """Resizes images to the domain where that is allowed, and checks everything else.

    Raises:
        UsageError: If the data do not fit.
    """
    if domain.is_image and resize and data.inputs.ndim == 4:
        data = replace(data, inputs=resize_images(data.inputs, domain.shape[1:]))
    try:
        data.check(domain)
    except ValueError as error:
        hint = ""
        has_size = data.shape != domain.shape and data.shape[:1] == domain.shape[:1]
        if domain.is_image and not resize and has_size:
            hint = " Pass --resize to resize the images."
        raise UsageError(f"{error}{hint}") from error
    return data


def resize_images(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resizes images `(N, C, H, W)` bilinearly, with antialiasing; keeps their dtype.

    Whole pixels are rounded as Pillow rounds them, so that 28x28 become the 32x32 of torchvision's
    `Resize`, on which released teachers were trained and measured.
    """
    if tuple(images.shape[2:]) == tuple(size):
        return images
    resized = [_resize(chunk, list(size)) for chunk in images.split(4096)]
    return torch.cat(resized)


def _resize(images: Tensor, size: list[int]) -> Tensor:
    resized = F.interpolate(images, size, mode="bilinear", antialias=True)
    return resized if images.dtype == torch.uint8 else resized.clamp(0, 1)


# --- Named sets: `(split, root, download) -> LabelledData`, in their own size. ---


def digits(split: Split, root: Path, download: bool) -> LabelledData:
    """scikit-learn's 1797 handwritten digits, 8x8; a fixed stratified fifth is the test split."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = stratified(labels, split)
    images = torch.from_numpy(pixels[chosen] * (255 / 16)).round().to(torch.uint8)
    return LabelledData(images.view(-1, 1, 8, 8), torch.from_numpy(labels[chosen]), "digits")


def stratified(labels: np.ndarray, split: Split, test_share: float = 0.2) -> np.ndarray:
    """The rows of a split that holds every class in proportion; always the same ones."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    parts = train_test_split(rows, test_size=test_share, random_state=0, stratify=labels)
    return parts[split == "test"]


def hold_out(data: LabelledData, share: float = 0.1) -> tuple[LabelledData, LabelledData]:
    """Parts a set in two, of which the second holds a share of every class; always the same ones.

    Where classes are too small for that, the second is a share of all inputs.

    Example:
        >>> data = LabelledData(torch.rand(40, 2), torch.arange(40) % 2, "two")
        >>> rest, part = hold_out(data)
        >>> len(rest), sorted(part.labels.tolist())
        (36, [0, 0, 1, 1])
    """
    labels = data.labels.numpy()
    counts = np.bincount(labels)
    if counts[counts > 0].min() < 2 or round(share * len(labels)) < (counts > 0).sum():
        labels = np.zeros_like(labels)
    rows = [torch.from_numpy(stratified(labels, s, share)).sort().values for s in ("train", "test")]
    rest, part = (LabelledData(data.inputs[r], data.labels[r], data.name) for r in rows)
    return rest, part


def mnist(split: Split, root: Path, download: bool) -> LabelledData:
    """MNIST, from torchvision's folder `MNIST/raw`."""
    from torchvision.datasets import MNIST

    data = _torchvision(MNIST, "mnist", root, download, train=split == "train")
    return LabelledData(data.data.unsqueeze(1), data.targets, "mnist")


def fashion_mnist(split: Split, root: Path, download: bool) -> LabelledData:
    """Fashion-MNIST, from torchvision's folder `FashionMNIST/raw`."""
    from torchvision.datasets import FashionMNIST

    data = _torchvision(FashionMNIST, "fashion-mnist", root, download, train=split == "train")
    return LabelledData(data.data.unsqueeze(1), data.targets, "fashion-mnist")


def svhn(split: Split, root: Path, download: bool) -> LabelledData:
    """Street View House Numbers, from the files `train_32x32.mat` and `test_32x32.mat`."""
    from torchvision.datasets import SVHN

    data = _torchvision(SVHN, "svhn", root, download, split=split)
    return LabelledData(torch.from_numpy(data.data), torch.from_numpy(data.labels), "svhn")


def cifar10(split: Split, root: Path, download: bool) -> LabelledData:
    """CIFAR-10, from the folder `cifar-10-batches-py`."""
    from torchvision.datasets import CIFAR10

    data = _torchvision(CIFAR10, "cifar10", root, download, train=split == "train")
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return LabelledData(images, torch.tensor(data.targets), "cifar10")


def _torchvision(make: Any, name: str, root: Path, download: bool, **options: Any) -> Any:
    """Makes a torchvision data set, downloading only if allowed."""
    try:
        return make(str(root), download=download, **options)
    except (RuntimeError, OSError, ValueError, EOFError, AssertionError) as error:
        if download:
            raise OSError(f"Cannot download {name} to {root}: {error}") from error
        raise UsageError(
            f"There is no sound {name} data in {root} ({error}): pass --data-root FOLDER where "
            "torchvision has put it, or --download to fetch it."
        ) from error


# --- Image folders ---


def read_folder(
    folder: Path, domain: Domain | None = None, split: Split = "train", resize: bool = False
) -> LabelledData:
    """Reads a folder of images, see :func:`load_dataset`; faulty files are listed together.

    Colours become grey where the domain has one channel, and grey becomes colours.
    """
    folder = split_folder(folder, split)
    labels = _label_files(folder, domain)
    if domain is not None and not domain.is_image:
        raise UsageError(f"Expected vectors of shape {domain.shape}; {folder} is a folder.")
    images, faults = [], []
    for path, label in labels.items():
        try:
            if isinstance(label, str):
                raise ValueError(label)
            images.append(_read_image(path, domain, resize))
        except (OSError, SyntaxError, ValueError) as error:
            faults.append(f"{path}: {error}")
    sizes = {tuple(image.shape) for image in images}
    if not faults and len(sizes) > 1:
        faults = [f"images have several shapes: {sorted(sizes)}"]
    if faults:
        _refuse(folder, faults)
    indices = torch.tensor(list(labels.values()))
    return LabelledData(torch.stack(images), indices, str(folder))


def split_folder(folder: Path, split: Split) -> Path:
    """The subfolder of a split, where there is one for each; else the folder itself."""
    parted = (folder / "train").is_dir() and (folder / "test").is_dir()
    return folder / split if parted else folder


def _refuse(folder: Path, faults: list[str]) -> None:
    shown = "\n  ".join(faults[:MAX_FAULTS])
    rest = f"\n  and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
    raise UsageError(f"{folder} has {len(faults)} faulty files:\n  {shown}{rest}")


def _label_files(folder: Path, domain: Domain | None) -> dict[Path, int | str]:
    """The class of each image file, or what is wrong with it."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = _image_files(folder)
    labels: dict[Path, int | str]
    if classes:
        labels = dict.fromkeys(loose, "lies outside the class folders")
        for path, label in zip(classes, _class_indices(folder, classes, domain), strict=True):
            files = _image_files(path, "**/*")
            labels |= dict.fromkeys(files, label) if files else {path: "has no images"}
    else:
        labels = {p: _label_in_name(p) for p in loose}
    if not labels:
        raise UsageError(f"There are no images in {folder}.")
    return {p: _check_label(label, domain) for p, label in labels.items()}


def _image_files(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not path.name.startswith(".")
    )


def _class_indices(folder: Path, classes: list[Path], domain: Domain | None) -> list[int]:
    """Numeric names are class indices; other names are counted in their order."""
    names = [p.name for p in classes]
    if all(name.isdecimal() for name in names):
        indices = [int(name) for name in names]
        if len(set(indices)) == len(indices):
            return indices
    elif domain is None or len(names) == domain.classes:
        return list(range(len(names)))
    expected = "some" if domain is None else str(domain.classes)
    raise UsageError(
        f"Expected {expected} class folders in {folder}, or folders named by class index; "
        f"got {', '.join(names)}."
    )


def _label_in_name(path: Path) -> int | str:
    match = re.match(r"(\d+)(?!\w)|(\d+)_", path.name)
    if match is None:
        return "its name does not begin with the label, as in 3_name.png"
    return int(match[1] or match[2])


def _check_label(label: int | str, domain: Domain | None) -> int | str:
    if isinstance(label, int) and domain is not None and label >= domain.classes:
        return f"label {label} of {domain.classes} classes"
    return label


def _read_image(path: Path, domain: Domain | None, resize: bool) -> Tensor:
    """One image as uint8 with shape `(C, H, W)`."""
    from PIL import Image

    with Image.open(path) as image:
        channels = _check_image(image, domain, resize)
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    tensor = torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)
    return tensor if domain is None else resize_images(tensor[None], domain.shape[1:])[0]


def _check_image(image: Image.Image, domain: Domain | None, resize: bool) -> int:
    """The channels that an image file is read with; raises `ValueError` if it cannot be."""
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise ValueError(f"expected 8 bits a channel; got mode {image.mode}")
    channels = domain.shape[0] if domain else (1 if image.mode in ("1", "L", "LA") else 3)
    if channels not in (1, 3):
        raise ValueError(f"an image file has 1 or 3 channels; expected {channels}")
    if domain is not None and not resize and image.size != domain.shape[:0:-1]:
        (height, width), (got_width, got_height) = domain.shape[1:], image.size
        raise ValueError(
            f"expected {height}x{width} pixels; got {got_height}x{got_width} (--resize resizes it)"
        )
    return channels


# --- npz files ---


def read_npz(path: Path, domain: Domain | None = None, split: Split = "train") -> LabelledData:
    """Reads `x` or `images` and `y` or `labels` from an .npz file; nothing in it is run.

    Images are uint8, or floats in [0, 1], with shape `(N, H, W)`, `(N, C, H, W)` or
    `(N, H, W, C)`; vectors are floats with shape `(N, D)`.
    """
    x, y = _read_arrays(path, split)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and _channels_last(x.shape, domain):
        x = x.transpose(0, 3, 1, 2)
    if y.dtype.kind not in "iu" or x.dtype.kind not in "fu":
        raise UsageError(
            f"{path}: expected uint8 or float inputs and integer labels; "
            f"got {x.dtype} and {y.dtype}."
        )
    try:
        return LabelledData(
            torch.from_numpy(np.ascontiguousarray(x)),
            torch.from_numpy(y.astype(np.int64)),
            str(path),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _read_arrays(path: Path, split: Split) -> tuple[np.ndarray, np.ndarray]:
    try:
        # numpy leaves a file open that it opened itself and could not read.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            x, y = array_names(path, list(file), split)
            return file[x], file[y]
    except UsageError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(unsound_npz(path, error)) from error


def array_names(path: Path, names: list[str], split: Split) -> tuple[str, str]:
    """The names of inputs and labels among those in an .npz file.

    Raises:
        UsageError: If one is missing.
    """
    x, y = (
        next((n for n in (a, b, f"{a}_{split}", f"{b}_{split}") if n in names), None)
        for a, b in (("x", "images"), ("y", "labels"))
    )
    if x is None or y is None:
        raise UsageError(
            f"{path}: expected arrays x or images, and y or labels; "
            f"got {', '.join(names) or 'none'}."
        )
    return x, y


def unsound_npz(path: Path, error: Exception) -> str:
    """What is wrong with a file that could not be read as an .npz file.

    Of a file of another kind numpy says that it can be loaded "unsafely", which nobody should.

    Arguments:
        path: The file.
        error: What numpy said.
    """
    said = f"{path} is not a sound .npz file of plain arrays"
    if zipfile.is_zipfile(path):
        return f"{said} ({error})."
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    hint = " Give the folder that the image is in." if is_image else ""
    return f"{said}, nor even a zip archive, as every .npz file is.{hint}"


def _channels_last(shape: tuple[int, ...], domain: Domain | None) -> bool:
    """Whether images are `(N, H, W, C)`; where both readings fit they are `(N, C, H, W)`."""
    channels = (1, 3) if domain is None else domain.shape[:1]
    return shape[1] not in channels and shape[3] in channels
