"""The rank of a noisy matrix by the global analytic solution of empirical variational Bayes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GRID = 512  # points of the coarse search for the noise variance, whose free energy has kinks
GRAM_FROM = 1024  # shorter sides above this would take minutes by a singular value decomposition


@dataclass(frozen=True)
class EVBMF:
    r"""A low-rank estimate :math:`U \operatorname{diag}(s) V^\top` of a noisy matrix.

    Arguments:
        rank: The number of components kept, which may be 0.
        u: Left singular vectors with shape `(rows, rank)`.
        s: The shrunken singular values with shape `(rank,)`.
        v: Right singular vectors with shape `(columns, rank)`.
        noise_variance: The variance of the noise per entry, given or estimated.
    """

    rank: int
    u: Tensor
    s: Tensor
    v: Tensor
    noise_variance: float


def evbmf(matrix: Tensor, noise_variance: float | None = None) -> EVBMF:
    r"""Factorises a matrix by empirical variational Bayes, in closed form and in float64.

    With :math:`L \le M` the sizes of the matrix, :math:`\gamma_h` its singular values and
    :math:`\sigma^2` the noise variance, a component is kept where
    :math:`\gamma_h^2 > M \sigma^2 \bar{x}` (:func:`detection_threshold`), and shrinks to

    .. math:: \hat\gamma_h = \frac{\gamma_h}{2} \Bigl(1 - \frac{(L + M)\sigma^2}{\gamma_h^2} +
              \sqrt{\bigl(1 - (L + M)\sigma^2 / \gamma_h^2\bigr)^2 - 4 L M \sigma^4 / \gamma_h^4}
              \Bigr)

    An unknown :math:`\sigma^2` is the one of least :func:`free_energy`.

    Arguments:
        matrix: A matrix with shape `(rows, columns)`, either of which may be the longer.
        noise_variance: The variance of the noise per entry, if it is known.

    Returns:
        The factors, which live on the matrix's device in float64. Pure noise has rank 0.

    Raises:
        ValueError: If the matrix is not two-dimensional, empty or not finite, or the noise
            variance not positive.

    References:
        | Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization
        | (Nakajima, Sugiyama, Babacan and Tomioka, 2013), Theorems 2 and 4
        | https://jmlr.org/papers/v14/nakajima13a.html

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> a, b = torch.randn(20, 3, generator=generator), torch.randn(3, 50, generator=generator)
        >>> evbmf(a @ b + 0.1 * torch.randn(20, 50, generator=generator)).rank
        3
    """
    matrix = _checked(matrix, noise_variance)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank, noise_variance = _rank_and_noise(s, matrix.shape, noise_variance)
    kept = s[:rank]
    short, long = sorted(matrix.shape)
    ratio = noise_variance / kept.square()
    gap = 1 - (short + long) * ratio
    shrunk = 0.5 * kept * (gap + (gap.square() - 4 * short * long * ratio.square()).sqrt())
    return EVBMF(rank, u[:, :rank], shrunk, vh[:rank].T, noise_variance)


def evbmf_rank(matrix: Tensor, noise_variance: float | None = None, minimum: int = 1) -> int:
    """The rank that :func:`evbmf` finds, but at least `minimum`; from singular values only.

    Arguments:
        matrix: A matrix with shape `(rows, columns)`.
        noise_variance: The variance of the noise per entry, if it is known.
        minimum: The least rank to return; 0 allows that nothing but noise was found.

    Raises:
        ValueError: As :func:`evbmf` does.

    Example:
        >>> noise = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
        >>> evbmf_rank(noise), evbmf_rank(noise, minimum=0)
        (1, 0)
    """
    matrix = _checked(matrix, noise_variance)
    return max(minimum, _rank_and_noise(_singular_values(matrix), matrix.shape, noise_variance)[0])


def detection_threshold(alpha: float) -> float:
    r"""The least :math:`\bar{x} = (1 + \tau)(1 + \alpha / \tau)` of a component that is kept.

    :math:`\tau` is the root of :math:`\Phi(\tau) + \Phi(\tau/\alpha)` with
    :math:`\Phi(z) = \log(z + 1)/z - 1/2`. The paper's approximation
    :math:`\tau \approx 2.5129 \sqrt{\alpha}` is exact at 1 and close to it elsewhere.

    Arguments:
        alpha: The shorter over the longer side of the matrix, in (0, 1].

    Example:
        >>> round(detection_threshold(1.0), 3)
        4.911
    """
    from scipy.optimize import brentq

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    guess = 2.5129 * math.sqrt(alpha)
    tau = brentq(lambda t: phi(t) + phi(t / alpha), guess / 10, guess * 10, xtol=1e-14)
    return (1 + tau) * (1 + alpha / tau)


def free_energy(noise_variance: np.ndarray, s: np.ndarray, long: int) -> np.ndarray:
    r"""The free energy of each noise variance, up to a constant; twice that per column.

    :math:`\sum_h \psi(\gamma_h^2 / (M\sigma^2))` with :math:`\psi(x) = x - \log x`, to which
    :math:`\log(\tau + 1) + \alpha \log(\tau/\alpha + 1) - \tau` is added where
    :math:`x > \bar{x}`, and :math:`\tau(x) = \frac12 (x - (1 + \alpha) +
    \sqrt{(x - (1 + \alpha))^2 - 4\alpha})`.

    Arguments:
        noise_variance: Candidates with shape `(N,)`.
        s: All singular values with shape `(L,)`, none of them 0.
        long: The longer side, M.

    Returns:
        The free energies with shape `(N,)`.

    References:
        | Nakajima et al., 2013, Theorem 4
    """
    alpha = len(s) / long
    x = s**2 / (long * np.asarray(noise_variance, dtype=np.float64)[:, None])
    kept = x > detection_threshold(alpha)
    shifted = np.where(kept, x, 4 + alpha) - (1 + alpha)
    tau = 0.5 * (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0)))
    gain = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    return (x - np.log(x) + np.where(kept, gain, 0.0)).sum(1)


def _checked(matrix: Tensor, noise_variance: float | None) -> Tensor:
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ValueError(
            f"Expected a matrix with shape (rows, columns); got {tuple(matrix.shape)}."
        )
    if noise_variance is not None and not noise_variance > 0:
        raise ValueError(f"Expected a positive noise variance; got {noise_variance}.")
    matrix = matrix.detach().to(torch.float64)
    if not bool(matrix.isfinite().all()):
        raise ValueError("Expected a matrix of finite numbers; got NaN or infinite entries.")
    return matrix


def _singular_values(matrix: Tensor) -> Tensor:
    """All singular values in descending order, by the Gram matrix where a matrix is large."""
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T  # several times faster
    if tall.shape[1] <= GRAM_FROM:
        return torch.linalg.svdvals(tall)
    return torch.linalg.eigvalsh(tall.T @ tall).clamp(min=0).sqrt().flip(0)


def _rank_and_noise(
    s: Tensor, shape: torch.Size, noise_variance: float | None
) -> tuple[int, float]:
    """The rank, and the noise variance, from all singular values in descending order."""
    short, long = sorted(shape)
    values = s.cpu().numpy()
    if values[0] == 0:
        return 0, noise_variance or 0.0
    # A matrix without noise has singular values of rounding error; those are its noise.
    values = np.maximum(values, values[0] * np.finfo(np.float64).eps * long)
    if noise_variance is None:
        noise_variance = _estimate_noise(values, long)
    threshold = long * noise_variance * detection_threshold(short / long)
    return int((values**2 > threshold).sum()), float(noise_variance)


def _estimate_noise(values: np.ndarray, long: int) -> float:
    """The noise variance of least free energy, within the bounds of Theorem 4."""
    from scipy.optimize import minimize_scalar

    short = len(values)
    alpha = short / long
    largest_rank = math.ceil(short / (1 + alpha)) - 1
    tail = values[largest_rank:] ** 2
    lower = max(tail[0] / (long * detection_threshold(alpha)), tail.mean() / long)
    upper = (values**2).sum() / (short * long)
    if not lower < upper:
        return upper
    grid = np.geomspace(lower, upper, GRID)
    best = int(free_energy(grid, values, long).argmin())
    found = minimize_scalar(
        lambda log_variance: float(free_energy(np.exp([log_variance]), values, long)[0]),
        bounds=tuple(np.log(grid[[max(best - 1, 0), min(best + 1, GRID - 1)]])),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return math.exp(found.x)
