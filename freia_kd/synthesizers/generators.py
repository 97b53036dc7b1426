"""Small generators, from latents (and labels) to inputs, that several methods share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ..domain import Domain
from ..flows.contract import one_hot

Net = TypeVar("Net", bound=nn.Module)


class Generator(nn.Module):
    """A net from latents to inputs in the teacher's normalised units; see :func:`as_inputs`.

    Arguments:
        latents: The length of a latent.
        classes: The number of classes of a conditional generator, 0 for an unconditional one.
    """

    net: nn.Module

    def __init__(self, latents: int, classes: int = 0) -> None:
        super().__init__()
        self.latents, self.classes = latents, classes

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Makes inputs with shape `(B, *shape)`.

        Arguments:
            z: Latents with shape `(B, latents)`.
            c: Class indices `(B,)` or soft labels `(B, classes)`, for a conditional generator.

        Raises:
            ValueError: If labels are missing, or given to an unconditional generator.
        """
        if (c is not None) != bool(self.classes):
            wanted = "labels" if self.classes else "no labels"
            raise ValueError(f"Expected {wanted} for a generator of {self.classes} classes.")
        if c is not None:
            z = torch.cat([z, as_distribution(c, self.classes).to(z)], 1)
        return self.net(z)


class DenseGenerator(Generator):
    """Linear layers with ELU and batch normalisation between them, for vectors.

    Batch normalisation without weights is last, so that every feature has mean 0 and variance 1 as
    the teacher's normalised inputs have.

    Arguments:
        latents: The length of a latent.
        features: The length of a vector.
        classes: The number of classes, 0 for an unconditional generator.
        hidden: The widths of the hidden layers.

    Example:
        >>> DenseGenerator(10, 4, classes=3)(torch.randn(5, 10), torch.arange(5) % 3).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        latents: int,
        features: int,
        classes: int = 0,
        hidden: Sequence[int] = (120, 120),
    ) -> None:
        super().__init__(latents, classes)
        layers = perceptron([latents + classes, *hidden, features])
        self.net = nn.Sequential(layers, nn.BatchNorm1d(features, affine=False))


class ImageGenerator(Generator):
    r"""Linear layers, then convolutions that double the size, for images of any size.

    The first grid is :math:`\lceil H / 2^n \rceil \times \lceil W / 2^n \rceil` for `n` widths
    in `channels`; after `n` doublings the middle :math:`H \times W` pixels are cut out. With the
    defaults, 20 latents and labels and 32x32 images this is KegNet's generator, but that theirs
    standardises by the unbiased variance.

    Arguments:
        latents: The length of a latent.
        shape: The shape of an image, `(C, H, W)`.
        classes: The number of classes, 0 for an unconditional generator.
        hidden: The widths of the linear layers.
        channels: The channels of the first grid and of those that follow.
        upsample: How the grid doubles: by a transposed convolution of 4x4 pixels, or by nearest
            neighbours and a 3x3 convolution, which draws no chequerboard.
        activation: What makes the activation after each layer but the last.
        head: The last module; a tanh and :class:`Standardise` if `None`.

    Example:
        >>> net = ImageGenerator(10, (3, 30, 17), classes=4)
        >>> net(torch.randn(5, 10), torch.arange(5) % 4).shape
        torch.Size([5, 3, 30, 17])
    """

    def __init__(
        self,
        latents: int,
        shape: tuple[int, ...],
        classes: int = 0,
        hidden: Sequence[int] = (256, 128),
        channels: Sequence[int] = (64, 16, 4),
        upsample: Literal["transposed", "nearest"] = "transposed",
        activation: Callable[[], nn.Module] = nn.ReLU,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__(latents, classes)
        times = 2 ** len(channels)
        grid = (channels[0], math.ceil(shape[1] / times), math.ceil(shape[2] / times))
        widths = [latents + classes, *hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            linear = nn.Linear(width_in, width_out)
            layers += [linear, nn.BatchNorm1d(width_out), activation()]
        layers += [nn.Linear(widths[-1], math.prod(grid), bias=False), nn.Unflatten(1, grid)]
        for channels_in, channels_out in zip(channels, [*channels[1:], shape[0]], strict=True):
            doubled = double(channels_in, channels_out, upsample)
            layers += [nn.BatchNorm2d(channels_in), activation(), doubled]
        layers += [Crop(shape[1], shape[2]), head or nn.Sequential(nn.Tanh(), Standardise())]
        self.net = nn.Sequential(*layers)


def double(channels_in: int, channels_out: int, upsample: str) -> nn.Module:
    """A layer that doubles height and width, see :class:`ImageGenerator`."""
    if upsample == "transposed":
        return nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1, bias=False)
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return nn.Sequential(nn.Upsample(scale_factor=2), convolution)


class Crop(nn.Module):
    """The middle of a grid that is at least as large, with shape `(B, C, height, width)`."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """Cuts `x` `(B, C, H, W)`."""
        top, left = (x.shape[2] - self.height) // 2, (x.shape[3] - self.width) // 2
        return x[:, :, top : top + self.height, left : left + self.width]


class Standardise(nn.Module):
    """Gives every channel of every image mean 0 and variance 1; flat ones become 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Standardises `x` `(B, C, H, W)`."""
        x = x - x.mean((2, 3), keepdim=True)
        return x / (x.square().mean((2, 3), keepdim=True) + 1e-8).sqrt()


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths, with ELU and batch normalisation between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(width_in, width_out), nn.ELU(), nn.BatchNorm1d(width_out)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def as_inputs(u: Tensor, domain: Domain) -> Tensor:
    """Inputs for a teacher from a generator's output in the teacher's normalised units.

    Pixels are clamped to [0, 1]. The gradient passes the clamp as if it were not there, so that
    pixels beyond the range still learn; vectors are not clamped.

    Arguments:
        u: The generator's output with shape `(B, *domain.shape)`.
        domain: The teacher's domain.
    """
    x = domain.denormalize(u)
    # The clamped values exactly: x + (clamped - x) would round to a little beyond the range.
    return _PassThrough.apply(x, x.clamp(0, 1)) if domain.is_image else x


class _PassThrough(torch.autograd.Function):
    """The value of the second argument with the gradient of the first."""

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.detach().clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def as_distribution(c: Tensor, classes: int) -> Tensor:
    """Labels as distributions with shape `(B, classes)`: indices become one-hot."""
    return one_hot(c, classes).float() if c.ndim == 1 else c


def build_seeded(build: Callable[[], Net], generator: torch.Generator) -> Net:
    """Builds a net whose weights come from `generator`, on the generator's device.

    Modules draw their weights from torch's global generator, which is left as it was.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(generator.device)
