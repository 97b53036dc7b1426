"""Real data from wherever a user has them: a name, a folder, a file, a data set of torch."""

from __future__ import annotations

import os
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..domain import Domain
from ..errors import UsageError
from .datasets import DATASETS, LabelledData, Split, fit_domain, load_dataset
from .preview import check_data

PathLike = str | os.PathLike[str]
Source = PathLike | LabelledData | Dataset[Any]
# What torchvision leaves in its folder.
TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "svhn": "test_32x32.mat",
    "cifar10": "cifar-10-batches-py",
}


@dataclass(frozen=True)
class RealData:
    """Labelled real data that may be read later.

    Arguments:
        source: A name of `DATASETS`, a folder of images, an .npz file, or a map-style data set of
            (image, label) pairs in memory.
        root: Where torchvision keeps its data sets.
        download: Whether torchvision may download them.
        resize: Whether to resize images of another size.
    """

    source: Source
    root: PathLike | None = None
    download: bool = False
    resize: bool = False

    @property
    def source_fields(self) -> dict[str, Any]:
        """The fields as plain JSON types; data in memory have no source in it."""
        if isinstance(self.source, Dataset):
            return {"source": None}
        root = None if self.root is None else os.fspath(self.root)
        return {
            "source": os.fspath(self.source),
            "root": root,
            "download": self.download,
            "resize": self.resize,
        }

    def check(self, domain: Domain | None = None, split: Split = "test") -> None:
        """Raises unless there seem to be such data, without reading their inputs.

        Arguments:
            domain: What they must fit, as far as names, headers and labels tell
                (:func:`~freia_kd.data.preview.check_data`); data in memory are not looked at.
            split: The part that is meant.

        Raises:
            UsageError: If there are none, or they do not fit.
        """
        self._expect_source()
        if domain is not None and not isinstance(self.source, Dataset):
            check_data(self.source, domain, split, self.resize)

    def _expect_source(self) -> None:
        source = self.source
        if isinstance(source, Dataset):
            if not isinstance(source, Sized) or not hasattr(source, "__getitem__"):
                raise UsageError(
                    f"Expected a map-style data set, with a length and indices; got a "
                    f"{type(source).__name__}."
                )
            return
        name = os.fspath(source)
        if Path(source).exists() or ":" in name:
            return
        if name not in DATASETS:
            raise UsageError(
                f"There are no data {name!r}: neither a folder or file, nor one of "
                f"{', '.join(DATASETS)}."
            )
        root = Path(self.root or "data")
        if name in TORCHVISION and not self.download and not (root / TORCHVISION[name]).exists():
            raise UsageError(
                f"There is no folder {root} with {name}; pass --data-root FOLDER where "
                "torchvision has put it, or --download."
            )

    def load(self, domain: Domain, split: Split) -> LabelledData:
        """Reads the data.

        Raises:
            UsageError: If there are none, or they do not fit the domain.
        """
        source = self.source
        if isinstance(source, LabelledData):
            return fit_domain(source, domain, self.resize)
        if isinstance(source, Dataset):
            return fit_domain(read_dataset(source, domain), domain, self.resize)
        return load_dataset(source, domain, split, self.root, self.download, self.resize)


def read_dataset(data: Dataset[Any], domain: Domain) -> LabelledData:
    """Reads a map-style data set of (image, label) pairs into memory.

    Images are PIL's, or tensors `(C, H, W)`, uint8 or floats in [0, 1]; vectors are float tensors.
    Its transform must not normalise, since the domain does.

    Raises:
        UsageError: If it is empty, its transform normalises, or its entries are something else.

    Example:
        >>> pairs = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4))
        >>> read_dataset(pairs, Domain((1, 8, 8), 4)).labels.tolist()
        [0, 1, 2, 3]
    """
    name, source = type(data).__name__, data
    while hasattr(source, "dataset"):  # of a Subset
        source = source.dataset
    if "Normalize(" in repr(getattr(source, "transform", None)):
        raise UsageError(
            f"The transform of {type(source).__name__} normalises, and so does the teacher's "
            "domain; leave Normalize out of it, so that pixels stay in [0, 1]."
        )
    inputs, labels = [], []
    for index in range(len(data)):  # type: ignore[arg-type]
        try:
            x, y = data[index]
            inputs.append(_as_tensor(x, domain))
            labels.append(int(y))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"Expected (image, label) pairs in {name}; entry {index} is something else "
                f"({error})."
            ) from error
    shapes = {tuple(x.shape) for x in inputs}
    if len(shapes) != 1:
        raise UsageError(f"Expected inputs of one shape in {name}; got {sorted(shapes) or 'none'}.")
    try:
        return LabelledData(torch.stack(inputs), torch.tensor(labels), name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _as_tensor(x: Any, domain: Domain) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if hasattr(x, "convert"):  # an image of PIL
        x = x.convert("L" if domain.shape[0] == 1 else "RGB")
        pixels = torch.from_numpy(np.array(x))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return torch.as_tensor(np.asarray(x))
