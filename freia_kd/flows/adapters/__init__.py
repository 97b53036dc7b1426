"""Flows of other libraries in this package, and ours in theirs.

:func:`as_conditional_flow` takes a flow of FrEIA, normflows, zuko or nflows;
:func:`as_distribution` and :func:`freia_kd.flows.adapters.normflows.as_normflows` go the other
way. No host library is imported before one of its flows comes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from ..bases import Base
from .common import ConditionSpec, GuestFlow
from .distribution import FlowDistribution, as_distribution

__all__ = ["FlowDistribution", "GuestFlow", "as_conditional_flow", "as_distribution"]

HOSTS = {
    "FrEIA": "freia:FreiaFlow",
    "normflows": "normflows:NormflowsFlow",
    "zuko": "zuko:ZukoFlow",
    "nflows": "nflows:NflowsFlow",
}
"""Host libraries and their adapters, as `module:class` within this package."""


def as_conditional_flow(
    flow: nn.Module,
    shape: tuple[int, ...],
    classes: int | None,
    base: Base | None = None,
    squash: nn.Module | None = None,
    condition: ConditionSpec = "one-hot",
) -> GuestFlow:
    """A host library's flow as a :class:`~freia_kd.flows.contract.ConditionalFlow`.

    Parameters are shared: training the adapter trains the host's flow. An unconditional flow
    ignores the class. Two rows are sent through a copy of the flow to see that all fits.

    Arguments:
        flow: A FrEIA `SequenceINN`, `GraphINN` or block, one of normflows' four models, a
            `zuko.flows.Flow` or an `nflows.flows.Flow`.
        shape: The shape of one input, `(C, H, W)` or `(D,)`.
        classes: The number of classes.
        base: The base density over latents with that shape; the host's own if `None` (for FrEIA,
            which has none, the standard Gaussian).
        squash: A module from pixels to unbounded values, if the flow is to model images in
            [0, 1] and has none of its own.
        condition: What the host's flow is conditioned on: `"one-hot"` soft labels with shape
            `(B, classes)`; `"index"` class indices with shape `(B,)`; a callable (a module is
            trained along) that maps soft labels to what the flow takes; `None` nothing. FrEIA and
            normflows say themselves that they are unconditional; zuko and nflows do not.

    Raises:
        TypeError: If the flow is of no known library.
        ValueError: If the shapes or the condition do not fit.
        ImportError: If the library is missing; the message names the extra.

    Example:
        >>> import torch, normflows
        >>> base = normflows.distributions.ClassCondDiagGaussian(2, 3)
        >>> net = normflows.nets.MLP([1, 8, 2])
        >>> host = normflows.ClassCondFlow(base, [normflows.flows.AffineCouplingBlock(net)])
        >>> flow = as_conditional_flow(host, shape=(2,), classes=3)
        >>> flow.sample(torch.tensor([0, 2])).shape
        torch.Size([2, 2])
    """
    adapter = _adapter(flow)
    return adapter(flow, tuple(shape), classes, base=base, squash=squash, condition=condition)


def _adapter(flow: object) -> Any:
    for parent in type(flow).__mro__:
        host = parent.__module__.partition(".")[0]
        if host in HOSTS:
            module, _, name = HOSTS[host].partition(":")
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise TypeError(
        f"Expected a flow of {', '.join(HOSTS)}; got {type(flow).__module__}."
        f"{type(flow).__qualname__}. Subclass ConditionalFlow to bring your own."
    )
