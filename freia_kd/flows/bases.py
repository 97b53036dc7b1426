"""Base densities of flows: the standard Gaussian, and a spectral mixture that looks like images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Base(nn.Module, ABC):
    """A density over latents with shape `(B, *shape)`, with exact `log_prob` and `sample`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density in nats, with shape `(B,)`."""

    @abstractmethod
    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws `n` latents; `temperature` scales the standard deviation of each."""
