r"""Priors over inputs: :math:`\log p_X(x)` of eq. (1), which teachers without statistics need.

A prior is called as `prior(flow, u, x, ladj)` with the unbounded values `u`, the inputs `x`, both
with shape `(B, *shape)`, and the squash's :math:`\log|\det \partial x/\partial u|`, `(B,)`.
It returns :math:`\log p_X(x)` in nats with shape `(B,)`, up to a constant where it says so: larger
is likelier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..flows.bases import Base, dct_matrix
from ..flows.contract import ConditionalFlow


class Prior(Protocol):
    """A log-density over inputs."""

    def __call__(self, flow: ConditionalFlow, u: Tensor, x: Tensor, ladj: Tensor) -> Tensor:
        r""":math:`\log p_X(x)` with shape `(B,)`, in nats."""


@dataclass(frozen=True)
class BasePrior:
    r"""A base density over unbounded values, pushed through the flow's own squash.

    .. math:: \log p_X(x) = \log p_0(u) - \log|\det \partial x / \partial u|

    An exact, normalised density over inputs. It is evaluated at `u`, because saturated pixels
    lose `u` in float32. With the flow's own base this makes the objective a divergence to what
    an untrained flow (the identity) would sample, see :class:`~freia_kd.objectives.Exact`.

    Arguments:
        base: The density over unbounded values, or `None` for the flow's own base.
    """

    base: Base | None = None

    def __call__(self, flow: ConditionalFlow, u: Tensor, x: Tensor, ladj: Tensor) -> Tensor:
        base = flow.base if self.base is None else self.base
        return base.log_prob(u) - ladj


@dataclass(frozen=True)
class GaussianPrior:
    r"""A Gaussian around 0 over vectors, :math:`\mathcal{N}(0, \mathrm{std}^2 I)`, normalised.

    The paper's toy code subtracts :math:`0.01\,\|x\|^2` from its objective, which is this prior
    with a standard deviation of 7.07 (relative to a log-determinant of weight 1).

    Arguments:
        std: The standard deviation of each entry of `x`.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"Expected a positive std; got {self.std}.")

    def __call__(self, flow: ConditionalFlow, u: Tensor, x: Tensor, ladj: Tensor) -> Tensor:
        scale = x.new_full((), self.std)
        return (
            torch.distributions.Normal(0.0, scale, validate_args=False)
            .log_prob(x)
            .flatten(1)
            .sum(1)
        )


@dataclass(frozen=True)
class TotalVariation:
    r"""Smoothness: :math:`\log p_X(x) = -w \sum |\nabla x|`, unnormalised.

    The sum of absolute differences of horizontal and vertical neighbours (anisotropic total
    variation, a Laplace density on differences), over all pixels and channels.

    Arguments:
        weight: The rate `w` of the Laplace density, in nats per unit of pixel difference.

    References:
        | Nonlinear total variation based noise removal algorithms (Rudin et al., 1992)
    """

    weight: float = 1.0

    def __call__(self, flow: ConditionalFlow, u: Tensor, x: Tensor, ladj: Tensor) -> Tensor:
        _expect_images(x)
        rows = x.diff(dim=2).abs().flatten(1).sum(1)
        columns = x.diff(dim=3).abs().flatten(1).sum(1)
        return -self.weight * (rows + columns)


@dataclass(frozen=True)
class SpectralPrior:
    r"""A power spectrum of :math:`1/f^b`: a Gaussian in the DCT domain of pixels, unnormalised.

    .. math:: \log p_X(x) = -\frac{1}{2} \sum_{c, f > 0} \frac{y_{cf}^2}{s^2 \Lambda_f}
              \quad\text{with}\quad y = \mathrm{DCT}(x),\ \Lambda_f \propto f^{-b}

    scaled so that the pixels of a typical image have the standard deviation s around their mean.
    The mean itself (f = 0) is free. Other than :class:`BasePrior` of a spectral base it looks at
    pixels, so that it also fits flows whose unbounded values mean something else.

    Arguments:
        exponent: The exponent b of the power spectrum.
        std: The standard deviation s of a typical image's pixels.

    References:
        | Modelling the power spectra of natural images (van der Schaaf and van Hateren, 1996)
    """

    exponent: float = 2.0
    std: float = 0.3

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"Expected a positive std; got {self.std}.")

    def __call__(self, flow: ConditionalFlow, u: Tensor, x: Tensor, ladj: Tensor) -> Tensor:
        _expect_images(x)
        height, width = x.shape[2:]
        rows, columns = (dct_matrix(n).to(x) for n in (height, width))
        power = (rows @ x @ columns.T).square()
        return -0.5 * (power * self._precision(height, width).to(x)).flatten(1).sum(1)

    def _precision(self, height: int, width: int) -> Tensor:
        rows = torch.arange(height, dtype=torch.float64)[:, None] / height
        columns = torch.arange(width, dtype=torch.float64)[None, :] / width
        frequency = (rows.square() + columns.square()).sqrt()
        frequency[0, 0] = torch.inf  # the mean has no power, and is left free below
        power = frequency.pow(-self.exponent)
        variance = power * (self.std**2 * height * width / power.sum())
        variance[0, 0] = torch.inf
        return 1 / variance


def _expect_images(x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(
            f"Expected images with shape (B, C, H, W); got {tuple(x.shape)}. "
            "Use BasePrior or GaussianPrior for vectors."
        )
