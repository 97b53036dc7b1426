"""Dead leaves: random shapes with edges that cover each other, which know nothing of the teacher.

No image of the real world is in them, and yet they have what 1/f noise lacks: edges, flat regions
and shapes of every size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval
from scipy import stats
from torch import Tensor

from ..config import NonNegative, Probability
from ..data.datasets import LabelledData
from ..domain import Domain
from ..flows.bases import SpectralBase
from ..teachers.classifier import Classifier, Teacher
from ..training import Checkpoints
from .noise import Noise, NoiseOptions

CHUNK = 256  # images that are painted together: what fits a core's cache
FINE = 65_536  # grey levels are multiples of one over this
LEVELS = 1024  # of the table from which grey levels are drawn
BLURS = 8  # different widths of the blur
COLOUR = 0.9  # the correlation of a leaf's channels, which are alike in natural images
STRETCH = 3.0  # the largest ratio of a leaf's sides
KINDS = 4  # discs, rectangles, triangles and rings
RING = 0.6  # the inner radius of a ring


@dataclass(frozen=True)
class LeavesOptions(NoiseOptions):
    """What there is to choose about dead leaves; results hardly depend on it.

    Arguments:
        most: The most leaves in an image; their number is log-uniform from 1.
        textured: The share of leaves that have a texture.
        texture: The largest contrast of a texture, in units of the domain's standard deviation.
        blur: The largest standard deviation of an image's blur, in pixels.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = "leaves"
    most: Annotated[int, Interval(ge=1, le=255)] = 48
    textured: Probability = 0.5
    texture: NonNegative = 1.0
    blur: NonNegative = 1.0


class Leaves(Noise):
    r"""Dead leaves, labelled by the teacher, see :class:`DeadLeaves`.

    References:
        | Occlusion Models for Natural Images: A Statistical Study of a Scale-Invariant Dead Leaves
        | Model (Lee, Mumford and Huang, 2001), https://doi.org/10.1023/A:1011109015675
        | Learning to See by Looking at Noise (Baradad et al., 2021)
        | https://arxiv.org/abs/2106.05963
    """

    name = "leaves"
    family = "dead leaves"
    needs_images = True
    Options = LeavesOptions

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        super().fit(teacher, samples, checkpoints, generator, student)
        self.painter = self._painter(teacher.domain)

    def _painter(self, domain: Domain) -> DeadLeaves:
        return DeadLeaves(domain, self.options, self.device)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.painter(n, generator)


class DeadLeaves:
    r"""Paints dead leaves of a domain's size, channels, mean and standard deviation.

    Leaf after leaf covers what is below it. Half of the sizes have the density :math:`r^{-3}`, with
    which images look alike at every scale (Lee et al.), and half are uniform, from a pixel to the
    shorter side of the image; discs, rectangles, triangles and rings, stretched and turned at
    random. Grey levels have the Beta law of the domain's mean and standard deviation, channel by
    channel; a leaf's channels are correlated. Some leaves show a texture, 1/f noise that all
    textured leaves of an image share, each with a contrast and sign of its own. At last the image
    is blurred and clipped to [0, 1].

    Where a domain's statistics were not measured (no pixels in [0, 1] have them) grey levels are
    uniform. Baradad et al. take colours and sizes from natural images; nothing here does.

    Arguments:
        domain: The domain of images.
        options: What there is to choose.
        device: Where images are painted.

    Raises:
        ValueError: If the domain is not one of images.

    Example:
        >>> paint = DeadLeaves(Domain((3, 8, 12), 2, (0.4,), (0.2,)))
        >>> paint(5, torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3, 8, 12])
    """

    def __init__(
        self,
        domain: Domain,
        options: LeavesOptions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not domain.is_image:
            raise ValueError(f"Expected a domain of images; got one of vectors {domain.shape}.")
        self.options, self.shape, self.device = options or LeavesOptions(), domain.shape, device
        self.levels, self.contrast = (t.to(device) for t in grey_levels(domain))
        self.grid = _grid(*domain.shape[1:]).to(device)
        self.blurs = [_blurs(n, self.options.blur).to(device) for n in domain.shape[1:]]
        self.base = SpectralBase(domain.shape).to(device)

    @torch.no_grad()
    def __call__(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Images with shape `(n, *shape)`, pixels in [0, 1]."""
        parts = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
        return torch.cat([self._paint(count, generator) for count in parts])

    def _paint(self, n: int, generator: torch.Generator | None) -> Tensor:
        counts = self._uniform(generator, n).mul(math.log(self.options.most + 1)).exp().long()
        counts, order = counts.sort(descending=True)  # so that a layer's images are the first ones
        leaves = int(counts[0])
        tops = self._cover(counts.tolist(), leaves, generator)
        x = self._colours(n, leaves + 1, generator).gather(2, tops.expand(-1, self.shape[0], -1))
        strength = self._strengths(n, leaves + 1, generator).gather(2, tops)
        x = x + strength * self._texture(n, generator)
        x = self._blur(x.view(n, *self.shape), generator).clamp_(0, 1)
        painted = torch.empty_like(x)
        painted[order] = x
        return painted

    def _cover(self, counts: list[int], leaves: int, generator: torch.Generator | None) -> Tensor:
        """The number of the topmost leaf at each pixel, `(N, 1, H W)`; 0 is the ground."""
        frames = self._frames(len(counts), leaves, generator)
        turns = torch.randint(KINDS, (leaves,), generator=generator, device=self.device).tolist()
        tops = torch.zeros(len(counts), self.grid.shape[1], dtype=torch.uint8, device=self.device)
        alive = len(counts)
        for leaf in range(leaves):
            while counts[alive - 1] <= leaf:
                alive -= 1
            for kind in range(KINDS):
                rows = slice((kind - turns[leaf]) % KINDS, alive, KINDS)
                frame = frames[rows, leaf].flatten(0, 1) @ self.grid  # one product: bmm is slower
                tops[rows].masked_fill_(
                    is_inside(kind, *frame.view(-1, 2, tops.shape[1]).unbind(1)), leaf + 1
                )
        return tops.long().unsqueeze(1)

    def _frames(self, n: int, leaves: int, generator: torch.Generator | None) -> Tensor:
        """Maps from pixels (x, y, 1) to each leaf's own coordinates, `(N, leaves, 2, 3)`."""
        reach = self.grid[:2].amax(1)  # 1 for the shorter side
        smallest = 2.0 / min(self.shape[1:])
        chance, size, stretch, angle, across, down = self._uniform(generator, 6, n, leaves)
        by_law = (1 / smallest**2 + size * (1 - 1 / smallest**2)).rsqrt()
        radius = torch.where(chance < 0.5, by_law, smallest + size * (1 - smallest))
        ratio = (math.log(STRETCH) * (stretch - 0.5)).exp()
        across, down = (2 * across - 1) * reach[0], (2 * down - 1) * reach[1]
        return self._maps(radius, ratio, 2 * math.pi * angle, across, down)

    @staticmethod
    def _maps(radius: Tensor, ratio: Tensor, turn: Tensor, across: Tensor, down: Tensor) -> Tensor:
        """The maps of shapes of a radius, ratio of sides, angle and centre, all of one shape."""
        cos, sin = turn.cos() / radius, turn.sin() / radius
        along = [cos * ratio, sin * ratio, -(cos * across + sin * down) * ratio]
        beside = [-sin / ratio, cos / ratio, (sin * across - cos * down) / ratio]
        return torch.stack([torch.stack(along, -1), torch.stack(beside, -1)], -2)

    def _colours(self, n: int, count: int, generator: torch.Generator | None) -> Tensor:
        """Grey levels by channel, `(N, C, count)`."""
        channels = self.shape[0]
        shared = self._normal(generator, n, 1, count)
        own = self._normal(generator, n, channels, count) if channels > 1 else shared
        mixed = math.sqrt(COLOUR) * shared + math.sqrt(1 - COLOUR) * own if channels > 1 else shared
        rank = (torch.special.ndtr(mixed) * LEVELS).long().clamp_(0, LEVELS - 1)
        return self.levels.expand(n, -1, -1).gather(2, rank)

    def _strengths(self, n: int, count: int, generator: torch.Generator | None) -> Tensor:
        """The contrast of each leaf's texture, with a sign, `(N, 1, count)`."""
        chance, size = self._uniform(generator, 2, n, 1, count)
        shown = self.options.texture * self.contrast * (2 * size - 1)
        return torch.where(chance < self.options.textured, shown, 0.0)

    def _texture(self, n: int, generator: torch.Generator | None) -> Tensor:
        """1/f noise of mean 0 and standard deviation 1 in each image, `(N, C, H W)`."""
        z = self.base.sample(n, generator=generator).flatten(1)
        z = z - z.mean(1, keepdim=True)
        z = z / z.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
        return z.view(n, self.shape[0], -1)

    def _blur(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Blurs every eighth image alike; products of whole batches beat one for each image."""
        if not self.options.blur:
            return x
        first = int(torch.randint(BLURS, (), generator=generator, device=self.device))
        for width in range(BLURS):
            rows = slice((width - first) % BLURS, None, BLURS)
            down = (x[rows].mT.contiguous() @ self.blurs[0][width].T).mT.contiguous()
            x[rows] = down @ self.blurs[1][width].T
        return x

    def _uniform(self, generator: torch.Generator | None, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=self.device)

    def _normal(self, generator: torch.Generator | None, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=self.device)


def is_inside(kind: int, u: Tensor, v: Tensor) -> Tensor:
    """Which pixels a leaf covers, `(B, P)`, from its own coordinates u and v, `(B, P)`."""
    if kind == 1:
        return torch.maximum(u.abs(), v.abs()) < 1
    if kind == 2:  # the lower edge, and two that meet above it
        return torch.maximum(2 * u.abs() + v, -v) < 1
    distance = u.square().addcmul_(v, v)
    if kind == 0:
        return distance < 1
    middle, half = (1 + RING**2) / 2, (1 - RING**2) / 2
    return distance.sub_(middle).abs_() < half


def grey_levels(domain: Domain) -> tuple[Tensor, Tensor]:
    """The quantiles of a domain's grey levels by channel, `(1, C, LEVELS)`, and their deviation.

    They are those of the Beta law of the domain's mean and standard deviation, or uniform where
    no pixels in [0, 1] have these.
    """
    channels, rank = domain.shape[0], (np.arange(LEVELS) + 0.5) / LEVELS
    means, stds = (np.broadcast_to(v, channels) for v in (domain.mean, domain.std))
    rows = []
    for mean, std in zip(means, stds, strict=True):
        spread = mean * (1 - mean) / std**2 - 1  # a + b of the Beta law
        law = stats.beta(mean * spread, (1 - mean) * spread)
        rows.append(law.ppf(rank) if domain.is_measured else rank)
    levels = torch.from_numpy(np.stack(rows)).nan_to_num(0.5).clamp(0, 1)
    levels = levels.mul(FINE).round().div(FINE).float()  # numbers near 1e-40 would be slow
    return levels.unsqueeze(0), levels.std(1).mean()


def _grid(height: int, width: int) -> Tensor:
    """The pixels' centres (x, y, 1), `(3, H W)`; the shorter side runs from -1 to 1."""
    shorter = min(height, width)
    y, x = ((2 * torch.arange(n) + 1 - n) / shorter for n in (height, width))
    return torch.stack(
        [*(t.flatten() for t in torch.meshgrid(x, y, indexing="xy")), torch.ones(height * width)]
    )


def _blurs(size: int, most: float) -> Tensor:
    """Matrices that blur along one side by 0 to `most` pixels, `(BLURS, size, size)`."""
    apart = torch.arange(size, dtype=torch.float32)
    apart = (apart[:, None] - apart).square()
    widths = torch.linspace(0, most, BLURS).clamp(min=1e-2)
    return F.threshold(torch.softmax(-apart / (2 * widths[:, None, None].square()), 2), 1e-6, 0.0)
