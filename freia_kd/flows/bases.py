"""Base densities of flows: the standard Gaussian, and a spectral mixture that looks like images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Base(nn.Module, ABC):
    """A density over latents with shape `(B, *shape)`, with exact `log_prob` and `sample`.

    `whiten` and `unwhiten` are mutually inverse fixed linear maps to coordinates in which the
    density is roughly a standard Gaussian. A flow may conjugate its layers with them
    (:math:`u = W^{-1} g(W z)`): their log-determinants cancel, and the layers work in
    coordinates of one scale. They are the identity unless a base says otherwise.
    """

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
    r"""The standard Gaussian :math:`\mathcal{N}(0, I)`.

    Arguments:
        shape: The shape of one latent.

    Example:
        >>> GaussianBase((2,)).log_prob(torch.zeros(1, 2)).item()  # -log(2 pi)
        -1.8378...
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # knows device and dtype

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        anchor = self.anchor
        return temperature * torch.randn(
            n, *self.shape, generator=generator, device=anchor.device, dtype=anchor.dtype
        )


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

    .. math:: p(z) = \frac{1}{JK} \sum_{j,k} \mathcal{N}\bigl(\mathrm{DCT}(z);\,
              0,\, a_k^2\, \Lambda_{b_j}\bigr)

    :math:`\Lambda_b` gives the frequency :math:`f > 0` the variance :math:`f^{-b}`, scaled so that
    a pixel has variance 1 on average, and the constant component the variance of an offset of
    `offset` pixel standard deviations. The contrasts :math:`a_k` are spread log-uniformly, which
    is the discrete form of a random contrast and offset per image with those two integrated out;
    that is why they need no latent dimensions of their own. Colour channels are decorrelated by a
    DCT over channels; those other than grey have `chroma` times the amplitude.

    Arguments:
        shape: The shape of one latent, `(C, H, W)`.
        exponents: The exponents :math:`b_j`.
        contrasts: The standard deviations :math:`a_k` of a pixel, before the squash.
        offset: The standard deviation of an image's mean, in units of the contrast.
        chroma: The relative amplitude of the colour components.

    References:
        | Modelling the power spectra of natural images (van der Schaaf and van Hateren, 1996)
        | Visual categorization with noise that looks like images is this package's own departure
        | from the paper, whose base is a white Gaussian; it stands for log p_X(x) of eq. (1).

    Example:
        >>> base = SpectralBase((1, 8, 8))
        >>> z = base.sample(4, generator=torch.Generator().manual_seed(0))
        >>> z.shape, base.log_prob(z).shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        exponents: Sequence[float] = (2.0, 2.5, 3.0, 3.5, 4.0),
        contrasts: Sequence[float] = (1.0, 1.43, 2.04, 2.91, 4.16, 5.94, 8.48, 12.0),
        offset: float = 1.15,
        chroma: float = 0.5,
    ) -> None:
        super().__init__(shape)
        if len(self.shape) != 3:
            raise ValueError(f"Expected a shape (C, H, W); got {self.shape}.")
        if not exponents or not contrasts or min(contrasts) <= 0 or offset <= 0 or chroma <= 0:
            raise ValueError("Expected exponents, and positive contrasts, offset and chroma.")
        channels, height, width = self.shape
        spectra = torch.stack([self._spectrum(b, offset, chroma) for b in exponents])
        scale = torch.tensor(contrasts, dtype=torch.float64)
        dtype = torch.get_default_dtype()
        reference = spectra.log().mean(0).exp() * scale.log().mean().exp().square()
        for name, value in (
            ("dct_channels", dct_matrix(channels)),
            ("dct_rows", dct_matrix(height)),
            ("dct_columns", dct_matrix(width)),
            ("std", spectra.sqrt()),  # (J, C, H, W)
            ("contrasts", scale),  # (K,)
            ("reference_std", reference.sqrt()),  # (C, H, W), geometric mean over the mixture
        ):
            self.register_buffer(name, value.to(dtype), persistent=False)

    def _spectrum(self, exponent: float, offset: float, chroma: float) -> Tensor:
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
        y = self.dct_rows @ z @ self.dct_columns.T
        return torch.einsum("kc,bchw->bkhw", self.dct_channels, y)

    def inverse_dct(self, y: Tensor) -> Tensor:
        """The inverse of :meth:`dct`, which is its transpose."""
        z = torch.einsum("kc,bkhw->bchw", self.dct_channels, y)
        return self.dct_rows.T @ z @ self.dct_columns

    def whiten(self, z: Tensor) -> Tensor:
        return self.dct(z) / self.reference_std

    def unwhiten(self, w: Tensor) -> Tensor:
        return self.inverse_dct(w * self.reference_std)

    def log_prob(self, z: Tensor) -> Tensor:
        y = self.dct(z).flatten(1)
        std = self.std.flatten(1)
        dims = y.shape[1]
        distance = (y.unsqueeze(1) / std).square().sum(-1)  # (B, J), squared Mahalanobis
        log_det = std.log().sum(1) + 0.5 * dims * math.log(2 * math.pi)
        log_prob = (
            -0.5 * distance.unsqueeze(-1) / self.contrasts.square()
            - log_det.unsqueeze(-1)
            - dims * self.contrasts.log()
        )
        return torch.logsumexp(log_prob.flatten(1), 1) - math.log(log_prob[0].numel())

    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        options = {"device": self.std.device, "generator": generator}
        j = torch.randint(len(self.std), (n,), **options)
        k = torch.randint(len(self.contrasts), (n,), **options)
        white = torch.randn(n, *self.shape, dtype=self.std.dtype, **options)
        scale = temperature * self.contrasts[k]
        return self.inverse_dct(white * self.std[j] * scale[:, None, None, None])
