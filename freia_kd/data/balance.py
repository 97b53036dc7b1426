"""Drawing inputs so that a student meets every class of its teacher alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .stored import StoredArray

FLOOR = 0.02  # of an even share: a class that inputs hardly show is not forced upon the student


def class_balance(logits: Sequence[Tensor | np.ndarray | StoredArray]) -> Tensor:
    r"""How often to draw each input, so that the teacher's classes come up alike.

    .. math:: w(x) = \sum_k \frac{p(k \mid x)}{\bar p_k + \phi / K}, \qquad
        \bar p_k = \frac1N \sum_x p(k \mid x)

    Images that were made without labels show some classes a hundred times as often as others: of
    dead leaves a LeNet5 calls 32 % bags and 1 % trousers. Where classes are shown alike, every
    weight is about K; none is above :math:`1/\phi` times that.

    Arguments:
        logits: The teacher's logits `(n, K)`, shard after shard, N rows together; each is read
            twice, so that those in files may be larger than memory.

    Returns:
        The weights `(N,)`, of which only ratios count, as float64.

    Raises:
        ValueError: If there are no rows.

    Example:
        >>> weights = class_balance([torch.tensor([[9.0, -9.0], [9.0, -9.0], [-9.0, 9.0]])])
        >>> [round(weight, 1) for weight in weights.tolist()]
        [1.5, 1.5, 2.9]
    """
    count = sum(len(shard) for shard in logits)
    if not count:
        raise ValueError("Expected logits of at least one input; got none.")
    shares = torch.stack([_probabilities(shard).sum(0) for shard in logits]).sum(0) / count
    each = 1 / (shares + FLOOR / len(shares))
    return torch.cat([_probabilities(shard) @ each for shard in logits])


def draw_rows(ends: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Rows `(size,)` at random with replacement, by their weights; there may be any number.

    (`torch.multinomial` takes no more than 2^24 weights.)

    Arguments:
        ends: The running sums of the weights, `(N,)`, which need to be taken only once.
        size: How many rows.
        generator: The source of all random numbers, on the CPU.
    """
    at = torch.rand(size, generator=generator, dtype=ends.dtype) * ends[-1]
    return torch.searchsorted(ends, at, right=True).clamp_(max=len(ends) - 1)


def _probabilities(logits: Tensor | np.ndarray | StoredArray) -> Tensor:
    rows = logits if isinstance(logits, Tensor) else torch.tensor(np.asarray(logits))
    return rows.double().softmax(1)
