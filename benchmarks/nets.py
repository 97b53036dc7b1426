"""torchvision's nets for images of 32 pixels, as teachers of the benchmarks; for `--arch`."""

from torch import nn
from torchvision.models import resnet
from torchvision.models.vgg import VGG, make_layers

# VGG-11's layers with half of its channels.
HALF = [32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M"]


def resnet18(num_classes: int = 10) -> nn.Module:
    """ResNet18 whose first convolution is 3x3, with a stride of 2 and no pooling behind it."""
    net = resnet.resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


def vgg(num_classes: int = 10) -> nn.Module:
    """VGG-11 with batch normalisation, half as wide, and one linear layer at its end."""
    net = VGG(make_layers(HALF, batch_norm=True), num_classes)
    net.avgpool = nn.Identity()
    net.classifier = nn.Linear(256, num_classes)
    return net
