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
    "Composition": "compose",
    "ConditionalFlow": "contract",
    "Base": "bases",
    "GaussianBase": "bases",
    "SpectralBase": "bases",
    "dequantize": "density",
    "Decoder": "export",
    "export_decoder": "export",
    "as_conditional_flow": "adapters",
    "as_distribution": "adapters",
}


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PARTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS])


def default_flow(domain: Domain) -> tuple[str, dict[str, Any]]:
    """The architecture that suits a domain, and its options: what the flow `"auto"` is.

    Vectors and images of up to 32 x 32 pixels get NICE, whose parameters grow with the number of
    pixels (10 million at 3 x 32 x 32). Larger ones get a Glow that halves them to 32 x 32 or fewer
    first: its parameters hardly grow with the image. Sides that cannot be halved stay with NICE.

    Example:
        >>> from freia_kd.domain import Domain
        >>> default_flow(Domain((3, 32, 32), 10)), default_flow(Domain((3, 224, 224), 10))
        (('nice', {}), ('glow', {'halvings': 3, 'hidden_features': 64}))
    """
    if not domain.is_image or max(domain.shape[1:]) <= 32:
        return "nice", {}
    _, height, width = domain.shape
    halvings = 0
    while max(height, width) > 32 << halvings and (height | width) % (4 << halvings) == 0:
        halvings += 1
    if halvings == 0:
        return "nice", {}
    return "glow", {"halvings": halvings, "hidden_features": 64}


def explain_default(domain: Domain) -> str:
    """Which flow :func:`default_flow` chooses, and why, in words for a report.

    Example:
        >>> from freia_kd.domain import Domain
        >>> explain_default(Domain((2,), 3))
        'nice, as for all vectors'
    """
    name, options = default_flow(domain)
    if not domain.is_image:
        return f"{name}, as for all vectors"
    height, width = domain.shape[1:]
    if max(height, width) <= 32:
        return f"{name}, as for all images of up to 32 x 32 pixels"
    if not options:
        return f"{name}, which grows with the image, as {height} x {width} pixels cannot be halved"
    small = f"{height >> options['halvings']} x {width >> options['halvings']}"
    return f"{name}, of images halved to {small}, as nice would grow with {height} x {width} pixels"


def build_flow(
    flow: str, domain: Domain, base: Base | None = None, **options: Any
) -> ConditionalFlow:
    """Makes an untrained flow for a domain (initialised from torch's global generator).

    What `flow` names is one of

    - `"auto"`: the one that :func:`default_flow` chooses;
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
    if flow == "auto":
        flow, chosen = default_flow(domain)
        options = chosen | options
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
