"""NICE with affine couplings, for vectors and flattened images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .bases import Base
from .blocks import Permute
from .compose import INN, INNFlow
from .squash import Squash


class NICE(INNFlow):
    r"""A stack of affine couplings on vectors, or on flattened images.

    .. math:: y_1 = x_1, \qquad y_2 = x_2 \odot e^{s(x_1, c)} + t(x_1, c)

    The halves swap roles from one coupling to the next, and are drawn anew after each pair by a
    fixed permutation. All permutations are undone at the end, so that the untrained flow is the
    identity from latents to unbounded values. The condition is a bias of every hidden layer, and
    a scale and shift per class and dimension before the couplings.

    Arguments:
        shape: The shape of one input: `(D,)`, or `(C, H, W)` for images in [0, 1].
        classes: The number of classes; `None` for a flow without a condition.
        base: The base density; a standard Gaussian by default.
        transforms: The number of couplings.
        hidden_features: The width of the subnets.
        layers: The number of hidden layers of the subnets.
        clamp: The bound of the log-scales.
        bf16: Whether the subnets compute in bfloat16. On CPUs that have it up to twice as fast for
            large batches, or within `fixed()`; but a training step of 64 inputs is bound by memory,
            and casts add to that (`benchmarks/results/flows.md`). Slower for single inputs. A round
            trip is then exact to some 5e-3 only.
        whiten: Whether to work in the whitened coordinates of the base: for a spectral base, the
            frequencies of the image, each in units of its standard deviation.
        squash: As for :class:`~freia_kd.flows.compose.INNFlow`, which maps images to [0, 1].
        alpha: The `alpha` of the squash; by default its own.

    References:
        | NICE: Non-linear Independent Components Estimation (Dinh et al., 2014), section 3.3
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), equation 3
        | https://arxiv.org/abs/1410.8516

    Departures: the couplings are affine as in the BDNF paper, not additive; halves are redrawn.

    Example:
        >>> flow = NICE((2,), classes=3)
        >>> x = flow.sample(torch.tensor([0, 1, 2]))
        >>> flow.log_prob(x, torch.tensor([0, 1, 2])).shape
        torch.Size([3])
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int | None,
        base: Base | None = None,
        *,
        transforms: int = 8,
        hidden_features: int = 256,
        layers: int = 2,
        clamp: float = 1.0,
        bf16: bool = False,
        whiten: bool = True,
        squash: Squash = "auto",
        alpha: float | None = None,
    ) -> None:
        def couple(inn: INN) -> None:
            inn.coupling(hidden_features=hidden_features, layers=layers, clamp=clamp, bf16=bf16)

        inn = alternate(math.prod(shape), classes or 0, transforms, couple)
        super().__init__(inn, shape, classes, base, whiten=whiten, squash=squash, alpha=alpha)


def alternate(features: int, classes: int, transforms: int, couple: Callable[[INN], None]) -> INN:
    """A net on vectors: couplings of alternating halves, after a scale and shift per class.

    Arguments:
        features: The number of dimensions.
        classes: The number of classes; 0 for a net without condition.
        transforms: The number of couplings.
        couple: Appends one coupling, of the last half by the first one.

    Raises:
        ValueError: If there are not two dimensions to couple.
    """
    if features < 2:
        raise ValueError(f"Expected at least 2 dimensions to couple; got {features}.")
    inn = INN([(features,)], classes=classes).affine()
    total = torch.arange(features)
    for index in range(transforms):
        order = halves(features, index)
        total = total[order]
        couple(inn.append(Permute, permutation=order))
    return inn.append(Permute, permutation=total.argsort())


def halves(features: int, index: int) -> Tensor:
    """The permutation before coupling `index`: random ones, each followed by a swap of halves."""
    if index % 2:
        return torch.arange(features).roll(features // 2)
    return torch.randperm(features, generator=torch.Generator().manual_seed(index))
