"""Which layers of a net can be replaced, and the replacement, on a copy of the net."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..modes import evaluating
from .tucker import svd_layers, svd_linear, tucker2, tucker2_layers

if TYPE_CHECKING:
    from .plans import LayerPlan, Plan

KINDS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def apply_plan(net: nn.Module, plan: Plan) -> nn.Module:
    """Compresses a copy of a net; the net itself is not modified.

    A layer that the net uses in several places is replaced in all of them. The new layers are
    trainable, on the device and of the dtype that the old ones were.

    Raises:
        ValueError: If the net is not sound or cannot be copied, or the plan does not fit it.
    """
    require_sound(net)
    return _replace(copied(net), plan, {"tucker2": tucker2, "svd": svd_linear})


def restructure(net: nn.Module, plan: Plan | Mapping[str, Any]) -> nn.Module:
    """A copy of a net with a plan's layers but fresh weights there, to load a student into.

    Arguments:
        net: A net of the teacher's architecture, with any weights. It is not modified.
        plan: The student's plan, or the dictionary that :meth:`Plan.to_dict` made of it.

    Raises:
        ValueError: If the plan is malformed or does not fit the net.

    Example:
        >>> from freia_kd.compression.plans import make_plan
        >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> plan = make_plan(net, "0", ranks=4)
        >>> student = restructure(net, plan.to_dict())
        >>> student.load_state_dict(apply_plan(net, plan).state_dict())
        <All keys matched successfully>
    """
    from .plans import Plan

    plan = plan if isinstance(plan, Plan) else Plan.from_dict(plan)
    return _replace(copied(net), plan, {"tucker2": tucker2_layers, "svd": svd_layers})


def candidates(net: nn.Module) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The layers that can be compressed by name, and those that cannot, with the reason.

    Layers that the net uses in several places are listed once, under the first name.
    """
    found: dict[str, Any] = {}
    refused: list[tuple[str, str]] = []
    owners = parameter_owners(net)
    for name, layer in net.named_modules():
        if not isinstance(layer, (*KINDS, nn.modules.conv._ConvNd)):
            continue
        reason = _refusal(layer, owners)
        if reason is None:
            found[name] = layer
        else:
            refused.append((name, reason))
    return found, refused


def fresh_layer(layer: Any, plan: LayerPlan) -> nn.Module:
    """The layers that a plan makes of one, with fresh weights."""
    return _replacement("layer", layer, plan, {"tucker2": tucker2_layers, "svd": svd_layers})


def require_sound(net: nn.Module) -> None:
    """Raises unless a net has layers to compress, all materialised and finite.

    Raises:
        ValueError: If a parameter is lazy or not finite, or nothing can be compressed.
    """
    require_finite(net)
    found, refused = candidates(net)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
        raise ValueError(
            "Expected a net with Conv2d, Conv1d or Linear layers that can be compressed; "
            f"{type(net).__name__} has none{f' ({reasons})' if reasons else ''}."
        )


def require_finite(net: nn.Module) -> None:
    """Raises unless a net's parameters are all materialised and finite.

    Raises:
        ValueError: If a parameter is lazy or not finite.
    """
    for name, parameter in net.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"Expected initialised parameters; {name!r} is lazy. Run the net once on an input "
                "of the right shape first."
            )
        if not bool(parameter.isfinite().all()):
            raise ValueError(
                f"Expected finite weights; {name!r} holds NaN or infinite ones. The net is "
                "damaged or its training diverged."
            )


def require_inputs(net: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs where the net is and of its dtype, if it takes them.

    Arguments:
        net: The net, put back into the mode it was in.
        inputs: What it eats, with shape `(N, *shape)`.

    Raises:
        ValueError: If there are none, they are not finite, or the net rejects the first of them
            or does not give a tensor.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or not inputs.numel():
        kind = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"Expected floating-point inputs of shape (N, ...), N > 0; got {kind}.")
    if not bool(inputs.isfinite().all()):
        raise ValueError("Expected finite inputs; got NaN or infinity.")
    weight = next((p for p in net.parameters() if p.is_floating_point()), inputs)
    inputs = inputs.detach().to(weight.device, weight.dtype)
    try:
        with evaluating(net):
            output = net(inputs[:2])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"Expected inputs that the net takes; {type(net).__name__} rejects those of shape "
            f"{tuple(inputs[:2].shape)} ({(str(error).splitlines() or [''])[0]})."
        ) from error
    if not isinstance(output, Tensor):
        raise ValueError(f"Expected a net that gives a tensor; got {type(output).__name__}.")
    return inputs


def _refusal(layer: nn.Module, owners: Mapping[int, list[str]]) -> str | None:
    """Why a layer cannot be compressed, or `None`."""
    groups = getattr(layer, "groups", 1)
    if type(layer) in KINDS and groups != 1:
        depthwise = groups == getattr(layer, "in_channels", 0)
        return "depthwise" if depthwise else f"a convolution of {groups} groups"
    return why_irreplaceable(layer, owners)


def why_irreplaceable(layer: nn.Module, owners: Mapping[int, list[str]]) -> str | None:
    """Why another layer cannot take a layer's place, or `None`.

    Arguments:
        layer: The layer.
        owners: The names of its net's parameters (:func:`parameter_owners`).
    """
    if type(layer) not in KINDS:
        return f"a {type(layer).__name__} may do more than its base class, or is of another kind"
    names = owners.get(id(layer.weight), [])
    if len(names) > 1:
        return f"its weight is tied ({', '.join(names)})"
    if hasattr(layer, "parametrizations") or layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks or a parametrization, which a replacement would lose"
    return None


def parameter_owners(net: nn.Module) -> dict[int, list[str]]:
    """The names under which different modules hold each parameter."""
    owners: dict[int, list[str]] = {}
    for name, module in net.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{name}.{key}".lstrip("."))
    return owners


def copied(net: nn.Module) -> nn.Module:
    """A deep copy of a net.

    Raises:
        ValueError: If it cannot be copied.
    """
    try:
        return copy.deepcopy(net)
    except Exception as error:
        raise ValueError(
            f"Expected a net that copy.deepcopy can copy; {type(net).__name__} cannot be "
            f"({type(error).__name__}: {error}). Remove what it holds besides parameters, buffers "
            "and modules, or give it a __deepcopy__."
        ) from error


def _replace(
    net: nn.Module, plan: Plan, methods: Mapping[str, Callable[..., nn.Module]]
) -> nn.Module:
    """Replaces the planned layers of `net` in every place where it uses them."""
    found, refused = candidates(net)
    reasons = dict(refused)
    replacements: dict[int, nn.Module] = {}
    for name, layer_plan in plan.layers.items():
        if name not in found:
            why = reasons.get(name, f"the net has {', '.join(found) or 'none'}")
            raise ValueError(f"Layer {name!r} of the plan cannot be compressed: {why}.")
        replacements[id(found[name])] = _replacement(name, found[name], layer_plan, methods)
    return swapped(net, replacements)


def swapped(net: nn.Module, replacements: Mapping[int, nn.Module]) -> nn.Module:
    """Puts modules into all places of others, given by `id`, and returns the net."""
    if id(net) in replacements:  # the net is a single layer
        return replacements[id(net)]
    for module in list(net.modules()):
        for key, child in module._modules.items():
            if id(child) in replacements:
                module._modules[key] = replacements[id(child)]
    return net


def _replacement(
    name: str, layer: nn.Module, plan: LayerPlan, methods: Mapping[str, Callable[..., nn.Module]]
) -> nn.Module:
    if plan.method == "tucker2" and isinstance(layer, nn.Linear):
        raise ValueError(
            f"Layer {name!r}: expected the method svd for a linear layer; got tucker2."
        )
    ranks = plan.ranks if plan.method == "tucker2" else plan.ranks[0]
    try:
        return methods[plan.method](layer, ranks)
    except ValueError as error:
        raise ValueError(f"Layer {name!r}: {error}") from error
