"""Layers that normflows lacks: conditional affine coupling and conditional Glow, from FrEIA blocks.

They follow normflows' conventions: `forward(z, context=None)` maps latents to data, `inverse` the
other way, and both return the value and the log-determinant of the direction evaluated, with
shape `(B,)`. They go into `normflows.ConditionalNormalizingFlow`, or, made with `context=0`, into
any other model of normflows.
"""

from __future__ import annotations

from functools import partial

import torch
from FrEIA.modules import InvertibleModule
from normflows.flows import Flow
from torch import Tensor, nn

from .adapters.common import as_log_det
from .adapters.freia import fit_condition
from .blocks import AffineCoupling, ClassAffine, Conv1x1, keep_constants
from .contract import one_hot
from .subnets import ConvSubnet, DenseSubnet


class FreiaLayer(Flow):
    """A FrEIA block as a layer of normflows.

    FrEIA's forward direction is from data to latents, that of normflows from latents to data.

    Arguments:
        block: Any `FrEIA.modules.InvertibleModule` with one input and one output, and at most one
            condition.
        context: The number of context features, 0 for a block without a condition. Such a block
            ignores the context that the model gives to all layers.

    Raises:
        ValueError: If the block has several inputs or conditions, or no condition for a context.

    Example:
        >>> import torch
        >>> layer = FreiaLayer(ClassAffine([(2,)], [(3,)], classes=3), context=3)
        >>> x, log_det = layer(torch.zeros(4, 2), context=torch.tensor([0, 1, 2, 0]))
        >>> x.shape, log_det.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    def __init__(self, block: InvertibleModule, context: int = 0) -> None:
        super().__init__()
        if len(block.dims_in) != 1 or len(block.dims_c) != bool(context):
            raise ValueError(
                f"Expected a block with one input and {int(bool(context))} conditions for "
                f"{context} context features; got {block.dims_in} and {block.dims_c}."
            )
        keep_constants(block)
        self.block = block
        self.context = context

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Maps latents to data.

        Arguments:
            z: Latents with the shape `(B, *shape)`.
            context: Features with shape `(B, context)`, or class indices with shape `(B,)`.

        Returns:
            `x` and :math:`\log|\det \partial x/\partial z|` with shape `(B,)`.

        Raises:
            ValueError: If the context is missing or does not fit.
        """
        return self._call(z, context, rev=True)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Maps data to latents, with :math:`\log|\det \partial z/\partial x|`."""
        return self._call(z, context, rev=False)

    def _call(self, value: Tensor, context: Tensor | None, rev: bool) -> tuple[Tensor, Tensor]:
        if not self.context:
            (out,), ladj = self.block((value,), rev=rev)
        else:
            features = self._features(context, value)
            condition = fit_condition(features, tuple(self.block.dims_c[0]))
            (out,), ladj = self.block((value,), c=[condition], rev=rev)
        return out, as_log_det(ladj, value)

    def _features(self, context: Tensor | None, value: Tensor) -> Tensor:
        if context is not None and context.ndim == 1 and not context.is_floating_point():
            context = one_hot(context, self.context)
        expected = (value.shape[0], self.context)
        if context is None or tuple(context.shape) != expected:
            got = None if context is None else tuple(context.shape)
            raise ValueError(
                f"Expected a context with shape {expected}, or class indices with shape "
                f"({value.shape[0]},) and an integer dtype; got {got}."
            )
        return context.to(value.dtype)


class ConditionalAffineCoupling(FreiaLayer):
    r"""An affine coupling whose scale and shift depend on the context.

    .. math:: x_1 = z_1, \qquad x_2 = (z_2 - t(z_1, c))\, e^{-s(z_1, c)}

    where :math:`z_1` is the first half of the channels and :math:`s` is bounded by the clamp. It
    is :class:`~freia_kd.flows.blocks.AffineCoupling`. The context is a bias of every hidden layer
    of the subnet, which costs the same at all image sizes. It starts as the identity. As always in
    normflows, put a `Permute` or another mixing layer between two of them.

    Arguments:
        shape: The shape of one input, `(D,)` or `(C, H, W)`.
        context: The number of context features, 0 for none.
        hidden_features: The width of the subnet.
        clamp: The bound of :math:`|s|`.

    Raises:
        ValueError: If there are fewer than two channels.

    References:
        | Density estimation using Real NVP (Dinh et al., 2017), equations 7 and 8
        | Guided Image Generation with Conditional Invertible Neural Networks
        | (Ardizzone et al., 2019), section 3.1

    Example:
        >>> import normflows, torch
        >>> layers = [
        ...     ConditionalAffineCoupling((2,), context=3),
        ...     normflows.flows.Permute(2, mode="swap"),
        ...     ConditionalAffineCoupling((2,), context=3),
        ... ]
        >>> base = normflows.distributions.DiagGaussian(2)
        >>> model = normflows.ConditionalNormalizingFlow(base, layers)
        >>> model.log_prob(torch.zeros(4, 2), context=torch.tensor([0, 1, 2, 0])).shape
        torch.Size([4])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        context: int,
        hidden_features: int = 64,
        clamp: float = 1.0,
    ) -> None:
        if shape[0] < 2:
            raise ValueError(f"Expected at least two channels to couple; got the shape {shape}.")
        conditions = [(context,)] if context else []
        subnet = partial(
            DenseSubnet if len(shape) == 1 else ConvSubnet,
            classes=context,
            planes=0,
            hidden_features=hidden_features,
        )
        block = AffineCoupling([shape], conditions, subnet_constructor=subnet, clamp=clamp)
        super().__init__(block, context)


class ConditionalGlowBlock(Flow):
    r"""A step of Glow whose coupling and scales depend on the context.

    From data to latents: a scale and shift of each channel that are functions of the context
    (:class:`~freia_kd.flows.blocks.ClassAffine`, in place of Glow's ActNorm, so that no first
    batch decides about it), a learned invertible 1x1 convolution
    (:class:`~freia_kd.flows.blocks.Conv1x1`) and a :class:`ConditionalAffineCoupling`.

    Arguments:
        shape: The shape of one input, `(C, H, W)`, or `(D,)` with a linear map for a convolution.
        context: The number of context features, 0 for none.
        hidden_features: The width of the subnet.
        clamp: The bound of the log-scales.

    Raises:
        ValueError: If there are fewer than two channels.

    References:
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018),
        | table 1, with the condition of Ardizzone et al. (2019)

    Example:
        >>> import normflows, torch
        >>> layers = [ConditionalGlowBlock((4, 2, 2), context=3) for _ in range(2)]
        >>> base = normflows.distributions.DiagGaussian((4, 2, 2))
        >>> model = normflows.ConditionalNormalizingFlow(base, layers)
        >>> x, log_q = model.sample(3, context=torch.eye(3))
        >>> x.shape, log_q.shape
        (torch.Size([3, 4, 2, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        context: int,
        hidden_features: int = 64,
        clamp: float = 1.0,
    ) -> None:
        super().__init__()
        dims = [tuple(shape)]
        labels = [(context,)] if context else []
        rotation = nn.init.orthogonal_(torch.empty(shape[0], shape[0]))
        self.layers = nn.ModuleList(  # in normflows' order, from latents to data
            [
                ConditionalAffineCoupling(shape, context, hidden_features, clamp),
                FreiaLayer(Conv1x1(dims, initial=rotation)),
                FreiaLayer(
                    ClassAffine(dims, labels, classes=context or None, clamp=clamp), context
                ),
            ]
        )

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Maps latents to data: `x` and :math:`\log|\det \partial x/\partial z|`, `(B,)`."""
        ladj = z.new_zeros(z.shape[0])
        for layer in self.layers:
            z, part = layer(z, context)
            ladj = ladj + part
        return z, ladj

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Maps data to latents, with :math:`\log|\det \partial z/\partial x|`, `(B,)`."""
        ladj = z.new_zeros(z.shape[0])
        for layer in list(self.layers)[::-1]:
            z, part = layer.inverse(z, context)  # type: ignore[operator]
            ladj = ladj + part
        return z, ladj
