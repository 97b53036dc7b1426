"""ResNet14, the teacher of KegNet and BDNF on SVHN and Fashion-MNIST."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..domain import Domain
from ..errors import UsageError


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity shortcut without parameters.

    Where the block widens, the shortcut takes every `stride`-th pixel and appends channels of
    zeros (option A of He et al.). Convolutions have biases, as in the public checkpoints.

    Arguments:
        channels_in: The number of input channels.
        channels_out: The number of output channels.
        stride: The stride of the first convolution and of the shortcut.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.new_channels = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Features with shape `(B, channels_out, H / stride, W / stride)`."""
        shortcut = F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels)
        )
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet14(nn.Module):
    """A residual net of three stages (16, 32 and 64 channels) with two blocks each.

    Pooling is global, so that images of any size go through.

    Arguments:
        channels: The number of input channels.
        classes: The number of classes.

    References:
        | Deep Residual Learning for Image Recognition (He et al., 2016), section 4.2
        | Knowledge Extraction with No Observable Data (Yoo et al., 2019), for this variant

    Example:
        >>> ResNet14(3, 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1)
        self.norm1 = nn.BatchNorm2d(16)
        self.layers1 = nn.Sequential(ResidualBlock(16, 16), ResidualBlock(16, 16))
        self.layers2 = nn.Sequential(ResidualBlock(16, 32, 2), ResidualBlock(32, 32))
        self.layers3 = nn.Sequential(ResidualBlock(32, 64, 2), ResidualBlock(64, 64))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits with shape `(B, classes)` for normalised images `(B, channels, H, W)`."""
        x = torch.relu(self.norm1(self.conv1(x)))
        x = self.layers3(self.layers2(self.layers1(x)))
        return self.linear(x.mean((2, 3)))

    @staticmethod
    def sizes(state: dict[str, Tensor]) -> dict[str, int]:
        """The constructor's arguments, read off the weights (`LookupError` if they are others)."""
        return {
            "channels": state["conv1.weight"].shape[1],
            "classes": state["linear.weight"].shape[0],
        }

    @classmethod
    def from_domain(cls, domain: Domain, state: dict[str, Tensor] | None = None) -> ResNet14:
        """Makes the net for a domain of images."""
        if not domain.is_image:
            raise UsageError(
                f"Expected images of shape (C, H, W) for resnet14; got {domain.shape}. "
                "Vectors go with --arch mlp."
            )
        return cls(domain.shape[0], domain.classes)
