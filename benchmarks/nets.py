"""A net of torchvision's for images of 32 pixels, as a teacher of the benchmarks; for `--arch`."""

from torch import nn
from torchvision.models.vgg import VGG, make_layers

# VGG-11's layers with half of its channels.
HALF = [32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M"]


def vgg(num_classes: int = 10) -> nn.Module:
    """VGG-11 with batch normalisation, half as wide, and one linear layer at its end."""
    net = VGG(make_layers(HALF, batch_norm=True), num_classes)
    net.avgpool = nn.Identity()
    net.classifier = nn.Linear(256, num_classes)
    return net
