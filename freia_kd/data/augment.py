"""Many inputs of few: real images turned, stretched, bent and mixed, for the teacher to answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import send
from ..domain import Domain

AT_ONCE = 1_024  # images that are bent together, which bounds memory
KNOTS = 4  # points a side at which elastic displacements are drawn
UNNATURAL = ("svhn", "digit", "mnist")  # names of domains of signs, which a mirror changes


@dataclass(frozen=True)
class Augmentation:
    r"""Random changes of inputs, so strong that a handful of images teaches a student.

    Every image is mirrored (if `flip`), mapped by a random affine map and an elastic displacement
    (Simard et al., 2003) in one bilinear interpolation, and changed in colour (if `colour`). Then a
    share `mixing` of the images is mixed with another of the batch, a third of them each way: by
    mixup, by CutMix and by the pixelwise maximum. Vectors get Gaussian noise, and mixup.

    Mixed images have no class of their own: leave `mixing` at 0 where labels count.

    Arguments:
        rotation: The largest angle, in degrees.
        scale: The largest change of size, a share.
        shear: The largest shear, a share of the size.
        shift: The largest shift each way, a share of the size.
        elastic: The largest standard deviation of elastic displacements, a share of the size.
        flip: Whether half of the images are mirrored, left and right.
        colour: The largest change of brightness, contrast and saturation, a share.
        mixing: The share of images that are mixed with another.
        noise: The standard deviation of the noise of vectors, in units of the domain's.

    Raises:
        ValueError: If a value makes no sense.

    References:
        | mixup: Beyond Empirical Risk Minimization (Zhang et al., 2018)
        | https://arxiv.org/abs/1710.09412
        | CutMix (Yun et al., 2019), https://arxiv.org/abs/1905.04899
        | Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis
        | (Simard et al., 2003), https://doi.org/10.1109/ICDAR.2003.1227801

    Example:
        >>> change = Augmentation()
        >>> change(torch.rand(4, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 8, 8])
    """

    rotation: float = 20.0
    scale: float = 0.25
    shear: float = 0.25
    shift: float = 0.12
    elastic: float = 0.04
    flip: bool = False
    colour: float = 0.0
    mixing: float = 0.5
    noise: float = 0.1

    def __post_init__(self) -> None:
        sizes = {k: v for k, v in vars(self).items() if k not in ("flip", "mixing")}
        for name, value in sizes.items():
            if not value >= 0:
                raise ValueError(f"Expected {name} of at least 0; got {value}.")
        for name in ("mixing", "scale", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Expected {name} in [0, 1]; got {getattr(self, name)}.")

    @classmethod
    def for_domain(
        cls, domain: Domain, natural: bool | None = None, **options: Any
    ) -> Augmentation:
        """What suits a domain: flips and colours change for natural images only.

        Images of three channels count as natural unless the domain's name says that they show
        digits (SVHN, MNIST in colours). A mirrored digit is another sign or none; grey images have
        no colours, and a change of their contrast may make what no training image was.

        Arguments:
            domain: The domain.
            natural: Whether its images are natural ones, where that is known better than by these
                signs, as of traffic signs.
            options: What differs.
        """
        if natural is None:
            natural = domain.is_image and domain.shape[0] == 3
            natural = natural and not any(name in domain.name.lower() for name in UNNATURAL)
        usual: dict[str, Any] = {"flip": True, "colour": 0.3} if natural else {}
        return cls(**{**usual, **options})

    def without_mixing(self) -> Augmentation:
        """The same for inputs whose labels are to stay theirs."""
        return replace(self, mixing=0.0)

    def __call__(
        self, x: Tensor, generator: torch.Generator | None = None, domain: Domain | None = None
    ) -> Tensor:
        """Changes every input of a batch.

        Arguments:
            x: Images in [0, 1] with shape `(B, C, H, W)`, or vectors `(B, D)`.
            generator: The source of all random numbers, on the device of `x`.
            domain: The domain, for the units of vectors.

        Returns:
            Inputs of the same shape.
        """
        if x.ndim == 4:
            changed = torch.cat([self._bend(part, generator) for part in x.split(AT_ONCE)])
            changed = self._recolour(changed, generator).clamp(0, 1)
        else:
            noise = torch.randn(x.shape, generator=generator, device=x.device)
            scale = 1.0 if domain is None else send(torch.tensor(domain.std), x.device)
            changed = x + self.noise * scale * noise
        return self._mix(changed, generator)

    def _bend(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        maps = self._maps(len(x), generator, x.device)
        grid = F.affine_grid(maps, list(x.shape), align_corners=False)
        if self.elastic:
            knots = torch.randn(len(x), 2, KNOTS, KNOTS, generator=generator, device=x.device)
            size = 2 * self.elastic * _uniform(len(x), generator, x.device)
            bend = F.interpolate(knots, x.shape[2:], mode="bicubic", align_corners=True)
            grid = grid + size.view(-1, 1, 1, 1) * bend.permute(0, 2, 3, 1)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _maps(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Affine maps of the coordinates in [-1, 1], `(n, 2, 3)`."""
        turn, wide, high, lean, right, down, side = (
            2 * _uniform(7 * n, generator, device).view(7, n) - 1
        )
        angle = math.radians(self.rotation) * turn
        width, height = 1 + self.scale * wide, 1 + self.scale * high
        mirror = torch.where(side < 0, -1.0, 1.0) if self.flip else torch.ones_like(side)
        cos, sin, lean = angle.cos(), angle.sin(), self.shear * lean
        rows = [
            torch.stack([mirror * width * cos, height * (lean * cos - sin)], 1),
            torch.stack([mirror * width * sin, height * (lean * sin + cos)], 1),
        ]
        shift = 2 * self.shift * torch.stack([right, down], 1)
        return torch.cat([torch.stack(rows, 1), shift.unsqueeze(2)], 2)

    def _recolour(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.colour:
            return x
        shares = self.colour * (
            2 * _uniform(3 * len(x), generator, x.device).view(3, -1, 1, 1, 1) - 1
        )
        brightness, contrast, saturation = 1 + shares
        grey = x.mean(1, keepdim=True)
        x = grey + saturation * (x - grey)
        middle = grey.mean((2, 3), keepdim=True)
        return brightness * (middle + contrast * (x - middle))

    def _mix(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Mixes a share of the batch with the batch in another order."""
        if not self.mixing or len(x) < 2:
            return x
        other = x[torch.randperm(len(x), generator=generator, device=x.device)]
        kind = _uniform(len(x), generator, x.device) / self.mixing
        share = _uniform(len(x), generator, x.device).view(-1, *(1,) * (x.ndim - 1))
        blended = share * x + (1 - share) * other
        if x.ndim == 2:
            return torch.where(kind.view(-1, 1) < 1, blended, x)
        patch = self._patches(x, generator)
        kind = kind.view(-1, 1, 1, 1)
        mixed = torch.where(kind < 1 / 3, blended, torch.where(patch, other, x))
        mixed = torch.where(kind < 2 / 3, mixed, torch.maximum(x, other))
        return torch.where(kind < 1, mixed, x)

    def _patches(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Random rectangles of a uniform share of the area, `(B, 1, H, W)`."""
        area, row, column = _uniform(3 * len(x), generator, x.device).view(3, -1, 1, 1, 1)
        inside = []
        for centre, size, dim in ((row, x.shape[2], 2), (column, x.shape[3], 3)):
            at = (torch.arange(size, device=x.device) + 0.5) / size
            view = [1, 1, 1, 1]
            view[dim] = size
            inside.append((at.view(view) - centre).abs() < area.sqrt() / 2)
        return inside[0] & inside[1]


def _uniform(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.rand(n, generator=generator, device=device)
