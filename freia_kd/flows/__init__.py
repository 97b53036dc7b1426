"""Conditional normalizing flows assembled from FrEIA blocks, by name.

Importing this package loads neither torch nor FrEIA; its parts are imported when they are used.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..registry import Registry

if TYPE_CHECKING:
    from ..domain import Domain
    from .bases import Base
    from .contract import ConditionalFlow

FLOWS = Registry(
    "freia_kd.flows",
    {
        "nice": "freia_kd.flows.nice:NICE",
        "glow": "freia_kd.flows.glow:Glow",
        "realnvp": "freia_kd.flows.realnvp:RealNVP",
        "spline": "freia_kd.flows.spline:NSF",
    },
    "flow",
)

_PARTS = {
    "NICE": "nice",
    "Glow": "glow",
    "RealNVP": "realnvp",
    "NSF": "spline",
    "INN": "compose",
    "INNFlow": "compose",
    "ConditionalFlow": "contract",
    "Base": "bases",
    "GaussianBase": "bases",
    "SpectralBase": "bases",
}


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PARTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS])


def build_flow(
    flow: str, domain: Domain, base: Base | None = None, **options: Any
) -> ConditionalFlow:
    """Makes an untrained flow for a domain (initialised from torch's global generator).

    What `flow` names is one of

    - a known architecture, or one that another package registers under the entry-point group
      `freia_kd.flows`;
    - a YAML file (a path that ends in `.yaml` or `.yml`), see :func:`.recipe.read_flow`;
    - a path `package.module:attribute`.

    A subclass of :class:`ConditionalFlow` is called as `flow(shape, classes, base, **options)`,
    any other function as `flow(domain, base, **options)`.

    Arguments:
        flow: The name or the path.
        domain: What the flow is for.
        base: The base density; by default the flow's own choice.
        options: Keyword arguments of the architecture.

    Raises:
        UsageError: If there is no such flow, it does not take the options, or what it gives is not
            a flow for the domain.

    Example:
        >>> from freia_kd.domain import Domain
        >>> build_flow("nice", Domain((2,), 3), transforms=4).classes
        3
    """
    from .contract import ConditionalFlow

    if flow.endswith((".yaml", ".yml")):
        from .recipe import read_flow

        return read_flow(flow, domain, base, **options)
    target = FLOWS[flow]
    if inspect.isclass(target) and issubclass(target, ConditionalFlow):
        made = _call(flow, target, (domain.shape, domain.classes, base), options)
    elif callable(target):
        made = _call(flow, target, (domain, base), options)
    else:
        raise UsageError(f"Expected a flow class or a function from {flow!r}; got {target!r}.")
    if not isinstance(made, ConditionalFlow):
        raise UsageError(f"Expected {flow!r} to give a ConditionalFlow; got {type(made).__name__}.")
    if made.shape != domain.shape or made.classes != domain.classes:
        raise UsageError(
            f"Expected {flow!r} to give a flow over {domain.shape} with {domain.classes} classes; "
            f"got one over {made.shape} with {made.classes}."
        )
    return made


def _call(name: str, target: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    signature = inspect.signature(target)
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        known = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        raise UsageError(
            f"Flow {name!r} does not take these options: {error}; known ones are "
            f"{', '.join(known) or 'none'}."
        ) from error
    return target(*arguments, **options)
