"""What density estimation of images needs beside a flow: noise between their levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dequantize(
    x: Tensor,
    generator: torch.Generator | None = None,
    *,
    edge: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Spreads images of 256 levels over :math:`(0, 1)`: :math:`\tilde x = (k + v) / 256`.

    The noise is uniform, :math:`v \sim U(0, 1)`, but for the darkest and the brightest level, where
    it is :math:`v^{1/e}` from the end of the interval, with the density :math:`e\,v^{e-1}`. A
    squash whose tails are heavy sends the ends far away; an edge of 8 keeps the noise off them, and
    the bound :math:`\log P(k) \ge \mathbb{E}_q[\log p(\tilde x) - \log q(\tilde x)] - D \log 256`
    stays one.

    Arguments:
        x: Images with shape `(B, ...)`: uint8, or floats in [0, 1].
        generator: The source of the noise.
        edge: The exponent `e`, 1 for uniform noise throughout.
        dtype: The dtype of the result; that of `x`, or the default one, if `None`.

    Returns:
        Pixels with the shape of `x`, and :math:`\log q` of the noise in nats, with shape `(B,)`:
        0 for uniform noise.

    References:
        | A note on the evaluation of generative models (Theis et al., 2016), section 3.1
        | Flow++: Improving Flow-Based Generative Models with Variational Dequantization and
        | Architecture Design (Ho et al., 2019), equation 9, here with a fixed q

    Example:
        >>> pixels, log_q = dequantize(torch.tensor([[0, 128, 255]], dtype=torch.uint8))
        >>> (256 * pixels).floor().tolist(), log_q.tolist()
        ([[0.0, 128.0, 255.0]], [0.0])
    """
    if dtype is None:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    levels = 255 * x.to(dtype) if x.is_floating_point() else x.to(dtype)
    device = x.device if generator is None else generator.device
    noise = torch.rand(x.shape, generator=generator, device=device, dtype=dtype).to(x.device)
    log_q = torch.zeros_like(noise)
    if edge != 1:
        noise = noise.clamp(min=torch.finfo(dtype).tiny)
        inner = noise.pow(1 / edge)  # away from the end
        at_end = (levels < 0.5) | (levels > 254.5)
        log_q = torch.where(at_end, torch.log(edge * inner.pow(edge - 1)), log_q)
        inner = torch.where(levels > 254.5, 1 - inner, inner)
        noise = torch.where(at_end, inner, noise)
    least = torch.finfo(dtype).eps
    pixels = ((levels + noise) / 256).clamp(least, 1 - least)
    return pixels, log_q.reshape(x.shape[0], math.prod(x.shape[1:])).sum(1)
