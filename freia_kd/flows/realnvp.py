"""Conditional RealNVP: checkerboard and channel masks on several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from FrEIA.modules import GLOWCouplingBlock
from torch import Tensor

from .bases import Base
from .blocks import Permute
from .compose import INN, INNFlow, multiscale
from .squash import Squash


class RealNVP(INNFlow):
    r"""Affine couplings with checkerboard masks, then with channel masks, on several scales.

    Each scale squeezes 2 x 2 pixels into channels. The diagonal of each little square against the
    other diagonal is the checkerboard, at half the resolution; the first against the last half of
    the channels is the channel mask. Half of the channels are factored out, and unsqueezed at the
    end, so that latents keep the arrangement of pixels. The untrained flow is the identity from
    latents to unbounded values. For vectors the masks are even against odd, then the halves, and
    there is one scale.

    Arguments:
        shape: The shape of one input: `(C, H, W)` for images in [0, 1], or `(D,)`.
        classes: The number of classes; `None` for a flow without a condition.
        base: The base density; a standard Gaussian by default.
        levels: The number of scales; by default 3, or as many as the height and width allow.
        checkerboard: The number of pairs of couplings with checkerboard masks in each scale.
        channelwise: The number of pairs of couplings with channel masks in each scale.
        hidden_features: The width of the subnets.
        layers: The number of hidden layers of the subnets.
        clamp: The bound of the log-scales.
        bf16: Whether the subnets compute in bfloat16, which makes training a quarter faster on CPUs
            that have it.
        whiten: Whether to work in the whitened coordinates of the base; by default for vectors
            only.
        halvings: How often images are halved before the first scale (see
            :func:`~freia_kd.flows.compose.multiscale`): for large ones, whose parameters then
            hardly grow with their side.
        squash: As for :class:`~freia_kd.flows.compose.INNFlow`, which maps images to [0, 1].
        alpha: The `alpha` of the squash; by default its own.
        channels_last: Whether images are laid out with the channels last in memory, which makes
            training faster, the more so with `bf16`.
        compile: Whether the net is compiled by `torch.compile` when it is first used: a training
            step is then about a quarter faster, after minutes of compiling.

    References:
        | Density estimation using Real NVP (Dinh et al., 2017), sections 3.4 to 3.6
        | https://arxiv.org/abs/1605.08803

    Departures: couplings come in pairs that transform both parts; plain convolutions without batch
    normalisation for residual networks with it; a class-conditional affine map in each scale; the
    class is a bias of every hidden layer.

    Example:
        >>> flow = RealNVP((3, 8, 8), classes=10, levels=2)
        >>> flow.sample(torch.tensor([3, 7])).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int | None,
        base: Base | None = None,
        *,
        levels: int | None = None,
        checkerboard: int = 2,
        channelwise: int = 2,
        hidden_features: int = 32,
        layers: int = 2,
        clamp: float = 1.0,
        bf16: bool = False,
        whiten: bool | None = None,
        halvings: int = 0,
        squash: Squash = "auto",
        alpha: float | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        def pairs(inn: INN, number: int) -> None:
            for _ in range(number):
                inn.coupling(
                    GLOWCouplingBlock,
                    hidden_features=hidden_features,
                    layers=layers,
                    clamp=clamp,
                    bf16=bf16,
                )

        def fill(inn: INN) -> None:
            order = checkered(inn.dims)
            inn.affine(clamp=clamp).append(Permute, permutation=order)
            pairs(inn, checkerboard)
            inn.append(Permute, permutation=order.argsort())
            pairs(inn, channelwise)

        def detail(inn: INN) -> None:
            inn.coupling(
                hidden_features=hidden_features,
                layers=layers,
                clamp=clamp,
                bf16=bf16,
                split_len=0.25,
            )

        inn = multiscale(tuple(shape), classes or 0, levels, fill, halvings, detail)
        whiten = len(shape) == 1 if whiten is None else whiten
        super().__init__(
            inn,
            shape,
            classes,
            base,
            squash=squash,
            alpha=alpha,
            whiten=whiten,
            channels_last=channels_last,
            compile=compile,
        )


def checkered(dims: Sequence[int]) -> Tensor:
    """The order of squeezed channels with one diagonal of each 2 x 2 square before the other."""
    index = torch.arange(dims[0])
    if len(dims) == 1:
        return torch.cat([index[0::2], index[1::2]])
    diagonal = (index % 4 == 0) | (index % 4 == 3)
    return torch.cat([index[diagonal], index[~diagonal]])
