"""A multilayer perceptron for vectors and flattened images."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..domain import Domain


class MLP(nn.Module):
    """Fully connected layers with ReLU between them.

    Arguments:
        features: The number of input features; images are flattened.
        classes: The number of classes.
        hidden_features: The widths of the hidden layers.

    Example:
        >>> MLP(2, 3)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, features: int, classes: int, hidden_features: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        widths = [features, *hidden_features, classes]
        self.layers = nn.ModuleList(
            nn.Linear(width_in, width_out) for width_in, width_out in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits with shape `(B, classes)` for inputs with shape `(B, *shape)`."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)

    @staticmethod
    def sizes(state: dict[str, Tensor]) -> dict[str, Any]:
        """The constructor's arguments, read off the weights (`LookupError` if they are others)."""
        # Of a compressed net too, whose layers are pairs: the biases tell the widths.
        layers = [re.match(r"layers\.(\d+)\.(\d+\.)?bias$", key) for key in state]
        biases = {int(match[1]): match[0] for match in layers if match}
        widths = [state[biases[i]].shape[0] for i in range(len(biases))]
        first = min((k for k in state if re.match(r"layers\.0\..*weight$", k)), default="")
        features = state[first].shape[1]
        if 0 in (features, *widths):
            raise LookupError("weights without any numbers")
        return {
            "features": features,
            "classes": widths[-1],
            "hidden_features": tuple(widths[:-1]),
        }

    @classmethod
    def from_domain(cls, domain: Domain, state: dict[str, Tensor] | None = None) -> MLP:
        """Makes the net for a domain, as wide as the weights to be loaded if there are any."""
        try:
            sizes = cls.sizes(state or {})
        except LookupError:
            return cls(math.prod(domain.shape), domain.classes)
        return cls(math.prod(domain.shape), domain.classes, sizes["hidden_features"])
