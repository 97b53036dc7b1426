"""zuko's flows as conditional flows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from ..bases import Base
from .common import (
    Condition,
    ConditionSpec,
    GuestBase,
    GuestFlow,
    anchor,
    gaussian,
    require,
    seeded,
)


class ZukoFlow(GuestFlow):
    """A `zuko.flows.Flow` as a :class:`ConditionalFlow`; needs the extra `zuko`.

    zuko's transforms map inputs to latents, so calling one is `encode`. Inputs of any shape are
    flattened to features. Where zuko's own inverse evaluates each net twice for its
    log-determinant, `decode` evaluates it once.

    Importing zuko changes `torch.distributions` for the whole process; this package leaves that
    to the user who imports it.

    Arguments:
        flow: The flow, whose `context` is the size of its condition.
        shape: The shape of one input.
        classes: The number of classes.
        base: The base density, that of the flow if `None`.
        squash: As for :class:`ConditionalFlow`.
        condition: As for :func:`freia_kd.flows.adapters.as_conditional_flow`; `None` for a flow
            without context.

    Raises:
        ImportError: If zuko is not installed.
        ValueError: If the shapes or the condition do not fit.
    """

    def __init__(
        self,
        flow: nn.Module,
        shape: tuple[int, ...],
        classes: int | None,
        base: Base | None = None,
        squash: nn.Module | None = None,
        condition: ConditionSpec = "one-hot",
    ) -> None:
        zuko = require("zuko", "zuko")
        if not isinstance(flow, zuko.lazy.Flow):
            raise TypeError(f"Expected a zuko.flows.Flow; got {type(flow).__name__}.")
        features = (math.prod(shape),)
        made = Condition(condition, classes)
        host_base = ZukoBase(flow, shape, made) if base is None else base
        super().__init__(shape, classes, host_base, squash, made, [features], [features])
        self.flow = flow
        self.probe()

    def host_decode(self, z: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        x, ladj = inverse_and_ladj(self.flow.transform(context), z[0])
        return [x], ladj

    def host_encode(self, x: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        z, ladj = self.flow.transform(context).call_and_ladj(x[0])
        return [z], _per_row(ladj)


class ZukoBase(GuestBase):
    """The base distribution of a zuko flow."""

    def __init__(self, flow: nn.Module, shape: tuple[int, ...], condition: Condition) -> None:
        unconditional = require("zuko", "zuko").lazy.UnconditionalDistribution
        conditional = condition.spec is not None and not isinstance(flow.base, unconditional)
        super().__init__(flow, shape, condition, conditional)

    def density(self, z: Tensor, context: Any) -> Tensor:
        return _per_row(self.host.base(context).log_prob(z.flatten(1)))

    def draw(
        self, n: int, context: Any, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        base: Distribution = self.host.base(context)
        if isinstance(base, Independent) and isinstance(base.base_dist, Normal):
            loc, std = base.base_dist.loc, base.base_dist.scale
            rows = (loc, std) if loc.ndim > 1 else (loc[None], std[None])
            return gaussian(n, *rows, temperature, generator)
        self._refuse(temperature, base)
        with seeded(generator, anchor(self.host).device):
            return base.sample() if base.batch_shape else base.sample(torch.Size((n,)))


def inverse_and_ladj(transform: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""The inverse of a zuko transform with its log-determinant, each net evaluated once.

    Arguments:
        transform: A transform from `x` to `y`.
        y: Values with shape `(B, D)`.

    Returns:
        `x` with shape `(B, D)` and :math:`\log|\det \partial x/\partial y|` with shape `(B,)`.
    """
    from zuko.transforms import AutoregressiveTransform, ComposedTransform, CouplingTransform

    if isinstance(transform, ComposedTransform):
        total = y.new_zeros(y.shape[0])
        for part in reversed(transform.transforms):
            y, ladj = inverse_and_ladj(part, y)
            total = total + ladj
        return y, total
    if isinstance(transform, CouplingTransform):
        kept, changed = transform.split(y)
        part, ladj = inverse_and_ladj(transform.meta(kept), changed)
        return transform.merge(kept, part, y.shape), ladj
    if isinstance(transform, AutoregressiveTransform):
        # The last pass sees final values wherever its parameters depend on them.
        x = torch.zeros_like(y)
        for _ in range(transform.passes - 1):
            x = transform.meta(x).inv(y)
        return inverse_and_ladj(transform.meta(x), y)
    x, ladj = transform.inv.call_and_ladj(y)
    return x, _per_row(ladj)


def _per_row(ladj: Tensor) -> Tensor:
    return ladj.flatten(1).sum(1) if ladj.ndim > 1 else ladj
