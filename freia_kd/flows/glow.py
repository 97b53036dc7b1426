"""Conditional Glow: multi-scale, learned 1x1 convolutions, the class as a bias."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .bases import Base
from .blocks import ClassAffine, Conv1x1
from .compose import INN, INNFlow, multiscale
from .squash import Squash

SMALLEST_STD = 1e-3  # of a channel that hardly changes, by which it is divided at most


class Glow(INNFlow):
    r"""Steps of a learned 1x1 convolution and an affine coupling, on several scales.

    Each scale squeezes 2 x 2 pixels into channels, applies `steps` steps, factors out half of the
    channels, and unsqueezes at the end, so that latents keep the arrangement of pixels. The
    convolutions start as random rotations, as in the paper, and one more at the end of each scale
    starts by undoing them: the untrained flow is the identity from latents to unbounded values,
    and keeps the meaning of a spectral base. Vectors have one scale, and dense subnets.

    Arguments:
        shape: The shape of one input: `(C, H, W)` for images in [0, 1], or `(D,)`.
        classes: The number of classes; `None` for a flow without a condition.
        base: The base density; a standard Gaussian by default.
        levels: The number of scales; by default 3, or as many as the height and width allow.
        steps: The number of steps in each scale.
        hidden_features: The width of the subnets.
        layers: The number of hidden layers of the subnets.
        clamp: The bound of the log-scales.
        bf16: Whether the subnets compute in bfloat16, which makes training a quarter faster on CPUs
            that have it.
        whiten: Whether to work in the whitened coordinates of the base; by default for vectors
            only, since convolutions expect neighbouring pixels.
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
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018)
        | https://arxiv.org/abs/1807.03039

    Departures: a class-conditional affine map once in each scale stands for actnorm, and only
    :meth:`initialize`, not whichever batch comes first, fits it to data; subnets hold
    no normalisation, and take the class as a bias of every hidden layer; latents of all scales have
    one base density, in the arrangement of pixels.

    Example:
        >>> flow = Glow((1, 8, 8), classes=10, levels=2, steps=2)
        >>> flow.sample(torch.tensor([3, 7])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int | None,
        base: Base | None = None,
        *,
        levels: int | None = None,
        steps: int = 8,
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
        def fill(inn: INN) -> None:
            inn.affine(clamp=clamp)
            before = torch.eye(inn.dims[0], dtype=torch.float64)
            for index in range(steps):
                after = rotation(inn.dims[0], index)
                inn.append(Conv1x1, initial=after @ before.T).coupling(
                    hidden_features=hidden_features, layers=layers, clamp=clamp, bf16=bf16
                )
                before = after
            inn.append(Conv1x1, initial=before.T)

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

    @torch.no_grad()
    def initialize(self, x: Tensor, c: Tensor | None = None) -> None:
        r"""Begins where data are, as ActNorm does in the paper (section 3.1), before any training.

        Every channel is shifted and scaled at the start of each scale, so that it has mean 0 and
        variance 1 on these images: the class-conditional map takes the shift, the same for all
        classes, and the convolution after it the scale. Meant for maximum likelihood, which then
        begins much nearer to the data; a flow that learns without data needs no such start.

        Arguments:
            x: Images in [0, 1] with shape `(B, C, H, W)`, dequantised as in training, or vectors
                `(B, D)`; a hundred will do.
            c: Their labels, if the flow has classes.

        Raises:
            ValueError: If there are fewer than two inputs, or the flow does not take them.
        """
        if len(x) < 2:
            raise ValueError(f"Expected at least 2 inputs to begin with; got {len(x)}.")
        nets = [net for net in self.modules() if isinstance(net, INN)]
        pairs = [pair for net in nets for pair in itertools.pairwise(net.blocks)]
        hooks = [
            affine.register_forward_pre_hook(partial(_center, convolution))
            for affine, convolution in pairs
            if isinstance(affine, ClassAffine) and isinstance(convolution, Conv1x1)
        ]
        try:
            self.log_prob(x, c)
        finally:
            for hook in hooks:
                hook.remove()


def _center(convolution: Conv1x1, affine: ClassAffine, arguments: tuple[Any, ...]) -> None:
    """Lets two modules bring what comes to mean 0 and variance 1, channel by channel."""
    ((x,),) = arguments
    axes = [0, *range(2, x.ndim)]
    affine.shift.sub_(x.mean(axes))
    convolution.scale_inputs(-x.std(axes).clamp(min=SMALLEST_STD).log())


def rotation(channels: int, index: int) -> Tensor:
    """The fixed random orthogonal matrix of step `index`, with shape `(channels, channels)`."""
    generator = torch.Generator().manual_seed(index)
    normal = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal)[0]
