"""Unlabelled inputs from a folder of images or an npz file, made to fit a domain."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..domain import Domain
from ..errors import UsageError
from .datasets import (
    PathLike,
    _channels_last,
    _image_files,
    _read_image,
    _refuse,
    expect_light,
    resize_images,
    unsound_npz,
)

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey, as Pillow has it


def read_unlabelled(source: PathLike, domain: Domain, most: int | None = None) -> Tensor:
    """Reads inputs without labels; images are resized, and become grey or colour as needed.

    Arguments:
        source: A folder of images, read with its subfolders, or an .npz file with an array `x` or
            `images` (or a single array of another name): uint8, or floats in [0, 1], with shape
            `(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)`; vectors are floats `(N, D)`.
        domain: The domain that they are made to fit.
        most: The most inputs that are read. Of more, these are evenly spread over the order of the
            files' names (or the array's rows), so that no folder of a class is left out.

    Returns:
        uint8 images with shape `(N, *shape)`, or float vectors.

    Raises:
        UsageError: If there is no such source, it holds nothing, or what it holds does not fit;
            faulty files are listed together.
    """
    path = Path(source)
    inputs = _read_folder(path, domain, most) if path.is_dir() else _read_file(path, domain, most)
    if domain.is_image:
        try:
            expect_light(str(path), inputs)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return inputs


def _read_file(path: Path, domain: Domain, most: int | None) -> Tensor:
    if not path.is_file():
        raise UsageError(f"There is no folder or file {path}; give images or an .npz file.")
    array = _read_array(path)
    if array.ndim == 0 or len(array) == 0:
        raise UsageError(f"{path} holds no inputs.")
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{path}: expected numbers; got {array.dtype}.")
    inputs = torch.from_numpy(np.ascontiguousarray(array[_spread(len(array), most)]))
    if not domain.is_image:
        return _as_vectors(path, inputs, domain)
    return _as_images(path, inputs, domain)


def _read_folder(folder: Path, domain: Domain, most: int | None) -> Tensor:
    if not domain.is_image:
        raise UsageError(f"Expected vectors of shape {domain.shape}; {folder} is a folder.")
    files = _image_files(folder, "**/*")
    if not files:
        raise UsageError(f"There are no images in {folder}.")
    files = [files[i] for i in _spread(len(files), most)]
    images, faults = [], []
    for path in files:
        try:
            images.append(_read_image(path, domain, True))
        except (OSError, SyntaxError, ValueError) as error:
            faults.append(f"{path}: {error}")
    if faults:
        _refuse(folder, faults)
    return torch.stack(images)


def _spread(count: int, most: int | None) -> np.ndarray:
    """The indices of `most` of `count` things, evenly spread; all of them where there are fewer."""
    kept = count if most is None else min(count, most)
    return np.arange(kept) * count // kept


def _read_array(path: Path) -> np.ndarray:
    try:
        # numpy leaves a file open that it opened itself and could not read.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            names = [n for n in ("x", "images", "x_train", "images_train") if n in file]
            names = names or (list(file) if len(list(file)) == 1 else [])
            if not names:
                raise UsageError(
                    f"{path}: expected an array x or images; got {', '.join(file) or 'none'}."
                )
            return file[names[0]]
    except UsageError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(unsound_npz(path, error)) from error


def _as_vectors(path: Path, inputs: Tensor, domain: Domain) -> Tensor:
    fits = inputs.is_floating_point() and tuple(inputs.shape[1:]) == domain.shape
    if not fits or not torch.isfinite(inputs).all():
        raise UsageError(
            f"{path}: expected finite float vectors of shape {domain.shape}; got {inputs.dtype} "
            f"of shape {tuple(inputs.shape[1:])}."
        )
    return inputs.float()


def _as_images(path: Path, inputs: Tensor, domain: Domain) -> Tensor:
    shape = tuple(inputs.shape)
    inputs = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs
    if inputs.ndim == 4 and _channels_last(tuple(inputs.shape), None):
        inputs = inputs.permute(0, 3, 1, 2)
    whole = inputs.dtype == torch.uint8
    if inputs.ndim != 4 or not (whole or inputs.is_floating_point()):
        raise UsageError(
            f"{path}: expected uint8 or float images (N, C, H, W); got {inputs.dtype} of shape "
            f"{shape}."
        )
    if not whole and not (inputs.min() >= 0 and inputs.max() <= 1):
        raise UsageError(
            f"{path}: expected float pixels in [0, 1]; got {inputs.min():.3g} to "
            f"{inputs.max():.3g}. Divide by 255, or store uint8."
        )
    pixels = inputs if whole else (inputs * 255).round().to(torch.uint8)
    suiting = _as_channels(pixels, domain.shape[0])
    if suiting is None:
        raise UsageError(
            f"{path}: expected images of {' or '.join(map(str, sorted({1, 3, domain.shape[0]})))} "
            f"channels, (N, H, W), (N, C, H, W) or (N, H, W, C); got shape {shape}."
        )
    return resize_images(suiting, domain.shape[1:])


def _as_channels(pixels: Tensor, channels: int) -> Tensor | None:
    """Images with as many channels as a domain has, if there is a way to that."""
    have = pixels.shape[1]
    if have == channels:
        return pixels.contiguous()
    if (have, channels) == (1, 3):
        return pixels.repeat(1, 3, 1, 1)
    if (have, channels) == (3, 1):
        shares = torch.tensor(LUMA).view(1, 3, 1, 1)
        return (pixels.float() * shares).sum(1, keepdim=True).round().to(torch.uint8)
    return None
