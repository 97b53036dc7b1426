"""Class-conditional subnets of FrEIA's coupling blocks: the class is a bias of every hidden layer.

A FrEIA coupling block makes its subnets by `subnet_constructor(c_in, c_out)`, where `c_in` counts
the channels of the condition, which come last. A `functools.partial` of the classes here is such a
constructor, and can be pickled. :class:`~freia_kd.flows.blocks.AffineCoupling` hands the labels
over apart from the channels, which saves copies: for it make them with `planes=0`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import unpack_labels
from .contract import Fixable


class ClassSubnet(nn.Module, Fixable):
    """What both subnets share: labels to biases, and bf16 within the subnet only.

    Arguments:
        c_in: The number of channels that come in, those of the packed labels included.
        c_out: The number of channels that go out.
        classes: The number of classes; 0 for none.
        planes: How many of the channels are packed labels (see
            :func:`freia_kd.flows.blocks.pack_labels`); 0 where labels come apart from them.
        hidden_features: The width of the hidden layers.
        layers: How many hidden layers there are.
        bf16: Whether to compute in bfloat16. What comes out has the dtype of what came in, so
            that the coupling and its log-determinant keep their precision, also where the caller
            uses autocast.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        classes: int = 0,
        planes: int | None = None,
        hidden_features: int = 256,
        layers: int = 2,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.planes = classes if planes is None else planes
        if c_in < self.planes or layers < 1:
            raise ValueError(
                f"Expected at least one hidden layer and {self.planes} channels for the packed "
                f"labels; got layers={layers} and c_in={c_in}."
            )
        self.features_in = c_in - self.planes
        self.bf16 = bf16
        self.cast: list[list[Tensor]] = []  # the weights of layers in bfloat16, while they stay
        widths = [self.features_in] + [hidden_features] * layers
        self.layers = nn.ModuleList(
            self.make_layer(widths[i], widths[i + 1], i) for i in range(layers)
        )
        self.last = self.make_layer(hidden_features, c_out, -1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        if classes:
            # As large as the rest of what enters a unit, whatever the number of inputs.
            self.biases = nn.Parameter(torch.randn(classes, layers * hidden_features) / 2)

    def make_layer(self, c_in: int, c_out: int, index: int) -> nn.Linear | nn.Conv2d:
        """The hidden layer of that index, or the last one for -1."""
        raise NotImplementedError

    @property
    def is_fixed(self) -> bool:
        return bool(self.cast)

    @torch.no_grad()
    def fix(self) -> None:
        if self.bf16:
            self.cast = [lowered(layer) for layer in (*self.layers, self.last)]

    def unfix(self) -> None:
        self.cast = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Maps `(B, c_in, ...)` to `(B, c_out, ...)`.

        Arguments:
            x: The channels, and the packed labels if there are `planes`.
            labels: Labels with shape `(B, classes)`, if not.
        """
        h = x
        if self.planes:
            h, packed = x.split([self.features_in, self.planes], 1)
            labels = unpack_labels(packed, self.classes)
        h = h.to(torch.bfloat16) if self.bf16 else h
        biases: tuple[Tensor, ...] | None = None
        if self.classes:
            assert labels is not None, "made with planes=0, so the coupling hands labels over"
            bias = (labels.to(self.biases.dtype) @ self.biases).to(h.dtype)
            bias = bias.reshape(*bias.shape, *(1,) * (x.ndim - 2))
            biases = bias.chunk(len(self.layers), 1)
        for index, layer in enumerate(self.layers):
            h = self.apply_layer(layer, h, index)
            # In place, since fresh memory costs more than these operations do.
            if biases is not None:
                h = h.add_(biases[index].to(h.dtype))
            h = F.relu_(h)
        return self.apply_layer(self.last, h, -1).to(x.dtype)

    def apply_layer(self, layer: nn.Module, h: Tensor, index: int) -> Tensor:
        """A layer, in bfloat16 if asked for: cast here, since autocast costs more than the cast."""
        if not self.bf16:
            return layer(h)
        weight, bias = self.cast[index] if self.cast else lowered(layer)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(h, weight, bias, padding=layer.padding)
        return F.linear(h, weight, bias)


def lowered(layer: nn.Module) -> list[Tensor]:
    """The weight and the bias of a layer in bfloat16."""
    return [parameter.to(torch.bfloat16) for parameter in layer.parameters()]


class DenseSubnet(ClassSubnet):
    """A multilayer perceptron on vectors with shape `(B, c_in)`.

    The last layer starts at zero, so that the coupling starts as the identity. Arguments as those
    of :class:`ClassSubnet`; `planes` is the number of classes.

    Example:
        >>> subnet = DenseSubnet(8 + 3, 16, classes=3)
        >>> subnet(torch.ones(2, 11)).shape
        torch.Size([2, 16])
    """

    def make_layer(self, c_in: int, c_out: int, index: int) -> nn.Linear:
        return nn.Linear(c_in, c_out)


class ConvSubnet(ClassSubnet):
    """Convolutions 3x3, 1x1, ..., 3x3 on images with shape `(B, c_in, H, W)`, without BatchNorm.

    The last layer starts at zero, so that the coupling starts as the identity. Arguments as those
    of :class:`ClassSubnet`.

    Example:
        >>> subnet = ConvSubnet(6 + 1, 12, classes=10, planes=1, hidden_features=32)
        >>> subnet(torch.ones(2, 7, 16, 16)).shape
        torch.Size([2, 12, 16, 16])
    """

    def make_layer(self, c_in: int, c_out: int, index: int) -> nn.Conv2d:
        kernel = 1 if index > 0 else 3
        return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)
