"""LeNet5, the teacher of KegNet and BDNF on MNIST."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..domain import Domain
from ..errors import UsageError


class LeNet5(nn.Module):
    """LeNet5 with ReLU and max pooling, for 32x32 images.

    Arguments:
        channels: The number of input channels.
        classes: The number of classes.

    References:
        | Gradient-based learning applied to document recognition (LeCun et al., 1998)
        | Knowledge Extraction with No Observable Data (Yoo et al., 2019), for this variant

    Example:
        >>> LeNet5(1, 10)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.fc1 = nn.Linear(120, 84)
        self.fc2 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits with shape `(B, classes)` for normalised images `(B, channels, 32, 32)`."""
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = torch.relu(self.conv3(x)).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))

    @staticmethod
    def sizes(state: dict[str, Tensor]) -> dict[str, int]:
        """The constructor's arguments, read off the weights (`LookupError` if they are others)."""
        return {
            "channels": state["conv1.weight"].shape[1],
            "classes": state["fc2.weight"].shape[0],
        }

    @classmethod
    def from_domain(cls, domain: Domain, state: dict[str, Tensor] | None = None) -> LeNet5:
        """Makes the net for a domain of 32x32 images."""
        if not domain.is_image or domain.shape[1:] != (32, 32):
            raise UsageError(
                f"Expected inputs of shape (C, 32, 32) for lenet5; got {domain.shape}. "
                "Resize the images, or name another architecture."
            )
        return cls(domain.shape[0], domain.classes)
