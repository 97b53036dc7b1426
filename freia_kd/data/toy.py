"""Labelled two-dimensional data, centred, within about two thirds of a unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..registry import TOYS
from .datasets import LabelledData


def toy(name: str, n: int, generator: torch.Generator | None = None) -> LabelledData:
    """Draws `n` labelled points of a toy data set, in random order.

    Arguments:
        name: One of :data:`TOYS`, or a path `package.module:function` to a function of `n` and a
            generator that gives points with shape `(n, 2)` and classes with shape `(n,)`.
        n: The number of points.
        generator: The source of all random numbers.

    Raises:
        UsageError: If there is no such data set.
        ValueError: If there are fewer than two points.

    Example:
        >>> data = toy("pinwheel", 90, torch.Generator().manual_seed(0))
        >>> data.inputs.shape, data.labels.bincount().tolist()
        (torch.Size([90, 2]), [30, 30, 30])
    """
    if n < 2:
        raise ValueError(f"Expected at least 2 points; got {n}.")
    points, labels = TOYS[name](n, generator)
    order = torch.randperm(n, generator=generator)
    return LabelledData(points[order].float(), labels[order].long(), name)


def moons(n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles (scikit-learn's `make_moons`); two classes."""
    from sklearn.datasets import make_moons

    x, y = make_moons(n, noise=0.08, random_state=_seed(generator))
    return 0.5 * (torch.from_numpy(x) - torch.tensor([0.5, 0.25])), torch.from_numpy(y)


def circles(n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """One circle inside another (scikit-learn's `make_circles`); two classes."""
    from sklearn.datasets import make_circles

    x, y = make_circles(n, noise=0.06, factor=0.45, random_state=_seed(generator))
    return 0.65 * torch.from_numpy(x), torch.from_numpy(y)


def mixture(n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Six Gaussian blobs on a circle that alternate between two classes (`make_blobs`)."""
    from sklearn.datasets import make_blobs

    angles = torch.arange(6) * (2 * math.pi / 6)
    centers = 0.6 * torch.stack([angles.cos(), angles.sin()], 1)
    x, blob = make_blobs(
        n, centers=centers.numpy(), cluster_std=0.08, random_state=_seed(generator)
    )
    return torch.from_numpy(x), torch.from_numpy(blob) % 2


def pinwheel(n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Three curved arms, each a class.

    References:
        | Structured VAEs (Johnson et al., 2016), whose figures made it known
    """
    labels = torch.arange(n) % 3
    noise = torch.randn(n, 2, generator=generator)
    radius, side = 1.2 + 0.35 * noise[:, 0], 0.12 * noise[:, 1]
    angle = labels * (2 * math.pi / 3) + 0.7 * radius
    x = radius * angle.cos() - side * angle.sin()
    y = radius * angle.sin() + side * angle.cos()
    return 0.45 * torch.stack([x, y], 1), labels


def pizza(n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """A disc in six slices that alternate between two classes."""
    piece = torch.arange(n) % 6
    uniform = torch.rand(n, 2, generator=generator)
    angle = (piece + 0.1 + 0.8 * uniform[:, 0]) * (2 * math.pi / 6)
    radius = 0.7 * (0.02 + 0.98 * uniform[:, 1]).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), piece % 2


def _seed(generator: torch.Generator | None) -> int:
    """A seed for scikit-learn, drawn from the generator."""
    return int(torch.randint(2**31 - 1, (), generator=generator))
