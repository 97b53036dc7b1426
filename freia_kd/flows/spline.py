"""Neural spline flow: couplings with monotonic rational-quadratic splines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .bases import Base
from .compose import INN, INNFlow
from .nice import alternate
from .squash import Squash


class NSF(INNFlow):
    r"""A stack of spline couplings on vectors, or on flattened images.

    Built as :class:`~freia_kd.flows.nice.NICE`, with splines for affine maps.

    Arguments:
        shape: The shape of one input: `(D,)`, or `(C, H, W)` for images in [0, 1].
        classes: The number of classes; `None` for a flow without a condition.
        base: The base density; a standard Gaussian by default.
        transforms: The number of couplings.
        bins: The number of bins of a spline.
        bound: Values beyond it pass a coupling unchanged.
        hidden_features: The width of the subnets.
        layers: The number of hidden layers of the subnets.
        bf16: Whether the subnets compute in bfloat16.
        whiten: Whether to work in the whitened coordinates of the base, in which `bound` counts
            standard deviations.
        squash: As for :class:`~freia_kd.flows.compose.INNFlow`, which maps images to [0, 1].
        alpha: The `alpha` of the squash; by default its own.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

    Departures: fixed permutations for LU-decomposed linear layers; plain subnets for residual ones.

    Example:
        >>> import torch
        >>> flow = NSF((2,), classes=3)
        >>> flow.sample(torch.tensor([0, 1, 2])).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int | None,
        base: Base | None = None,
        *,
        transforms: int = 6,
        bins: int = 8,
        bound: float = 5.0,
        hidden_features: int = 128,
        layers: int = 2,
        bf16: bool = False,
        whiten: bool = True,
        squash: Squash = "auto",
        alpha: float | None = None,
    ) -> None:
        def couple(inn: INN) -> None:
            inn.spline(
                bins=bins, bound=bound, hidden_features=hidden_features, layers=layers, bf16=bf16
            )

        inn = alternate(math.prod(shape), classes or 0, transforms, couple)
        super().__init__(inn, shape, classes, base, whiten=whiten, squash=squash, alpha=alpha)
