"""Figures on a ground: one object in an image, as most classifiers see the world."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import Count, Probability
from ..domain import Domain
from ..flows.bases import SpectralBase
from .leaves import KINDS, DeadLeaves, Leaves, LeavesOptions, is_inside

SMALLEST, LARGEST = 0.08, 0.68  # radii of a figure's shapes; the shorter side of the image is 2
REACH = 0.6  # how far from the middle their centres lie
UPRIGHT = 0.4  # the share of shapes that are not turned
STRETCH = 5.0  # the largest ratio of a shape's sides
HOLE = 0.15  # the share of shapes, after the first, that are cut out
BOWL = 3.0  # how steeply a blob's level falls outside, in its deviations


@dataclass(frozen=True)
class FiguresOptions(LeavesOptions):
    """What there is to choose about figures, beside the leaves that half of them are filled with.

    Arguments:
        shapes: The most shapes that make up a figure; their number is log-uniform from 1.
        mirrored: The share of figures whose left and right halves mirror each other.
        blobs: The share of figures that are blobs, not joined shapes.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = "figures"
    shapes: Count = 8
    mirrored: Probability = 0.5
    blobs: Probability = 0.3


class Figures(Leaves):
    r"""Figures on a ground, labelled by the teacher, see :class:`FigureOnGround`.

    Dead leaves fill an image from side to side, while most of what classifiers are trained on shows
    one object before something plain. Half leaves and half figures teach a LeNet5's smallest
    student of Fashion-MNIST more than either (`benchmarks/results/recovery-development.md`).
    Shapes joined at random are after the abstract shapes of Kataoka et al.; the mirror and the
    filling are ours.

    References:
        | Replacing Labeled Real-image Datasets with Auto-generated Contours (Kataoka et al., 2022)
        | https://arxiv.org/abs/2206.09132
        | Learning to See by Looking at Noise (Baradad et al., 2021)
        | https://arxiv.org/abs/2106.05963
    """

    name = "figures"
    family = "figures on a ground"
    Options = FiguresOptions

    def _painter(self, domain: Domain) -> FigureOnGround:
        return FigureOnGround(domain, self.options, self.device)


class FigureOnGround(DeadLeaves):
    r"""Paints one figure on a flat ground.

    A figure is a union of discs, rectangles, triangles and rings around the middle, some of which
    are cut out again, or a blob: where 1/f noise, less a bowl around the middle, is positive. Half
    of the figures are mirrored, left to right. Half are filled with dead leaves, half with one
    level and a texture of random contrast. Levels are those of :class:`DeadLeaves`.

    Arguments:
        domain: The domain of images.
        options: What there is to choose.
        device: Where images are painted.

    Raises:
        ValueError: If the domain is not one of images.
    """

    options: FiguresOptions

    def __init__(
        self,
        domain: Domain,
        options: FiguresOptions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(domain, options or FiguresOptions(), device)
        self.noise = SpectralBase((1, *domain.shape[1:])).to(device)

    def _paint(self, n: int, generator: torch.Generator | None) -> Tensor:
        inside, levels = self._figures(n, generator), self._colours(n, 2, generator)
        strength = self.contrast * self._uniform(generator, n, 1, 1)
        filled = levels[:, :, :1] + strength * self._texture(n, generator)
        of_leaves = torch.nonzero(self._uniform(generator, n) < 0.5).flatten()
        if len(of_leaves):
            filled[of_leaves] = super()._paint(len(of_leaves), generator).flatten(2)
        x = torch.where(inside, filled, levels[:, :, 1:])
        return self._blur(x.view(n, *self.shape), generator).clamp_(0, 1)

    def _figures(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Which pixels are the figure's, `(N, 1, H W)`."""
        blobs = round(n * self.options.blobs)
        kinds = ((self._blobs, blobs), (self._unions, n - blobs))
        return torch.cat([draw(m, generator) for draw, m in kinds if m]).unsqueeze(1)

    def _unions(self, n: int, generator: torch.Generator | None) -> Tensor:
        most = self.options.shapes
        frames, mirrored = self._shapes(n, most, generator)
        counts = self._uniform(generator, n).mul(math.log(most + 1)).exp().long()
        kinds = torch.randint(KINDS, (n, most), generator=generator, device=self.device)
        is_hole = self._uniform(generator, n, most) < HOLE
        found = torch.zeros(n, self.grid.shape[1], dtype=torch.bool, device=self.device)
        flipped = self.grid * torch.tensor([[-1.0], [1.0], [1.0]], device=self.device)
        for shape in range(most):
            for kind in range(KINDS):
                rows = torch.nonzero((counts > shape) & (kinds[:, shape] == kind)).flatten()
                frame = frames[rows, shape]
                covered = is_inside(kind, *(frame @ self.grid).unbind(1))
                covered |= is_inside(kind, *(frame @ flipped).unbind(1)) & mirrored[rows]
                cut = is_hole[rows, shape, None] & (shape > 0)
                found[rows] = (found[rows] | covered) & ~(covered & cut)
        return found

    def _shapes(
        self, n: int, most: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Maps to each shape's own coordinates, `(N, shapes, 2, 3)`, and who is mirrored."""
        size, upright, angle, stretch, across, down = self._uniform(generator, 6, n, most)
        radius = SMALLEST + (LARGEST - SMALLEST) * size**1.5
        turn = torch.where(upright < UPRIGHT, 0.0, 2 * math.pi * angle)
        ratio = (math.log(STRETCH) * (stretch - 0.5)).exp()
        mirrored = self._uniform(generator, n, 1) < self.options.mirrored
        across, down = REACH * (2 * across - 1), REACH * (2 * down - 1)
        return self._maps(radius, ratio, turn, across, down), mirrored

    def _blobs(self, n: int, generator: torch.Generator | None) -> Tensor:
        level = self.noise.sample(n, generator=generator).view(n, *self.shape[1:])
        mirrored = self._uniform(generator, n, 1, 1) < self.options.mirrored
        level = torch.where(mirrored, (level + level.flip(2)) / math.sqrt(2), level).flatten(1)
        level = level - level.mean(1, keepdim=True)
        level = level / level.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
        steepness, size = self._uniform(generator, 2, n, 1)
        away = self.grid[:2].square().sum(0)
        return level > BOWL * (0.3 + steepness) * (away - 0.3 - 0.5 * size)
