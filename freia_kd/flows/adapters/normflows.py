"""normflows' flows as conditional flows, and conditional flows as normflows' flows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import normflows
import torch
from normflows.distributions import BaseDistribution
from torch import Tensor, nn

from ..bases import Base
from ..contract import ConditionalFlow
from .common import (
    Condition,
    ConditionSpec,
    GuestBase,
    GuestFlow,
    anchor,
    as_log_det,
    gaussian,
    join,
    seeded,
    split,
)

MODELS = (
    normflows.NormalizingFlow,
    normflows.ConditionalNormalizingFlow,
    normflows.ClassCondFlow,
    normflows.MultiscaleFlow,
)


class NormflowsFlow(GuestFlow):
    """A normflows model as a :class:`ConditionalFlow`.

    What the class conditions:

    - `NormalizingFlow`: nothing, it is ignored;
    - `ConditionalNormalizingFlow`: every layer and the base, as the context;
    - `ClassCondFlow` and `MultiscaleFlow(class_cond=True)`: the base only. Soft labels mix the
      parameters of its classes, as normflows does.

    normflows' forward direction is `decode`. Log-determinants keep the dtype (normflows adds them
    up in float32), and the latents of a `MultiscaleFlow` are flattened into one tensor.

    Layers that initialise themselves from the first batch they see (`ActNorm`) do so here too:
    show them a batch in the direction you want before training.

    Arguments:
        flow: The model.
        shape: The shape of one input.
        classes: The number of classes.
        base: The base density, that of the model if `None`.
        squash: As for :class:`ConditionalFlow`; none is needed for a `MultiscaleFlow` whose own
            `transform` is a logit.
        condition: As for :func:`freia_kd.flows.adapters.as_conditional_flow`.

    Raises:
        ValueError: If the shapes or the condition do not fit.
    """

    native: ClassVar[Literal["encode", "decode"]] = "decode"  # planar flows have no inverse

    def __init__(
        self,
        flow: nn.Module,
        shape: tuple[int, ...],
        classes: int | None,
        base: Base | None = None,
        squash: nn.Module | None = None,
        condition: ConditionSpec = "one-hot",
    ) -> None:
        if not isinstance(flow, MODELS):
            names = ", ".join(model.__name__ for model in MODELS)
            raise TypeError(f"Expected one of normflows' {names}; got {type(flow).__name__}.")
        made = Condition(condition, classes, used=_is_conditional(flow))
        latents = [tuple(getattr(q, "shape", shape)) for q in _bases(flow)]
        host_base = NormflowsBase(flow, shape, made, latents) if base is None else base
        super().__init__(shape, classes, host_base, squash, made, [shape], latents)
        self.flow = flow
        self.probe()

    def host_decode(self, z: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        if isinstance(self.flow, normflows.MultiscaleFlow):
            x, ladj = self.flow.forward_and_log_det(z)
            return [x], ladj
        x, ladj = self._chain(z[0], list(self.flow.flows), context)
        return [x], ladj

    def host_encode(self, x: list[Tensor], context: Any) -> tuple[list[Tensor], Tensor | float]:
        if isinstance(self.flow, normflows.MultiscaleFlow):
            return self.flow.inverse_and_log_det(x[0])
        layers = [layer.inverse for layer in reversed(self.flow.flows)]
        z, ladj = self._chain(x[0], layers, context)
        return [z], ladj

    def _chain(self, value: Tensor, maps: list[Any], context: Any) -> tuple[Tensor, Tensor]:
        conditional = isinstance(self.flow, normflows.ConditionalNormalizingFlow)
        options = {"context": context} if conditional else {}
        total = value.new_zeros(value.shape[0])
        for layer in maps:
            value, ladj = layer(value, **options)
            total = total + as_log_det(ladj, value)
        return value, total


class NormflowsBase(GuestBase):
    """The base distribution of a normflows model, or all those of a multi-scale one.

    Temperature is that of normflows' Gaussian bases; other bases have none.
    """

    def __init__(
        self,
        flow: nn.Module,
        shape: tuple[int, ...],
        condition: Condition,
        latent_shapes: list[tuple[int, ...]],
    ) -> None:
        constant = all(isinstance(q, _CONSTANT) for q in _bases(flow))
        super().__init__(flow, shape, condition, condition.spec is not None and not constant)
        self.latent_shapes = latent_shapes

    def density(self, z: Tensor, context: Any) -> Tensor:
        parts = split(z, self.latent_shapes)
        given = () if context is None else (context,)
        bases = _bases(self.host)
        each = [as_log_det(q.log_prob(p, *given), z) for q, p in zip(bases, parts, strict=True)]
        return torch.stack(each).sum(0)

    def draw(
        self, n: int, context: Any, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        bases = _bases(self.host)
        return join([self._draw(q, n, context, temperature, generator) for q in bases], self.shape)

    def _draw(
        self,
        base: Any,
        n: int,
        context: Any,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        if isinstance(base, normflows.distributions.DiagGaussian):
            return gaussian(n, base.loc, base.log_scale.exp(), temperature, generator)
        given = () if context is None else (context,)
        with seeded(generator, anchor(self.host).device), _heated(self, base, temperature):
            return base(n, *given)[0]


_CONSTANT = (normflows.distributions.DiagGaussian, normflows.distributions.Uniform)


def _is_conditional(flow: nn.Module) -> bool:
    if isinstance(flow, normflows.MultiscaleFlow):
        return flow.class_cond
    return isinstance(flow, normflows.ConditionalNormalizingFlow | normflows.ClassCondFlow)


def _bases(flow: nn.Module) -> list[Any]:
    return list(flow.q0) if isinstance(flow, normflows.MultiscaleFlow) else [flow.q0]


@contextmanager
def _heated(host: NormflowsBase, base: Any, temperature: float) -> Iterator[None]:
    if temperature == 1:
        yield
        return
    if not hasattr(base, "temperature"):
        host._refuse(temperature, base)
    before = base.temperature
    base.temperature = temperature
    try:
        yield
    finally:
        base.temperature = before


class NormflowsLayer(normflows.flows.Flow):
    """A :class:`ConditionalFlow` as one layer of a `normflows.ConditionalNormalizingFlow`.

    Arguments:
        flow: The flow. `forward` is its `decode` and `inverse` its `encode`; the context holds
            class indices with shape `(B,)` or soft labels with shape `(B, classes)`.
    """

    def __init__(self, flow: ConditionalFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        r"""Maps latents to inputs: `x` and :math:`\log|\det \partial x/\partial z|`."""
        return self.flow.decode(z, context)

    def inverse(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        r"""Maps inputs to latents, with :math:`\log|\det \partial z/\partial x|`."""
        return self.flow.encode(z, context)


class NormflowsDistribution(BaseDistribution):
    """The base density of a :class:`ConditionalFlow` as a normflows base distribution.

    Arguments:
        flow: The flow, referred to but not registered.
    """

    def __init__(self, flow: ConditionalFlow) -> None:
        super().__init__()
        self.shape = flow.shape
        self._flow = (flow,)

    def forward(self, num_samples: int, context: Tensor) -> tuple[Tensor, Tensor]:
        """Draws one latent for each row of the context, with their log-densities.

        Raises:
            ValueError: If `num_samples` is not the number of rows.
        """
        if num_samples != len(context):
            raise ValueError(
                f"Expected num_samples = {len(context)}, one for each row of the "
                f"context; got {num_samples}."
            )
        z = self._flow[0].sample_base(context)
        return z, self._flow[0].base_log_prob(z, context)

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """The log-density of latents, with shape `(B,)`."""
        return self._flow[0].base_log_prob(z, context)


def as_normflows(
    flow: ConditionalFlow, target: nn.Module | None = None
) -> normflows.ConditionalNormalizingFlow:
    """A :class:`ConditionalFlow` as a `normflows.ConditionalNormalizingFlow`.

    All of normflows' methods work: `sample`, `log_prob`, `forward_kld` and, with a target,
    `reverse_kld`. Parameters are shared. To put more normflows layers around the flow, use
    :class:`NormflowsLayer`.

    Arguments:
        flow: The flow.
        target: normflows' target distribution `p`, if any.

    Example:
        >>> import FrEIA.framework, FrEIA.modules
        >>> inn = FrEIA.framework.SequenceINN(2)
        >>> net = lambda a, b: nn.Linear(a, b)
        >>> inn.append(FrEIA.modules.GLOWCouplingBlock, cond=0, cond_shape=(3,),
        ...            subnet_constructor=net)
        >>> from freia_kd.flows.adapters import as_conditional_flow
        >>> model = as_normflows(as_conditional_flow(inn, shape=(2,), classes=3))
        >>> x, log_q = model.sample(4, context=torch.arange(4) % 3)
        >>> x.shape, log_q.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """
    base = NormflowsDistribution(flow)
    return normflows.ConditionalNormalizingFlow(base, [NormflowsLayer(flow)], target)
