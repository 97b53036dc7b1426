"""Compression methods by name, and nets rebuilt from the steps that made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .plans import Ranks, make_plan
from .prune import prune, restructure_pruned, unpruned_state
from .quantize import quantize, restructure_quantized
from .surgery import apply_plan, require_inputs, restructure

Step = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to make a net smaller.

    Arguments:
        apply: Gives a smaller copy of a net and the step, from the net, what it eats with shape
            `(N, *shape)`, and options of its own. The step is a dictionary of plain JSON types
            with the method's name under `"method"`.
        rebuild: Gives a copy of a net that a step has made smaller, with other values.
    """

    apply: Callable[..., tuple[nn.Module, Step]]
    rebuild: Callable[[nn.Module, Mapping[str, Any]], nn.Module]


def tucker(
    net: nn.Module,
    inputs: Tensor,
    layers: str | Sequence[str] | Mapping[str, Ranks] = "all",
    ranks: Ranks = "evbmf",
) -> tuple[nn.Module, Step]:
    """A copy of a net with low-rank layers, see :func:`make_plan`.

    Raises:
        ValueError: If the net is not sound, a pattern matches no layer, ranks do not fit, or no
            layer would gain.
    """
    inputs = require_inputs(net, inputs)
    plan = make_plan(net, layers, ranks, shape=inputs.shape[1:])
    if not plan.layers:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in plan.skipped)
        raise ValueError(f"Expected a layer that gains by low ranks; found none ({reasons}).")
    return apply_plan(net, plan), {"method": "tucker", **plan.to_dict()}


METHODS: dict[str, Method] = {
    "tucker": Method(tucker, restructure),
    "prune": Method(prune, restructure_pruned),
    "quantize": Method(quantize, restructure_quantized),
}


def apply_methods(
    net: nn.Module, inputs: Tensor, methods: Mapping[str, Mapping[str, Any]]
) -> tuple[nn.Module, list[Step]]:
    """Applies methods one after the other, to a copy of a net.

    Arguments:
        net: The net, which is not modified.
        inputs: What it eats, with shape `(N, *shape)`; may be synthetic.
        methods: The methods in order, each with its options. Quantisation comes last.

    Returns:
        The copy, and the steps for :func:`rebuild`.

    Raises:
        ValueError: If there is no such method, or what one of them raises.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> x = torch.randn(64, 32)
        >>> methods = {"tucker": {"ranks": 0.25}, "quantize": {}}
        >>> student, steps = apply_methods(net, x, methods)
        >>> [step["method"] for step in steps]
        ['tucker', 'quantize']
        >>> rebuild(net, steps).load_state_dict(student.state_dict())
        <All keys matched successfully>
    """
    steps = []
    for name, options in methods.items():
        net, step = _method(name).apply(net, inputs, **options)
        steps.append(step)
    return net, steps


def rebuild(net: nn.Module, steps: Sequence[Mapping[str, Any]]) -> nn.Module:
    """A copy of a net with the layers that steps of compression have made, but other values.

    Arguments:
        net: A net of the uncompressed architecture, with any weights. It is not modified.
        steps: What the methods gave, in order.

    Raises:
        ValueError: If a step is malformed or does not fit the net.
    """
    for step in _checked(steps):
        net = METHODS[step["method"]].rebuild(net, step)
    return net


def original_state(
    state: Mapping[str, Tensor], steps: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """The state of a compressed net with the shapes from before it was pruned.

    Raises:
        ValueError: If a step is malformed.
    """
    pruned = [step for step in _checked(steps) if step["method"] == "prune"]
    return unpruned_state(state, pruned[0]) if pruned else dict(state)


def _checked(steps: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(steps, (list, tuple)):
        raise ValueError(f"Expected a list of steps; got {_short(steps)}.")
    names = [step.get("method") if isinstance(step, Mapping) else step for step in steps]
    for name in names:
        _method(name)
    if len(set(names)) < len(names):  # low ranks may double the weights, each time
        raise ValueError(f"Expected each method once; got {_short(names)}.")
    return steps


def _method(name: object) -> Method:
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"Expected one of the methods {', '.join(METHODS)}; got {_short(name)}.")
    return METHODS[name]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
