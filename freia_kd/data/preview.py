"""What labelled data are, by names, headers and labels alone: no input is read."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..domain import DOMAINS, Domain
from ..errors import UsageError
from .datasets import (
    PathLike,
    Split,
    _channels_last,
    _check_image,
    _label_files,
    _refuse,
    array_names,
    split_folder,
    unsound_npz,
)

TABLES = {"iris": (4, 3), "wine": (13, 3), "breast-cancer": (30, 2), "digits-table": (64, 10)}


def check_data(source: PathLike, domain: Domain, split: Split, resize: bool = False) -> None:
    """Raises unless labelled data fit a domain, as far as that can be seen without their inputs.

    Of a named set that is what it is known to hold, of a folder the names of its files and their
    headers, of an .npz file the shapes, the types and the labels. What code of the user's own makes
    is not looked at.

    Arguments:
        source: A name of `DATASETS`, a folder or an .npz file.
        domain: The domain.
        split: The part that is meant.
        resize: Whether images of another size will be resized.

    Raises:
        UsageError: If they do not fit; faulty files are listed together.
    """
    name, path = os.fspath(source), Path(source)
    if name in DOMAINS or name in TABLES:
        known = DOMAINS.get(name)
        shape = (TABLES[name][0],) if known is None else known.shape
        classes = TABLES[name][1] if known is None else known.classes
        _expect(name, shape, classes - 1, domain, resize=True)
    elif path.is_dir():
        _check_folder(path, domain, split, resize)
    elif path.is_file():
        _check_npz(path, domain, split, resize)


def _expect(name: str, shape: tuple[int, ...], label: int, domain: Domain, resize: bool) -> None:
    is_free = resize and len(shape) == len(domain.shape) == 3
    if (shape[:1] if is_free else shape) != (domain.shape[:1] if is_free else domain.shape):
        can = len(shape) == 3 and shape[:1] == domain.shape[:1]
        hint = " Pass --resize to resize the images." if can else ""
        raise UsageError(f"{name}: expected inputs of shape {domain.shape}; got {shape}.{hint}")
    if label >= domain.classes:
        raise UsageError(f"{name}: expected labels below {domain.classes}; got {label}.")


def _check_folder(folder: Path, domain: Domain, split: Split, resize: bool) -> None:
    from PIL import Image

    if not domain.is_image:
        raise UsageError(f"Expected vectors of shape {domain.shape}; {folder} is a folder.")
    faults = []
    for path, label in _label_files(split_folder(folder, split), domain).items():
        try:
            if isinstance(label, str):
                raise ValueError(label)
            with Image.open(path) as image:  # which reads its header only
                _check_image(image, domain, resize)
        except (OSError, SyntaxError, ValueError) as error:
            faults.append(f"{path}: {error}")
    if faults:
        _refuse(folder, faults)


def _check_npz(path: Path, domain: Domain, split: Split, resize: bool) -> None:
    try:
        headers = _headers(path)
        x_name, y_name = array_names(path, list(headers), split)
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            labels = file[y_name]
    except UsageError:
        raise
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(unsound_npz(path, error)) from error
    shape, dtype = headers[x_name]
    fits = dtype.kind == "f" or (dtype == np.uint8 and len(shape) > 2)
    if labels.dtype.kind not in "iu" or not fits:
        raise UsageError(
            f"{path}: expected uint8 or float inputs and integer labels; got {dtype} and "
            f"{labels.dtype}."
        )
    if labels.shape != shape[:1] or not len(labels) or labels.min() < 0:
        raise UsageError(
            f"{path}: expected at least one input, and a label from 0 for each; got inputs of "
            f"shape {shape} and labels of shape {labels.shape}."
        )
    if len(shape) == 3:
        shape = (shape[0], 1, *shape[1:])
    elif len(shape) == 4 and _channels_last(shape, domain):
        shape = (shape[0], shape[3], *shape[1:3])
    _expect(str(path), shape[1:], int(labels.max()), domain, resize)


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """The shape and type of each array in an .npz file."""
    headers = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                one = version == (1, 0)
                read = (
                    np.lib.format.read_array_header_1_0
                    if one
                    else (np.lib.format.read_array_header_2_0)
                )
                shape, _, dtype = read(file)
                headers[member.removesuffix(".npy")] = (shape, dtype)
    return headers
