"""Conditional flows as distributions of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..contract import ConditionalFlow


class FlowDistribution(Distribution):
    r"""The densities :math:`p_X(x|c)` of a flow for `B` conditions, as one distribution.

    `batch_shape` is `(B,)` and `event_shape` the shape of one input.

    Arguments:
        flow: The flow.
        c: Class indices with shape `(B,)` or soft labels with shape `(B, classes)`.

    Raises:
        ValueError: If the condition does not fit the flow.

    Example:
        >>> from FrEIA.modules import PermuteRandom
        >>> from freia_kd.flows.adapters import as_conditional_flow
        >>> flow = as_conditional_flow(PermuteRandom([(2,)], seed=None), shape=(2,), classes=3)
        >>> distribution = FlowDistribution(flow, torch.tensor([0, 2]))
        >>> x = distribution.sample((5,))
        >>> x.shape, distribution.log_prob(x).shape
        (torch.Size([5, 2, 2]), torch.Size([5, 2]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, flow: ConditionalFlow, c: Tensor) -> None:
        flow.check(torch.zeros(len(c), *flow.shape), c)
        super().__init__(torch.Size((len(c),)), torch.Size(flow.shape), validate_args=False)
        self.flow = flow
        self.c = c

    @property
    def support(self) -> constraints.Constraint:
        """Pixels in [0, 1] if the flow has a squash, real numbers if not."""
        bounded = constraints.unit_interval if self.flow.squash is not None else constraints.real
        return constraints.independent(bounded, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density in nats.

        Arguments:
            value: Inputs with a shape that broadcasts to `(*sample_shape, B, *event_shape)`.

        Returns:
            A tensor with shape `(*sample_shape, B)`.
        """
        leading = value.shape[: value.ndim - len(self.event_shape)]
        shape = torch.broadcast_shapes(leading, self.batch_shape)
        x = value.expand(*shape, *self.event_shape).reshape(-1, *self.event_shape)
        return self.flow.log_prob(x, self._conditions(shape)).reshape(shape)

    def rsample(
        self,
        sample_shape: Sequence[int] = (),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws inputs with shape `(*sample_shape, B, *event_shape)`, differentiably.

        Arguments:
            sample_shape: How many for each condition.
            generator: The source of random numbers.
            temperature: See :meth:`ConditionalFlow.sample`.
        """
        shape = (*sample_shape, *self.batch_shape)
        x = self.flow.sample(self._conditions(shape), temperature, generator)
        return x.reshape(*shape, *self.event_shape)

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Like :meth:`rsample`, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator, temperature)

    def _conditions(self, shape: Sequence[int]) -> Tensor:
        event = self.c.shape[1:]
        return self.c.expand(*shape, *event).reshape(-1, *event)


def as_distribution(flow: ConditionalFlow, c: Tensor) -> FlowDistribution:
    """A flow, given conditions, as a `torch.distributions.Distribution`.

    Arguments:
        flow: The flow.
        c: Class indices with shape `(B,)` or soft labels with shape `(B, classes)`.
    """
    return FlowDistribution(flow, c)
