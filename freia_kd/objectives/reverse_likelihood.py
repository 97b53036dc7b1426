"""The likelihood of real samples: the paper's eq. (2) and (8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..flows import density
from ..flows.contract import ConditionalFlow
from .contract import Batch, Terms


@dataclass(frozen=True)
class ReverseLikelihood:
    r"""The negative log-likelihood of real samples under the flow, eq. (2) and (8), in nats.

    .. math:: -\Bigl\langle \log p_Z(f^{-1}(x; y))
              + \log\Bigl|\det \frac{\partial f^{-1}(x; y)}{\partial x}\Bigr| \Bigr\rangle

    The paper's eq. (8) prints "- Jacobian", where Jacobian is eq. (6), of the direction from z to
    x; that is the same as "+" the log-determinant from x to z, which is what is used here.

    It is the exact likelihood of pixels, squash included. Images of 256 levels are dequantised,
    :math:`(255 x + \epsilon) / 256` with uniform noise from the batch's generator, which makes it a
    bound of the likelihood of the levels (plus :math:`\log 256` per dimension); else a flow could
    gain without limit from the gaps between them. (The paper does not speak of it; its code spreads
    a level over five.) Vectors stay as they are, or are smoothed by
    `noise`: a flow may raise its density at a few samples without limit, and fresh noise in every
    step lets it see a kernel density estimate of them in their place.

    Arguments:
        dequantize: Whether images are dequantised.
        noise: The standard deviation of Gaussian noise added to vectors (the paper none).

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), eq. (2), (8)
        | A note on the evaluation of generative models (Theis et al., 2016), on dequantisation
        | https://arxiv.org/abs/1511.01844
    """

    dequantize: bool = True
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"Expected noise of at least 0; got {self.noise}.")

    def __call__(self, flow: ConditionalFlow, teacher: nn.Module, batch: Batch) -> Terms:
        """Evaluates eq. (8) on `batch.x` and `batch.y`; the teacher is not asked.

        Raises:
            ValueError: If the batch has no real samples or no classes for them.
        """
        if batch.x is None or batch.y is None:
            raise ValueError(
                "Expected real samples and their classes in batch.x and batch.y; got none. "
                "Without real samples use the data-free objective alone."
            )
        x = self._spread(batch.x, batch.generator, flow.edge)
        return Terms(reverse=-flow.log_prob(x, batch.y).mean())

    def _spread(self, x: Tensor, generator: torch.Generator | None, edge: float) -> Tensor:
        if x.ndim == 4:
            return density.dequantize(x, generator, edge=edge)[0] if self.dequantize else x
        if not self.noise:
            return x
        device = x.device if generator is None else generator.device
        noise = torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype)
        return x + self.noise * noise.to(x.device)


def dequantize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Spreads pixels of 256 levels over :math:`[0, 1)`: :math:`(255 x + \epsilon) / 256`.

    Arguments:
        x: Pixels in [0, 1], of any shape.
        generator: The source of the uniform noise.
    """
    return density.dequantize(x, generator)[0]
