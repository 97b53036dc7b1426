"""One's own invertible net: a builder over FrEIA modules, and the flow made of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AffineCouplingOneSided, InvertibleModule
from torch import Tensor, nn

from .bases import Base, GaussianBase
from .blocks import (
    Block,
    BoundedLogit,
    ClassAffine,
    Dims,
    Output,
    Partial,
    Squeeze,
    label_dims,
    pack_labels,
    unpack_labels,
)
from .contract import ConditionalFlow
from .rational_quadratic import SplineCoupling
from .subnets import ConvSubnet, DenseSubnet


class INN(Block):
    r"""A sequence of FrEIA modules, conditioned on classes at every resolution.

    It is a FrEIA module itself: forward is from inputs to latents. The one condition are labels
    with shape `(B, classes)`, or packed ones; each module gets them packed for its own shape (see
    :func:`freia_kd.flows.blocks.pack_labels`), which FrEIA leaves to its callers. The modules keep
    the order in which they were appended, in every process.

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

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None, *, classes: int = 0) -> None:
        super().__init__(dims_in, [(classes,)] if classes else None)
        self.classes = classes
        self.sequence = SequenceINN(*self.dims_in[0], force_tuple_output=True)
        self.resolutions: list[tuple[int, ...]] = []

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of the output so far."""
        return tuple(self.sequence.shapes[-1])

    def append(
        self, module_class: type[InvertibleModule], conditional: bool = False, **options: Any
    ) -> INN:
        """Appends a FrEIA module, made for the present shape; returns this net.

        Arguments:
            module_class: A class with FrEIA's signature.
            conditional: Whether the module gets the packed labels as its condition. Ignored in a
                net without classes.
            options: Keyword arguments of the class.
        """
        if conditional and self.classes:
            packed = label_dims(self.classes, self.dims)
            if packed not in self.resolutions:
                self.resolutions.append(packed)
            options |= {"cond": self.resolutions.index(packed), "cond_shape": packed}
        self.sequence.append(module_class, **options)
        return self

    def coupling(
        self,
        module_class: type[InvertibleModule] = AffineCouplingOneSided,
        *,
        hidden_features: int = 256,
        layers: int = 2,
        bf16: bool = False,
        clamp: float = 1.0,
        **options: Any,
    ) -> INN:
        """Appends a coupling block of FrEIA with class-conditional subnets; returns this net.

        Arguments:
            module_class: One of FrEIA's coupling blocks with a `clamp`.
            hidden_features: The width of the subnets.
            layers: The number of hidden layers of the subnets.
            bf16: Whether the subnets compute in bfloat16.
            clamp: The bound of the log-scales, at most 1 for deep nets.
            options: Further keyword arguments of the class.
        """
        return self.append(
            module_class,
            conditional=True,
            subnet_constructor=self.subnets(hidden_features, layers, bf16),
            clamp=clamp,
            clamp_activation="TANH",  # the default of FrEIA cannot be pickled
            **options,
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
        return self.append(
            SplineCoupling,
            conditional=True,
            subnet_constructor=self.subnets(hidden_features, layers, bf16),
            bins=bins,
            bound=bound,
        )

    def subnets(self, hidden_features: int, layers: int, bf16: bool) -> Callable[..., nn.Module]:
        """A constructor of class-conditional subnets for the present shape."""
        return functools.partial(
            DenseSubnet if len(self.dims) == 1 else ConvSubnet,
            classes=self.classes,
            planes=label_dims(self.classes, self.dims)[0] if self.classes else 0,
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
        conditions: list[Tensor] = []
        if self.classes:
            if c is None or len(c) != 1:
                raise ValueError("Expected one condition, the labels; got none or several.")
            labels = unpack_labels(c[0], self.classes)
            conditions = [pack_labels(labels, dims) for dims in self.resolutions]
        return self.sequence(x_or_z, c=conditions, rev=rev, jac=jac)


def multiscale(
    dims: tuple[int, ...], classes: int, levels: int | None, fill: Callable[[INN], None]
) -> INN:
    """A multi-scale net: squeeze, `fill`, go on with half of the channels, unsqueeze.

    Arguments:
        dims: The shape `(C, H, W)` of the input; for a vector with shape `(D,)` there is one scale,
            and no squeezing.
        classes: The number of classes; 0 for a net without condition.
        levels: The number of scales; by default 3, or as many as the height and width allow.
        fill: Appends the modules of one scale.

    Raises:
        ValueError: If the height or width cannot be halved that often.
    """
    if len(dims) == 1:
        inn = INN([dims], classes=classes)
        fill(inn)
        return inn
    possible = min((n & -n).bit_length() - 1 for n in dims[1:])  # factors of two
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
        classes: The number of classes.
        base: The base density; a standard Gaussian by default.
        whiten: Whether the net works in the whitened coordinates of the base. It then is
            :math:`u = W^{-1} g(W z)`, and the log-determinants of `W` cancel.
        channels_last: Whether images are laid out with the channels last.
        compile: Whether the net is compiled by `torch.compile` when it is first used.

    Raises:
        ValueError: If the net or the base does not fit the shape.

    Example:
        >>> flow = INNFlow(INN([(2,)], classes=3).coupling(), (2,), 3)
        >>> flow.sample(torch.tensor([0, 2])).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        inn: InvertibleModule,
        shape: Sequence[int],
        classes: int,
        base: Base | None = None,
        *,
        whiten: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        shape = tuple(shape)
        base = GaussianBase(shape) if base is None else base
        super().__init__(shape, classes, base, BoundedLogit([shape]) if len(shape) == 3 else None)
        if base.shape != shape:
            raise ValueError(f"Expected a base over {shape}; got one over {base.shape}.")
        sizes = [math.prod(d) for d in (*inn.dims_in, *inn.output_dims(inn.dims_in))]
        if sizes != [math.prod(shape)] * 2:
            raise ValueError(
                f"Expected a net with one input and one output of {math.prod(shape)} values each; "
                f"got sizes {sizes}."
            )
        self.inn = inn
        self.whiten = whiten
        self.channels_last = channels_last
        if compile:
            self.inn.compile()

    def check(self, value: Tensor, c: Tensor) -> None:
        super().check(value, c)
        for parameter in self.inn.parameters():
            if value.dtype != parameter.dtype:
                raise ValueError(
                    f"Expected values of {parameter.dtype}, as the flow's parameters; got "
                    f"{value.dtype}. Convert the values, or the flow by flow.to(dtype)."
                )
            break

    def run(self, value: Tensor, c: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        conditions = [self.soft(c, value.dtype)] if self.inn.dims_c else []
        dims = self.inn.output_dims(self.inn.dims_in)[0] if rev else self.inn.dims_in[0]
        # Under the caller's autocast only the subnets lose precision.
        if self.whiten:
            with torch.autocast(value.device.type, enabled=False):
                value = self.base.whiten(value)
        value = value.reshape(-1, *dims)
        if self.channels_last and value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        (y,), ladj = self.inn([value], c=conditions, rev=rev)
        y = y.reshape(-1, *self.shape)
        ladj = torch.as_tensor(ladj, dtype=y.dtype, device=y.device).expand(len(y))
        if self.whiten:
            with torch.autocast(y.device.type, enabled=False):
                y = self.base.unwhiten(y)
        return y, ladj

    def decode_unbounded(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(z, c, rev=True)

    def encode_unbounded(self, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(u, c, rev=False)
