"""Base densities of flows: the standard Gaussian, and a spectral mixture that looks like images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logsumexp, softmax
from torch import Tensor, nn

from ..domain import Domain

CONTRASTS = tuple(np.geomspace(0.5, 12.0, 8).round(3).tolist())  # of SpectralBase


def full_precision(value: Tensor) -> AbstractContextManager[object]:
    """A region without autocast (and without a trace in exported programs, where there is none)."""
    kind = value.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class Base(nn.Module, ABC):
    """A density over latents with shape `(B, *shape)`, with exact `log_prob` and `sample`.

    `whiten` and `unwhiten` are mutually inverse fixed linear maps to coordinates in which the
    density is roughly a standard Gaussian. A flow may conjugate its layers with them
    (:math:`u = W^{-1} g(W z)`): their log-determinants cancel, and the layers work in
    coordinates of one scale. They are the identity unless a base says otherwise.

    `squash_tail` says from which value on a squash of this base to pixels needs heavy tails (see
    :class:`~freia_kd.flows.squash.BoundedLogit`): `None` for a base that stays where float32
    holds a logit.
    """

    squash_tail: ClassVar[float | None] = None

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density in nats, with shape `(B,)`."""

    @abstractmethod
    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws `n` latents; `temperature` multiplies the standard deviation of each."""

    def whiten(self, z: Tensor) -> Tensor:
        """Latents to whitened coordinates, both with shape `(B, *shape)`."""
        return z

    def unwhiten(self, w: Tensor) -> Tensor:
        """The inverse of :meth:`whiten`."""
        return w


class GaussianBase(Base):
    r"""A diagonal Gaussian, the standard one :math:`\mathcal{N}(0, I)` unless told otherwise.

    Arguments:
        shape: The shape of one latent.
        mean: The mean, one for all entries or with the shape of a latent.
        std: The standard deviation, likewise.

    Example:
        >>> GaussianBase((2,)).log_prob(torch.zeros(1, 2)).item()  # -log(2 pi)
        -1.8378...
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__(shape)
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(
                name, torch.as_tensor(value, dtype=torch.get_default_dtype()), persistent=False
            )

    @classmethod
    def for_domain(cls, domain: Domain) -> GaussianBase:
        """The standard Gaussian in the normalised units of a domain of vectors.

        Raises:
            ValueError: If the domain is one of images, whose latents are not in its units.
        """
        if domain.is_image:
            raise ValueError(f"Expected a domain of vectors; got one of images {domain.shape}.")
        means, stds = (v * domain.shape[0] if len(v) == 1 else v for v in (domain.mean, domain.std))
        return cls(domain.shape, means, stds)

    def whiten(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.std

    def unwhiten(self, w: Tensor) -> Tensor:
        return w * self.std + self.mean

    def log_prob(self, z: Tensor) -> Tensor:
        density = -0.5 * (self.whiten(z).square() + math.log(2 * math.pi)) - self.std.log()
        return density.flatten(1).sum(1)

    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        std = self.std
        white = torch.randn(n, *self.shape, generator=generator, device=std.device, dtype=std.dtype)
        return self.unwhiten(temperature * white)


def dct_matrix(n: int) -> Tensor:
    r"""The orthonormal DCT-II of length `n`, a float64 matrix with shape `(n, n)`.

    :math:`D_{kj} = \sqrt{(2 - \delta_{k0})/n}\,\cos(\pi k (j + 1/2) / n)`, so that
    :math:`D D^\top = I` and row 0 is the mean times :math:`\sqrt{n}`.
    """
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * k[:, None] * (k[None, :] + 0.5)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


class SpectralBase(Base):
    r"""A mixture of Gaussians with power spectra :math:`1/f^b`: noise that looks like images.

    Natural images have power spectra that fall off as :math:`1/f^b` with b around 2 (van der
    Schaaf and van Hateren, 1996). In the orthonormal DCT domain every component is a diagonal
    Gaussian, so the density is exact:

    .. math:: p(z) = \frac{1}{J} \sum_{j,k} w_k\, \mathcal{N}\bigl(\mathrm{DCT}(z - m_k);\,
              0,\, a_k^2\, \Lambda_{b_j}\bigr)

    :math:`\Lambda_b` gives the frequency :math:`f > 0` the variance :math:`f^{-b}`, scaled so that
    a pixel has variance 1 on average, and the constant component the variance of an offset of
    `offset` pixel standard deviations. The contrasts :math:`a_k` are spread log-uniformly. Each
    image so has a contrast and an offset of its own, integrated out of the density; that is why
    they need no latent dimensions. Colour channels are decorrelated by a DCT over channels; those
    other than grey have `chroma` times the amplitude.

    Arguments:
        shape: The shape of one latent, `(C, H, W)`.
        exponents: The exponents :math:`b_j`.
        contrasts: The standard deviations :math:`a_k` of a pixel, before the squash.
        weights: The weights :math:`w_k` of the contrasts, uniform if `None`.
        means: The means :math:`m_k` with shape `(K, C)`, zero if `None`.
        offset: The standard deviation of an image's mean, in units of the contrast.
        chroma: The relative amplitude of the colour components.

    Raises:
        ValueError: If an argument makes no sense.

    References:
        | Modelling the power spectra of natural images (van der Schaaf and van Hateren, 1996)

    A departure from the paper, whose base is a white Gaussian: this one stands for the term
    :math:`\log p_X(x)` of its eq. (1), which the paper drops for teachers without batch
    normalisation.

    Example:
        >>> base = SpectralBase((1, 8, 8))
        >>> z = base.sample(4, generator=torch.Generator().manual_seed(0))
        >>> z.shape, base.log_prob(z).shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4]))
    """

    squash_tail: ClassVar[float | None] = 4.0
    dct_channels: Tensor
    dct_rows: Tensor
    dct_columns: Tensor
    std: Tensor
    contrasts: Tensor
    weights: Tensor
    means: Tensor
    reference_std: Tensor
    reference_mean: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        exponents: Sequence[float] = (2.0, 2.5, 3.0, 3.5, 4.0),
        contrasts: Sequence[float] = CONTRASTS,
        weights: Sequence[float] | None = None,
        means: Sequence[Sequence[float]] | None = None,
        offset: float = 1.0,
        chroma: float = 0.5,
    ) -> None:
        super().__init__(shape)
        if len(self.shape) != 3:
            raise ValueError(f"Expected a shape (C, H, W); got {self.shape}.")
        if not exponents or not contrasts or min(*contrasts, offset, chroma) <= 0:
            raise ValueError("Expected exponents, and positive contrasts, offset and chroma.")
        channels, height, width = self.shape
        spectra = torch.stack([self._spectrum(b, offset, chroma) for b in exponents])
        scale = torch.tensor(contrasts, dtype=torch.float64)
        share = torch.tensor(weights or [1.0] * len(contrasts), dtype=torch.float64)
        mean = torch.tensor(means or [[0.0] * channels] * len(contrasts), dtype=torch.float64)
        if share.shape != scale.shape or mean.shape != (len(scale), channels) or share.min() < 0:
            raise ValueError(
                f"Expected {len(scale)} weights of at least 0 and means with shape "
                f"({len(scale)}, {channels}); got {tuple(share.shape)} and {tuple(mean.shape)}."
            )
        share = share / share.sum()
        reference = spectra.log().mean(0).exp() * (share * scale.log()).sum().exp().square()
        dtype = torch.get_default_dtype()
        for name, value in (
            ("dct_channels", dct_matrix(channels)),
            ("dct_rows", dct_matrix(height)),
            ("dct_columns", dct_matrix(width)),
            ("std", spectra.sqrt()),  # (J, C, H, W)
            ("contrasts", scale),  # (K,)
            ("weights", share),  # (K,)
            ("means", mean),  # (K, C)
            ("reference_std", reference.sqrt()),  # (C, H, W), geometric mean over the mixture
            ("reference_mean", share @ mean),  # (C,)
        ):
            self.register_buffer(name, value.to(dtype), persistent=False)

    @classmethod
    def for_domain(cls, domain: Domain, offset: float = 1.0) -> SpectralBase:
        r"""The base whose squashed pixels have the mean and variance that the domain normalises by.

        What a classifier subtracts and divides by was measured on its training images: the only
        statistics of them that it carries without batch normalisation. Each contrast gets the
        mean :math:`m_k` at which :math:`\mathbb{E}\,\sigma(u)` is the domain's mean, channel by
        channel. The weights of the contrasts are those of largest entropy,
        :math:`w_k \propto e^{\lambda v_k}`, at which the variance of a pixel is the domain's;
        where no mixture has it, the nearest.

        Statistics that no pixels in [0, 1] have, or only pure black and white (mean 0 and std 1,
        mean 0.5 and std 0.5), were not measured; the base is then as wide as its defaults.

        Arguments:
            domain: The domain of images.
            offset: As for the class.

        Raises:
            ValueError: If the domain is not one of images.
        """
        channels = domain.shape[0]
        mean = np.broadcast_to(np.asarray(domain.mean), channels)
        variance = np.broadcast_to(np.asarray(domain.std), channels) ** 2
        if not np.all((mean > 0) & (mean < 1) & (variance < 0.99 * mean * (1 - mean))):
            return cls(domain.shape, offset=offset)
        spread = [a * math.sqrt(1 + offset**2) for a in CONTRASTS]
        means = [[_mean_with_expectation(m, s) for m in mean] for s in spread]
        variances = np.array(
            [
                np.mean([_sigmoid_moments(m, s)[1] for m in row])
                for row, s in zip(means, spread, strict=True)
            ]
        )
        weights = _largest_entropy_weights(variances, float(variance.mean()))
        return cls(domain.shape, weights=weights.tolist(), means=means, offset=offset)

    def _spectrum(self, exponent: float, offset: float, chroma: float) -> Tensor:
        """The variances of the DCT coefficients at contrast 1, with shape `(C, H, W)`."""
        channels, height, width = self.shape
        rows = torch.arange(height, dtype=torch.float64)[:, None] / height
        columns = torch.arange(width, dtype=torch.float64)[None, :] / width
        frequency = (rows.square() + columns.square()).sqrt()
        frequency[0, 0] = 1.0
        power = frequency.pow(-exponent)
        power[0, 0] = 0.0
        power = power * (height * width / power.sum().clamp(min=1e-12))
        power[0, 0] = offset**2 * height * width
        amplitude = torch.full((channels,), chroma, dtype=torch.float64)
        amplitude[0] = 1.0
        share = amplitude.square() * (channels / amplitude.square().sum())
        return share[:, None, None] * power

    def dct(self, z: Tensor) -> Tensor:
        """The orthonormal DCT over channels, rows and columns, `(B, C, H, W)` to the same shape."""
        with full_precision(z):  # densities keep their precision
            y = self.dct_rows @ z @ self.dct_columns.T
            return torch.einsum("kc,bchw->bkhw", self.dct_channels, y)

    def inverse_dct(self, y: Tensor) -> Tensor:
        """The inverse of :meth:`dct`, which is its transpose."""
        with full_precision(y):
            z = torch.einsum("kc,bkhw->bchw", self.dct_channels, y)
            return self.dct_rows.T @ z @ self.dct_columns

    def whiten(self, z: Tensor) -> Tensor:
        return self.dct(z - self.reference_mean[:, None, None]) / self.reference_std

    def unwhiten(self, w: Tensor) -> Tensor:
        return self.inverse_dct(w * self.reference_std) + self.reference_mean[:, None, None]

    def log_prob(self, z: Tensor) -> Tensor:
        y = self.dct(z)
        dims = math.prod(self.shape)
        # Only the constant components, (B, C), differ between the means.
        size = math.sqrt(self.shape[1] * self.shape[2])
        with full_precision(z):
            means = size * self.means @ self.dct_channels.T  # (K, C)
        constant, constant_std = y[:, :, 0, 0], self.std[:, :, 0, 0]
        distance = (y.flatten(1).unsqueeze(1) / self.std.flatten(1)).square().sum(-1)  # (B, J)
        distance = distance - (constant.unsqueeze(1) / constant_std).square().sum(-1)
        shifted = (constant[:, None, None] - means) / constant_std[:, None]  # (B, J, K, C)
        distance = distance.unsqueeze(-1) + shifted.square().sum(-1)
        log_det = self.std.flatten(1).log().sum(1) + 0.5 * dims * math.log(2 * math.pi)  # (J,)
        log_prob = (
            (self.weights / len(self.std)).log()
            - 0.5 * distance / self.contrasts.square()
            - log_det.unsqueeze(-1)
            - dims * self.contrasts.log()
        )
        return torch.logsumexp(log_prob.flatten(1), 1)

    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        device = self.std.device
        j = torch.randint(len(self.std), (n,), generator=generator, device=device)
        k = torch.multinomial(self.weights, max(n, 1), replacement=True, generator=generator)[:n]
        white = torch.randn(
            n, *self.shape, generator=generator, device=device, dtype=self.std.dtype
        )
        scale = temperature * self.contrasts[k]
        noise = self.inverse_dct(white * self.std[j] * scale[:, None, None, None])
        return noise + self.means[k][:, :, None, None]


@lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.hermite_e.hermegauss(100)
    return points, weights / weights.sum()


def _sigmoid_moments(mean: float, std: float) -> tuple[float, float]:
    """Mean and variance of a sigmoid of a Gaussian, by Gauss-Hermite quadrature."""
    points, weights = _quadrature()
    values = expit(mean + std * points)
    first = float(weights @ values)
    return first, float(weights @ values**2) - first**2


def _mean_with_expectation(expectation: float, std: float) -> float:
    """The mean of a Gaussian whose sigmoid has the given expectation."""
    bound = 40.0 * (1 + std)
    return brentq(lambda m: _sigmoid_moments(m, std)[0] - expectation, -bound, bound)


def _largest_entropy_weights(values: np.ndarray, target: float) -> np.ndarray:
    """Weights of largest entropy with the given mean of `values`, or the nearest that is bounded.

    At the bound the weight of one contrast is e times that of the next, so that some variety
    is always left.
    """
    bound = len(values) / np.ptp(values)
    tilt = np.clip(
        minimize_scalar(
            lambda t: logsumexp(t * (values - target)), bounds=(-bound, bound), method="bounded"
        ).x,
        -bound,
        bound,
    )
    return softmax(tilt * values)
