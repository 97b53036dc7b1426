r"""From unbounded values to pixels and back, elementwise: FrEIA modules that end an image flow.

Forward is from pixels `x` to unbounded values `u`. Each has `support`, the interval its pixels
cover, so that a flow can refuse what lies outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Block, Dims, Output

Squash = Literal["auto", "logit", "tailed", "shrunk", "linear"] | nn.Module | None
"""What ends a flow over images: see :func:`make_squash`."""


class Elementwise(Block):
    """What the squashes share: a map of single values, and the sum of its log-derivatives."""

    support: tuple[float, float] = (0.0, 1.0)

    def to_pixels(self, u: Tensor) -> Tensor:
        """Unbounded values to pixels."""
        raise NotImplementedError

    def from_pixels(self, x: Tensor) -> Tensor:
        """Pixels to unbounded values."""
        raise NotImplementedError

    def log_slope(self, u: Tensor) -> Tensor:
        r""":math:`\log \partial x/\partial u`, elementwise."""
        raise NotImplementedError

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        (value,) = x_or_z
        u = value if rev else self.from_pixels(value)
        ladj = self.log_slope(u).flatten(1).sum(1)
        return ((self.to_pixels(u),), ladj) if rev else ((u,), -ladj)


class BoundedLogit(Elementwise):
    r"""Pixels in [0, 1] to unbounded values: a logit, whose ends may be bent to heavier tails.

    .. math:: x = \sigma(u), \qquad \text{or for } |u| > t \quad
              \min(x, 1 - x) = \frac{\epsilon}{1 + (1 - \epsilon)(|u| - t)},
              \quad \epsilon = \sigma(-t)

    Forward is `x` to `u` with :math:`\log|\det \partial u/\partial x| = -\sum_i \log x'(u_i)`,
    where :math:`\log x'(u) = -\mathrm{softplus}(u) - \mathrm{softplus}(-u)` within the tails;
    reverse has the opposite sign. The map and its slope are continuous, all values and gradients
    are finite, and :math:`x` is always within [0, 1].

    Why tails: float32 holds :math:`1 - x` to 6e-8, so that a sigmoid forgets values beyond 10 or
    so. A base that reaches further (:class:`~freia_kd.flows.bases.SpectralBase`, to 100) needs
    an end that falls off as :math:`1/u` to be exact on its own samples. Dense values at the very
    ends (dequantised images, see :func:`~freia_kd.flows.density.dequantize`) suit a logit better.

    No continuous bijection from the real line reaches 0 and 1: forward reads exactly black and
    white pixels as if they were :math:`\alpha` inside, and is exact for all others.

    Arguments:
        dims_in: The shape of the input, as a list with one entry.
        alpha: Where exactly black and white pixels are; a quarter of an 8-bit level by default.
        tail: The value `t` from which on the tails are heavy; `None` for a logit.

    Example:
        >>> block = BoundedLogit([(1,)])
        >>> (u,), ladj = block([torch.tensor([[0.0], [0.5], [1.0]])])
        >>> u.flatten().round(decimals=2).tolist()
        [-6.9..., 0.0, 6.9...]
    """

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims | None = None,
        *,
        alpha: float = 1e-3,
        tail: float | None = None,
    ) -> None:
        super().__init__(dims_in, dims_c)
        if not 0 < alpha < 0.5:
            raise ValueError(f"Expected 0 < alpha < 0.5; got {alpha}.")
        if tail is not None and not 0 < tail < 10:
            raise ValueError(f"Expected a tail from 0 to 10, or None; got {tail}.")
        self.alpha = alpha
        self.tail = tail
        self.end = 1 / (1 + math.exp(tail)) if tail is not None else 0.0  # epsilon

    def _beyond(self, u: Tensor) -> Tensor:
        r""":math:`1 + (1 - \epsilon)(|u| - t)` in the tails, 1 elsewhere."""
        return 1 + (1 - self.end) * (u.abs() - (self.tail or 0.0)).clamp(min=0)

    def to_pixels(self, u: Tensor) -> Tensor:
        if self.tail is None:
            return torch.sigmoid(u)
        inner = torch.sigmoid(u.clamp(-self.tail, self.tail))
        outer = self.end / self._beyond(u)
        outer = torch.where(u < 0, outer, 1 - outer)
        return torch.where(u.abs() < self.tail, inner, outer)

    def log_slope(self, u: Tensor) -> Tensor:
        if self.tail is None:
            return -F.softplus(u) - F.softplus(-u)
        inner = u.clamp(-self.tail, self.tail)  # whose slope is that at the end, in the tails
        return -F.softplus(inner) - F.softplus(-inner) - 2 * self._beyond(u).log()

    def from_pixels(self, x: Tensor) -> Tensor:
        least = torch.minimum(x, 1 - x)
        least = torch.where(least > 0, least, torch.full_like(least, self.alpha))
        info = torch.finfo(x.dtype)
        if self.tail is None:
            size = torch.log1p(-least) - least.clamp(min=info.tiny).log()
        else:
            middle = least.clamp(min=self.end)
            outer = (self.end / least.clamp(min=info.eps) - 1).clamp(min=0) / (1 - self.end)
            size = torch.log1p(-middle) - middle.log() + outer
        return torch.where(x < 0.5, -size, size)


class ShrunkLogit(Elementwise):
    r"""The logit of density estimation, :math:`u = \mathrm{logit}(\alpha + (1 - 2\alpha) x)`.

    Forward is `x` to `u`; its log-determinant is :math:`\sum_i \log(1 - 2\alpha) +
    \mathrm{softplus}(u_i) + \mathrm{softplus}(-u_i)`, that of reverse the negative. It bends dark
    and bright pixels less than a logit, so that a flow has less to unbend. The price is its
    support, :math:`[-\alpha, 1 + \alpha] / (1 - 2\alpha)` about the middle: samples may leave
    [0, 1] by 5.6 % (clip them to look at them).

    Arguments:
        dims_in: The shape of the input, as a list with one entry.
        alpha: How much is left at both ends.

    References:
        | Density estimation using Real NVP (Dinh et al., 2017), section 4.1
    """

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None, *, alpha: float = 0.05) -> None:
        super().__init__(dims_in, dims_c)
        if not 0 < alpha < 0.5:
            raise ValueError(f"Expected 0 < alpha < 0.5; got {alpha}.")
        self.alpha = alpha
        self.support = (-alpha / (1 - 2 * alpha), 1 + alpha / (1 - 2 * alpha))

    def to_pixels(self, u: Tensor) -> Tensor:
        return (torch.sigmoid(u) - self.alpha) / (1 - 2 * self.alpha)

    def log_slope(self, u: Tensor) -> Tensor:
        return -F.softplus(u) - F.softplus(-u) - math.log(1 - 2 * self.alpha)

    def from_pixels(self, x: Tensor) -> Tensor:
        tiny = torch.finfo(x.dtype).eps  # rounding at the ends of the support
        return torch.logit(self.alpha + (1 - 2 * self.alpha) * x, eps=tiny)


class Linear(Elementwise):
    r"""Pixels centred and stretched, :math:`u = (x - 1/2)\,/\,\alpha`; all real numbers are pixels.

    Forward is `x` to `u` with the log-determinant :math:`-D \log\alpha`, reverse the negative.
    What Glow does to images (Kingma and Dhariwal, 2018, in its published code). Samples may lie
    anywhere: clip them to look at them.

    Arguments:
        dims_in: The shape of the input, as a list with one entry.
        alpha: The pixel value of one unit.
    """

    support = (-math.inf, math.inf)

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None, *, alpha: float = 0.25) -> None:
        super().__init__(dims_in, dims_c)
        if not 0 < alpha < math.inf:
            raise ValueError(f"Expected a positive alpha; got {alpha}.")
        self.alpha = alpha

    def to_pixels(self, u: Tensor) -> Tensor:
        return 0.5 + self.alpha * u

    def log_slope(self, u: Tensor) -> Tensor:
        return torch.full_like(u, math.log(self.alpha))

    def from_pixels(self, x: Tensor) -> Tensor:
        return (x - 0.5) / self.alpha


def make_squash(
    squash: Squash, shape: tuple[int, ...], tail: float | None, alpha: float | None = None
) -> nn.Module | None:
    """The squash of a flow.

    Arguments:
        squash: `"auto"`: nothing for vectors, and for images `"tailed"` if the base reaches far,
            else `"logit"`; `"logit"` or `"tailed"`: :class:`BoundedLogit`; `"shrunk"`:
            :class:`ShrunkLogit`; `"linear"`: :class:`Linear`; a module of one's own; `None`.
        shape: The shape of one input.
        tail: Where the base wants its tails to begin, see :class:`~freia_kd.flows.bases.Base`.
        alpha: The `alpha` of the squash; by default its own.

    Raises:
        ValueError: If there is no such squash, or an `alpha` has nothing to act on.
    """
    if squash == "auto" and len(shape) == 3:
        squash = "logit" if tail is None else "tailed"
    elif squash == "auto":
        squash = None
    if not isinstance(squash, str):
        if alpha is not None:
            raise ValueError(f"Expected a squash by name for alpha={alpha}; got {squash!r}.")
        return squash
    options: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    if squash == "logit":
        return BoundedLogit([shape], **options)
    if squash == "tailed":
        return BoundedLogit([shape], tail=4.0 if tail is None else tail, **options)
    if squash == "shrunk":
        return ShrunkLogit([shape], **options)
    if squash == "linear":
        return Linear([shape], **options)
    raise ValueError(
        "Expected a squash 'auto', 'logit', 'tailed', 'shrunk', 'linear', a module or None; "
        f"got {squash!r}."
    )
