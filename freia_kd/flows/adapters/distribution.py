"""Conditional flows as distributions of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..contract import ConditionalFlow


class FlowDistribution(Distribution):
    r"""The densities :math:`p_X(x|c)` of a flow for `B` conditions, as one distribution.

    `batch_shape` is `(B,)` and `event_shape` the shape of one input. Without conditions it is the
    flow's only density, or the mixture of its classes, and `batch_shape` is `()`.

    Arguments:
        flow: The flow.
        c: Class indices with shape `(B,)` or soft labels with shape `(B, classes)`, or `None`.
        validate_args: Whether `log_prob` refuses inputs outside `support`.

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

    def __init__(
        self, flow: ConditionalFlow, c: Tensor | None = None, validate_args: bool = True
    ) -> None:
        if c is not None:
            flow.check_condition(c, c.shape[0] if c.ndim else 0)
        batch = torch.Size(() if c is None else c.shape[:1])
        super().__init__(batch, torch.Size(flow.shape), validate_args=False)
        self.flow = flow
        self.c = c
        self._check = validate_args

    @property
    def support(self) -> constraints.Constraint:
        """The flow's own: pixels from 0 to 1 (or as the squash has it), real numbers if not."""
        low, high = self.flow.support
        one = constraints.real if low == -math.inf else constraints.interval(low, high)
        return constraints.independent(one, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same densities for a larger `batch_shape`, as PyTorch's distributions have it."""
        new = self._get_checked_instance(FlowDistribution, _instance)
        new.flow, new.c, new._check = self.flow, self.c, self._check
        if self.c is not None:
            event = self.c.shape[1:]
            new.c = self.c.reshape(*self.batch_shape, *event).expand(*batch_shape, *event)
            new.c = new.c.reshape(-1, *event)
        Distribution.__init__(
            new, torch.Size(batch_shape), torch.Size(self.event_shape), validate_args=False
        )
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density in nats.

        Arguments:
            value: Inputs with a shape that broadcasts to `(*sample_shape, B, *event_shape)`.

        Returns:
            A tensor with shape `(*sample_shape, B)`.

        Raises:
            ValueError: If a value lies outside the support.
        """
        leading = value.shape[: value.ndim - len(self.event_shape)]
        shape = torch.broadcast_shapes(leading, self.batch_shape)
        x = value.expand(*shape, *self.event_shape).reshape(math.prod(shape), *self.event_shape)
        if self.c is None:
            log_prob = self.flow.log_marginal(x, check=self._check)
        else:
            log_prob = self.flow.log_prob(x, self._conditions(shape), check=self._check)
        return log_prob.reshape(shape)

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
        c = math.prod(shape) if self.c is None else self._conditions(shape)
        x = self.flow.sample(c, temperature, generator)
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
        assert self.c is not None
        event = self.c.shape[1:]
        c = self.c.reshape(*self.batch_shape, *event)
        return c.expand(*shape, *event).reshape(math.prod(shape), *event)


def as_distribution(
    flow: ConditionalFlow, c: Tensor | None = None, validate_args: bool = True
) -> FlowDistribution:
    """A flow, given conditions or none, as a `torch.distributions.Distribution`.

    Arguments as those of :class:`FlowDistribution`.
    """
    return FlowDistribution(flow, c, validate_args)
