"""The flow of the paper's published code: wide affine couplings with random initial weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flows.bases import GaussianBase
from ..flows.contract import ConditionalFlow
from ..flows.squash import make_squash


class WideCoupling(nn.Module):
    r"""Half of the values, scaled and shifted by a net of the other half and of the class.

    .. math:: s = \rho \odot \tanh g_s, \qquad t = g_t

    with a learned :math:`\rho` that starts at 1. The condition is added after each hidden layer,
    through a layer of its own.

    Arguments:
        features: The values of a half.
        classes: The classes.
        hidden_features: The width of the two hidden layers.
    """

    def __init__(self, features: int, classes: int, hidden_features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))
        self.hidden = nn.ModuleList(
            [nn.Linear(features, hidden_features), nn.Linear(hidden_features, hidden_features)]
        )
        self.condition = nn.ModuleList(nn.Linear(classes, hidden_features) for _ in range(2))
        self.out = nn.Linear(hidden_features, 2 * features)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The log-scale and the shift, both with shape `(B, features)`.

        Arguments:
            x: The half that stays, with shape `(B, features)`.
            c: Soft labels with shape `(B, classes)`.
        """
        for hidden, condition in zip(self.hidden, self.condition, strict=True):
            x = F.leaky_relu(hidden(x)) + F.leaky_relu(condition(c))
        s, shift = self.out(x).chunk(2, 1)
        return self.scale * s.tanh(), shift


class KeFlow(ConditionalFlow):
    """Affine couplings of even and odd pixels in turn, then a sigmoid: the flow of Table 1.

    Unlike :class:`~freia_kd.flows.nice.NICE` it starts from random weights and not from the
    identity, has nothing but couplings, and at the defaults 36.7 million weights.

    Arguments:
        shape: The shape of one image.
        classes: The classes.
        transforms: The number of couplings.
        hidden_features: Their width.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), section 4.1
        | https://github.com/5yearsKim/Knowlede-Extraction-Flow

    Example:
        >>> flow = KeFlow((1, 4, 4), 10, hidden_features=8)
        >>> x, ladj = flow.decode(torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2]))
        >>> x.shape, ladj.shape
        (torch.Size([3, 1, 4, 4]), torch.Size([3]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        transforms: int = 8,
        hidden_features: int = 1500,
    ) -> None:
        shape = tuple(shape)
        super().__init__(shape, classes, GaussianBase(shape), make_squash("logit", shape, None))
        half = math.prod(shape) // 2
        self.couplings = nn.ModuleList(
            WideCoupling(half, classes, hidden_features) for _ in range(transforms)
        )

    def encode_unbounded(self, u: Tensor, c: Any) -> tuple[Tensor, Tensor]:
        return self._run(u, self.soft(c, u.dtype), rev=False)

    def decode_unbounded(self, z: Tensor, c: Any) -> tuple[Tensor, Tensor]:
        return self._run(z, self.soft(c, z.dtype), rev=True)

    def _run(self, x: Tensor, c: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        pairs = x.reshape(len(x), -1, 2)
        halves = [pairs[..., 0], pairs[..., 1]]
        ladj = x.new_zeros(len(x))
        numbered = [*enumerate(self.couplings)]
        for index, coupling in reversed(numbered) if rev else numbered:
            moving, fixed = (0, 1) if index % 2 else (1, 0)
            log_scale, shift = coupling(halves[fixed], c)
            if rev:
                halves[moving] = (halves[moving] - shift) * (-log_scale).exp()
                ladj = ladj - log_scale.sum(1)
            else:
                halves[moving] = halves[moving] * log_scale.exp() + shift
                ladj = ladj + log_scale.sum(1)
        return torch.stack(halves, -1).reshape(len(x), *self.shape), ladj
