"""nflows' flows as conditional flows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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


class NflowsFlow(GuestFlow):
    """An `nflows.flows.Flow` as a :class:`ConditionalFlow`; needs the extra `nflows`.

    nflows' transforms map inputs to latents, so calling one is `encode`. Both directions rest on
    names that are private in nflows 0.14, since its public interface gives no log-determinants.

    Arguments:
        flow: The flow; the condition goes through its embedding net.
        shape: The shape of one input.
        classes: The number of classes.
        base: The base density, that of the flow if `None`.
        squash: As for :class:`ConditionalFlow`.
        condition: As for :func:`freia_kd.flows.adapters.as_conditional_flow`; `None` for a flow
            without context.

    Raises:
        ImportError: If nflows is not installed.
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
        if not isinstance(flow, require("nflows.flows", "nflows").Flow):
            raise TypeError(f"Expected an nflows.flows.Flow; got {type(flow).__name__}.")
        made = Condition(condition, classes)
        host_base = NflowsBase(flow, shape, made) if base is None else base
        latent = tuple(getattr(flow._distribution, "_shape", shape))
        super().__init__(shape, classes, host_base, squash, made, [shape], [latent])
        self.flow = flow
        self.probe()

    def host_decode(self, z: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        embedded = self.flow._embedding_net(context)
        x, ladj = self.flow._transform.inverse(z[0], context=embedded)
        return [x], ladj

    def host_encode(self, x: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        embedded = self.flow._embedding_net(context)
        z, ladj = self.flow._transform(x[0], context=embedded)
        return [z], ladj


class NflowsBase(GuestBase):
    """The base distribution of an nflows flow."""

    def __init__(self, flow: nn.Module, shape: tuple[int, ...], condition: Condition) -> None:
        normal = require("nflows.distributions.normal", "nflows")
        constant = isinstance(flow._distribution, normal.StandardNormal | normal.DiagonalNormal)
        super().__init__(flow, shape, condition, condition.spec is not None and not constant)

    def density(self, z: Tensor, context: Any) -> Tensor:
        host = self.host._distribution
        z = z.reshape(len(z), *getattr(host, "_shape", self.shape))
        return host.log_prob(z, context=self._embed(context))

    def draw(
        self, n: int, context: Any, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        host = self.host._distribution
        embedded = self._embed(context)
        moments = self._moments(embedded)
        if moments is not None:
            return gaussian(n, *moments, temperature, generator)
        self._refuse(temperature, host)
        with seeded(generator, anchor(self.host).device):
            if embedded is None:
                return host.sample(n)
            return host.sample(1, context=embedded).squeeze(1)

    def _embed(self, context: Any) -> Tensor | None:
        return None if context is None else self.host._embedding_net(context)

    def _moments(self, embedded: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The mean and standard deviation of a diagonal Gaussian (nflows draws in float32)."""
        normal = require("nflows.distributions.normal", "nflows")
        host, like = self.host._distribution, anchor(self.host)
        if isinstance(host, normal.StandardNormal):
            return like.new_zeros(1, *host._shape), like.new_ones(1, *host._shape)
        if isinstance(host, normal.DiagonalNormal):
            mean, log_std = host.mean_, host.log_std_
        elif isinstance(host, normal.ConditionalDiagonalNormal):
            mean, log_std = host._compute_params(embedded)
        else:
            return None
        return mean, log_std.exp()
