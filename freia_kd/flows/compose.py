"""One's own invertible net: a builder over FrEIA modules, and the flow made of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn

from .bases import Base, GaussianBase, full_precision
from .blocks import (
    AffineCoupling,
    Block,
    ClassAffine,
    Dims,
    Haar,
    Output,
    Partial,
    Permute,
    Squeeze,
    keep_constants,
    label_dims,
    pack_labels,
    unpack_labels,
)
from .contract import ConditionalFlow, mapped
from .rational_quadratic import SplineCoupling
from .squash import Squash, make_squash
from .subnets import ConvSubnet, DenseSubnet


class INN(Block):
    r"""A sequence of FrEIA modules, conditioned on classes at every resolution.

    It is a FrEIA module itself: forward is from inputs to latents. The one condition are labels
    with shape `(B, classes)`. The blocks of this package get them as they are, the others packed
    for their own shape (see :func:`freia_kd.flows.blocks.pack_labels`), which FrEIA leaves to its
    callers. The modules keep the order in which they were appended, in every process.

    Arguments:
        dims_in: The shape of the input, as a list with one entry.
        dims_c: Ignored, as it follows from `classes`.
        classes: The number of classes; 0 for a net without condition.

    Example:
        >>> inn = INN([(1, 8, 8)], classes=10).append(Squeeze).coupling(hidden_features=16)
        >>> half = INN([(2, 4, 4)], classes=10).coupling(hidden_features=16)
        >>> inn = inn.split(half).append(Squeeze, undo=True)
        >>> (z,), ladj = inn([torch.rand(5, 1, 8, 8)], c=[torch.eye(10)[:5]])
        >>> z.shape, ladj.shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """

    takes_labels = True

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None, *, classes: int = 0) -> None:
        super().__init__(dims_in, [(classes,)] if classes else None)
        self.classes = classes
        self.blocks = nn.ModuleList()
        self.dims: tuple[int, ...] = tuple(self.dims_in[0])
        """The shape of the output so far."""

    def append(
        self, module_class: type[InvertibleModule], conditional: bool = False, **options: Any
    ) -> INN:
        """Appends a FrEIA module, made for the present shape; returns this net.

        Arguments:
            module_class: A class with FrEIA's signature.
            conditional: Whether the module gets the labels as its condition. Ignored in a net
                without classes.
            options: Keyword arguments of the class.

        Raises:
            ValueError: If the module has several outputs.
        """
        if conditional and self.classes:
            labels = (self.classes,)
            raw = issubclass(module_class, Block) and module_class.takes_labels
            options["dims_c"] = [labels if raw else label_dims(self.classes, self.dims)]
        block = module_class([self.dims], **options)
        out = block.output_dims([self.dims])
        if len(out) != 1:
            raise ValueError(f"Expected a module with one output; got {out}.")
        keep_constants(block)
        self.blocks.append(block)
        self.dims = tuple(out[0])
        return self

    def coupling(
        self,
        module_class: type[InvertibleModule] = AffineCoupling,
        *,
        hidden_features: int = 256,
        layers: int = 2,
        bf16: bool = False,
        clamp: float = 1.0,
        **options: Any,
    ) -> INN:
        """Appends a coupling block with class-conditional subnets; returns this net.

        Arguments:
            module_class: :class:`~freia_kd.flows.blocks.AffineCoupling`, or one of FrEIA's coupling
                blocks with a `clamp`.
            hidden_features: The width of the subnets.
            layers: The number of hidden layers of the subnets.
            bf16: Whether the subnets compute in bfloat16.
            clamp: The bound of the log-scales, at most 1 for deep nets.
            options: Further keyword arguments of the class.
        """
        self._check_channels()
        raw = issubclass(module_class, Block) and module_class.takes_labels
        if not raw:
            options["clamp_activation"] = "TANH"  # the default of FrEIA cannot be pickled
        subnets = self.subnets(hidden_features, layers, bf16, packed=not raw)
        return self.append(
            module_class, conditional=True, subnet_constructor=subnets, clamp=clamp, **options
        )

    def spline(
        self,
        *,
        bins: int = 8,
        bound: float = 5.0,
        hidden_features: int = 256,
        layers: int = 2,
        bf16: bool = False,
    ) -> INN:
        """Appends a one-sided :class:`~freia_kd.flows.rational_quadratic.SplineCoupling`."""
        self._check_channels()
        return self.append(
            SplineCoupling,
            conditional=True,
            subnet_constructor=self.subnets(hidden_features, layers, bf16),
            bins=bins,
            bound=bound,
        )

    def _check_channels(self) -> None:
        if self.dims[0] < 2:
            what = "dimensions" if len(self.dims) == 1 else "channels"
            raise ValueError(
                f"Expected at least 2 {what} to couple; got {self.dims[0]}, in the shape "
                f"{self.dims}."
            )

    def subnets(
        self, hidden_features: int, layers: int, bf16: bool, packed: bool = True
    ) -> Callable[..., nn.Module]:
        """A constructor of class-conditional subnets for the present shape.

        Arguments:
            hidden_features: The width of the subnets.
            layers: The number of hidden layers.
            bf16: Whether they compute in bfloat16.
            packed: Whether labels come packed among the channels.
        """
        return functools.partial(
            DenseSubnet if len(self.dims) == 1 else ConvSubnet,
            classes=self.classes,
            planes=label_dims(self.classes, self.dims)[0] if packed and self.classes else 0,
            hidden_features=hidden_features,
            layers=layers,
            bf16=bf16,
        )

    def affine(self, clamp: float = 1.0) -> INN:
        """Appends a :class:`~freia_kd.flows.blocks.ClassAffine`; returns this net."""
        classes = {"classes": self.classes} if self.classes else {}
        return self.append(ClassAffine, conditional=True, clamp=clamp, **classes)

    def split(self, inner: INN) -> INN:
        """Appends a net for the last channels only, the others being factored out; returns this.

        Arguments:
            inner: The net. Its channels are those that go on.
        """
        keep = self.dims[0] - inner.dims_in[0][0]
        return self.append(Partial, conditional=True, keep=keep, inner=inner)

    def output_dims(self, input_dims: Dims) -> Dims:
        return [self.dims]

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> Output:
        labels: Tensor | None = None
        if self.classes:
            if c is None or len(c) != 1:
                raise ValueError("Expected one condition, the labels; got none or several.")
            labels = unpack_labels(c[0], self.classes)
        value = tuple(x_or_z)
        total = value[0].new_zeros(value[0].shape[0])
        blocks: list[Any] = list(self.blocks)
        for block in reversed(blocks) if rev else blocks:
            options: dict[str, Any] = {}
            if block.dims_c:
                dims = tuple(block.dims_c[0])
                options["c"] = [labels if dims == (self.classes,) else self._packed(labels, dims)]
            value, ladj = block(value, rev=rev, jac=jac, **options)
            total = total + ladj
        return value, total

    @staticmethod
    def _packed(labels: Tensor | None, dims: tuple[int, ...]) -> Tensor:
        assert labels is not None, "only a net with classes has conditional blocks"
        return pack_labels(labels, dims)


def multiscale(
    dims: tuple[int, ...],
    classes: int,
    levels: int | None,
    fill: Callable[[INN], None],
    halvings: int = 0,
    detail: Callable[[INN], object] | None = None,
) -> INN:
    """A multi-scale net: squeeze, `fill`, go on with half of the channels, unsqueeze.

    Arguments:
        dims: The shape `(C, H, W)` of the input; for a vector with shape `(D,)` there is one scale,
            and no squeezing.
        classes: The number of classes; 0 for a net without condition.
        levels: The number of scales; by default 3, or as many as the height and width allow.
        fill: Appends the modules of one scale.
        halvings: How often the image is first halved by :class:`~freia_kd.flows.blocks.Haar`. The
            scales are those of the small image; each set of details gets what `detail` appends, so
            that parameters grow with the logarithm of the side.
        detail: Appends a coupling of the last three quarters of the channels, the details, by the
            first quarter, the small image.

    Raises:
        ValueError: If the height or width cannot be divided that often.
    """
    if len(dims) == 1:
        inn = INN([dims], classes=classes)
        fill(inn)
        return inn
    if halvings and detail is not None:
        inn = INN([dims], classes=classes).append(Haar)
        channels = inn.dims[0]
        small = (channels // 4, *inn.dims[1:])
        inn.split(multiscale(small, classes, levels, fill, halvings - 1, detail))
        order = torch.arange(channels).roll(channels // 4)
        detail(inn.append(Permute, permutation=order))
        return inn.append(Permute, permutation=order.argsort()).append(Haar, undo=True)
    possible = min((n & -n).bit_length() - 1 for n in dims[1:])  # factors of two
    if possible == 0:
        raise ValueError(
            f"Expected an even height and width; got {dims[1:]}. Pad or resize the images, or use "
            "a flow without scales, such as NICE."
        )
    levels = min(3, possible) if levels is None else levels
    if not 1 <= levels <= possible:
        raise ValueError(
            f"Expected a height and width that can be halved {max(levels, 1)} times; got "
            f"{dims[1:]}. Use levels between 1 and {possible}, or pad or resize the images."
        )
    inn = INN([dims], classes=classes).append(Squeeze)
    fill(inn)
    if levels > 1:
        rest = (inn.dims[0] // 2, *inn.dims[1:])
        inn.split(multiscale(rest, classes, levels - 1, fill))
    return inn.append(Squeeze, undo=True)


class INNFlow(ConditionalFlow):
    r"""An invertible net of FrEIA modules as a conditional flow.

    Arguments:
        inn: A FrEIA module with one input and one output of equal size (forward is from inputs to
            latents) that takes labels with shape `(B, classes)` as its one condition, if any.
        shape: The shape of one input: `(C, H, W)` for images in [0, 1], or `(D,)`.
        classes: The number of classes; `None` for a flow without a condition.
        base: The base density; a standard Gaussian by default.
        squash: What maps unbounded values to pixels, see :func:`.squash.make_squash`; by default
            a squash that covers the range of the base.
        alpha: The `alpha` of the squash; by default its own.
        whiten: Whether the net works in the whitened coordinates of the base. It then is
            :math:`u = W^{-1} g(W z)`, and the log-determinants of `W` cancel.
        channels_last: Whether images are laid out with the channels last.
        compile: Whether the net is compiled by `torch.compile` when it is first used.

    Raises:
        ValueError: If the net, the base or the squash does not fit the shape.

    Example:
        >>> flow = INNFlow(INN([(2,)], classes=3).coupling(), (2,), 3)
        >>> flow.sample(torch.tensor([0, 2])).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        inn: InvertibleModule,
        shape: Sequence[int],
        classes: int | None,
        base: Base | None = None,
        *,
        squash: Squash = "auto",
        alpha: float | None = None,
        whiten: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        shape = tuple(shape)
        base = GaussianBase(shape) if base is None else base
        made = make_squash(squash, shape, base.squash_tail, alpha)
        super().__init__(shape, classes, base, made)
        if base.shape != shape:
            raise ValueError(f"Expected a base over {shape}; got one over {base.shape}.")
        sizes = [math.prod(d) for d in (*inn.dims_in, *inn.output_dims(inn.dims_in))]
        if sizes != [math.prod(shape)] * 2:
            raise ValueError(
                f"Expected a net with one input and one output of {math.prod(shape)} values each; "
                f"got sizes {sizes}."
            )
        if inn.dims_c and not self.classes:
            raise ValueError("Expected classes for a net with a condition; got none.")
        self.inn = inn
        self.whiten = whiten
        self.channels_last = channels_last
        if compile:
            self.inn.compile()

    def check(self, value: Tensor, c: Tensor | None = None) -> None:
        super().check(value, c)
        for parameter in self.inn.parameters():
            if value.dtype != parameter.dtype:
                raise ValueError(
                    f"Expected values of {parameter.dtype}, as the flow's parameters; got "
                    f"{value.dtype}. Convert the values, or the flow by flow.to({value.dtype})."
                )
            break

    def run(self, value: Tensor, c: Tensor | None, rev: bool) -> tuple[Tensor, Tensor]:
        conditions = [] if c is None or not self.inn.dims_c else [self.soft(c, value.dtype)]
        n = value.shape[0]
        dims = self.inn.output_dims(self.inn.dims_in)[0] if rev else self.inn.dims_in[0]
        # Under the caller's autocast only the subnets lose precision.
        if self.whiten:
            with full_precision(value):
                value = self.base.whiten(value)
        value = value.reshape(n, *dims)
        if self.channels_last and value.ndim == 4 and not mapped(value):
            value = value.contiguous(memory_format=torch.channels_last)
        (y,), ladj = self.inn([value], c=conditions, rev=rev)
        y = y.reshape(n, *self.shape)
        ladj = torch.as_tensor(ladj, dtype=y.dtype, device=y.device).expand(n)
        if self.whiten:
            with full_precision(y):
                y = self.base.unwhiten(y)
        return y, ladj

    def decode_unbounded(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.run(z, c, rev=True)

    def encode_unbounded(self, u: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.run(u, c, rev=False)


class Composition(ConditionalFlow):
    r"""Flows one after the other, as one: :math:`u = f_n(\dots f_1(z))`.

    The base is that of the first, the squash that of the last; what lies between is left out.
    Log-determinants add up. Any flows will do, external ones of other libraries too.

    Arguments:
        flows: The flows, from latents to inputs, all over one shape and one number of classes.

    Raises:
        ValueError: If there are none, or they do not fit together.

    Example:
        >>> from freia_kd.flows import NICE, NSF
        >>> flow = Composition(NICE((2,), classes=3), NSF((2,), classes=3))
        >>> flow.log_prob(flow.sample(4), torch.tensor([0, 1, 2, 0])).shape
        torch.Size([4])
    """

    def __init__(self, *flows: ConditionalFlow) -> None:
        kinds = sorted({(flow.shape, flow.classes) for flow in flows})
        if len(kinds) != 1:
            raise ValueError(f"Expected flows over one shape and number of classes; got {kinds}.")
        first, last = flows[0], flows[-1]
        super().__init__(first.shape, first.classes, first.base, last.squash)
        self.flows = nn.ModuleList(flows)

    def decode_unbounded(self, z: Tensor, c: Any = None) -> tuple[Tensor, Tensor]:
        ladj = z.new_zeros(z.shape[0])
        for flow in self.flows:
            z, part = flow.decode_unbounded(z, c)  # type: ignore[operator]
            ladj = ladj + part
        return z, ladj

    def encode_unbounded(self, u: Tensor, c: Any = None) -> tuple[Tensor, Tensor]:
        ladj = u.new_zeros(u.shape[0])
        for flow in reversed(list(self.flows)):
            u, part = flow.encode_unbounded(u, c)  # type: ignore[operator]
            ladj = ladj + part
        return u, ladj

    def base_log_prob(self, z: Tensor, c: Any = None) -> Tensor:
        return self.flows[0].base_log_prob(z, c)  # type: ignore[operator]

    def sample_base(
        self, c: Any, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.flows[0].sample_base(c, temperature, generator)  # type: ignore[operator]
