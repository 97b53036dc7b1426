"""Crops of the two photographs that scikit-learn ships: natural images, not the teacher's data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from ..config import NonNegative
from ..data.datasets import LabelledData
from ..domain import Domain
from ..teachers.classifier import Classifier, Teacher
from ..training import Checkpoints
from .noise import Noise, NoiseOptions

CHUNK = 256  # crops made together


@dataclass(frozen=True)
class PhotosOptions(NoiseOptions):
    """What there is to choose about crops of photographs.

    Arguments:
        rotation: The largest angle, in degrees.
        stretch: The largest ratio of a crop's sides to those of an input.
        contrast: The largest factor by which a crop's contrast differs from the domain's.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = "photos"
    rotation: NonNegative = 30.0
    stretch: Annotated[float, Ge(1)] = 1.5
    contrast: Annotated[float, Ge(1)] = 2.0


class Photos(Noise):
    """Random crops of two photographs, labelled by the teacher, see :class:`Crops`.

    They are natural images, which the report says, and none of the teacher's data.

    References:
        | The Augmented Image Prior: Distilling 1000 Classes by Extrapolating from a Single Image
        | (Asano and Saeed, 2023), https://arxiv.org/abs/2112.00725
    """

    name = "photos"
    family = "photographs"
    needs_images = True
    real_images = "two photographs that scikit-learn ships, which are not the teacher's data"
    Options = PhotosOptions

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        super().fit(teacher, samples, checkpoints, generator, student)
        photographs = [p.to(self.device) for p in load_photographs()]
        self.crops = Crops(photographs, teacher.domain, self.options)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.crops(n, generator)


class Crops:
    """Random crops of large images, resized to a domain, with its mean and standard deviation.

    A crop has a log-uniform size from that of an input (a pixel is a pixel) to the whole image; it
    is stretched, turned, mirrored, half of the time inverted, and shrunk without aliasing. Domains
    of other channels than three get random mixtures of colours. The brightness and contrast of a
    crop vary around those that the domain has; where a domain's statistics were not measured (no
    pixels in [0, 1] have them) crops keep their own.

    Arguments:
        images: Images in [0, 1] of any sizes, each with shape `(3, H, W)`, on one device.
        domain: The domain of images.
        options: What there is to choose.

    Raises:
        ValueError: If the domain is not one of images.
    """

    def __init__(
        self, images: Sequence[Tensor], domain: Domain, options: PhotosOptions | None = None
    ) -> None:
        if not domain.is_image:
            raise ValueError(f"Expected a domain of images; got one of vectors {domain.shape}.")
        self.domain, self.options = domain, options or PhotosOptions()
        side = min(domain.shape[1:])
        self.levels = [_pyramid(image, side) for image in images]

    @torch.no_grad()
    def __call__(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Crops with shape `(n, *shape)`, pixels in [0, 1]."""
        counts = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
        return torch.cat([self._crop(count, generator) for count in counts])

    def _crop(self, n: int, generator: torch.Generator | None) -> Tensor:
        device = self.levels[0][0].device
        numbers = torch.rand(7, n, generator=generator, device=device)
        which = torch.randint(len(self.levels), (n,), generator=generator, device=device)
        height, width = self.domain.shape[1:]
        x = torch.empty(n, 3, height, width, device=device)
        for index, pyramid in enumerate(self.levels):
            shorter = min(pyramid[0].shape[1:])
            smallest = min(1.0, min(height, width) / shorter)
            share = smallest ** (1 - numbers[0])  # of the shorter side
            level = (share / smallest).log2().floor().long().clamp(0, len(pyramid) - 1)
            for depth, image in enumerate(pyramid):
                rows = torch.nonzero((which == index) & (level == depth)).flatten()
                if len(rows):
                    grid = self._grid(image, share[rows], numbers[1:, rows])
                    many = image.expand(len(rows), -1, -1, -1)
                    x[rows] = F.grid_sample(
                        many, grid, padding_mode="reflection", align_corners=False
                    )
        return self._suit(self._channels(x, generator), generator)

    def _grid(self, image: Tensor, share: Tensor, numbers: Tensor) -> Tensor:
        """Where the pixels of crops lie in an image, `(B, H, W, 2)`."""
        turn, wide, across, down, side, _ = 2 * numbers - 1
        angle = math.radians(self.options.rotation) * turn
        stretch = (math.log(self.options.stretch) * wide / 2).exp()
        shorter = min(image.shape[1:])
        cos, sin = angle.cos(), angle.sin()
        half = [share * shorter / size for size in (image.shape[2], image.shape[1])]
        mirror = torch.where(side < 0, -1.0, 1.0)
        to_x = [mirror * half[0] * stretch * cos, -half[0] / stretch * sin]
        to_y = [mirror * half[1] * stretch * sin, half[1] / stretch * cos]
        centre = [(1 - h).clamp(min=0) * at for h, at in zip(half, (across, down), strict=True)]
        maps = torch.stack(
            [torch.stack([*to_x, centre[0]], 1), torch.stack([*to_y, centre[1]], 1)], 1
        )
        size = [len(share), 3, *self.domain.shape[1:]]
        return F.affine_grid(maps, size, align_corners=False)

    def _channels(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """As many channels as the domain has: colours, or random mixtures of them."""
        channels = self.domain.shape[0]
        if channels == 3:
            return x
        shares = torch.rand(len(x), channels, 3, generator=generator, device=x.device) + 1e-3
        return torch.einsum("bkc,bchw->bkhw", shares / shares.sum(2, keepdim=True), x)

    def _suit(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Brightness and contrast around those of the domain; half of the crops are inverted."""
        bright, strong, side = torch.randn(3, len(x), 1, 1, 1, generator=generator, device=x.device)
        sign = torch.where(side < 0, -1.0, 1.0)
        middle, deviation = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
        if not self.domain.is_measured:
            return (0.5 + sign * (x - 0.5)).clamp(0, 1)
        statistics = self.domain.mean, self.domain.std
        mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in statistics)
        factor = (math.log(self.options.contrast) * strong.clamp(-2, 2) / 2).exp()
        white = sign * (x - middle) / deviation.clamp(min=1e-3)
        return (mean + std * (bright / 2 + factor * white)).clamp(0, 1)


@lru_cache(maxsize=1)
def load_photographs() -> tuple[Tensor, ...]:
    """scikit-learn's sample images, a temple and a flower, in [0, 1] with shape `(3, H, W)`."""
    from sklearn.datasets import load_sample_images

    return tuple(
        torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        for image in load_sample_images().images
    )


def _pyramid(image: Tensor, side: int) -> list[Tensor]:
    """The image and its halvings, as long as an input fits into them."""
    levels = [image]
    while min(levels[-1].shape[1:]) >= 2 * side:
        levels.append(F.avg_pool2d(levels[-1].unsqueeze(0), 2)[0])
    return levels
