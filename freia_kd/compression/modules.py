"""What methods share: which layers can be changed, copies, swaps, and checks before any work."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from ..modes import evaluating

KINDS = (nn.Conv1d, nn.Conv2d, nn.Linear)
TOLERANCE = 1e-3  # of the largest output: single precision through a deep net loses less


def candidates(net: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
    """The layers whose place others can take, by name, and those that must stay, with reasons.

    Layers that the net uses in several places are listed once, under the first name.

    Example:
        >>> candidates(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1, groups=2)))
        ({'0': Linear(in_features=2, out_features=2, bias=True)}, {'1': 'depthwise'})
    """
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    owners = parameter_owners(net)
    for name, layer in net.named_modules():
        if not isinstance(layer, (*KINDS, nn.modules.conv._ConvNd)):
            continue
        reason = _grouped(layer) or unsupported_reason(layer, owners)
        if reason is None:
            found[name] = layer
        else:
            skipped[name] = reason
    return found, skipped


def _grouped(layer: Any) -> str | None:
    if type(layer) not in KINDS or getattr(layer, "groups", 1) == 1:
        return None
    depthwise = layer.groups == layer.in_channels
    return "depthwise" if depthwise else f"a convolution of {layer.groups} groups"


def unsupported_reason(layer: nn.Module, owners: Mapping[int, list[str]]) -> str | None:
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


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a layer's name is one of the shell-style patterns, of which `"all"` is every layer.

    Example:
        >>> matches("layers3.0.conv1", ["layers3.*"]), matches("conv2", ["conv1"])
        (True, False)
    """
    return any(pattern in ("all", name) or fnmatchcase(name, pattern) for pattern in patterns)


def listed(skipped: Mapping[str, str]) -> str:
    """Layers and the reasons why they stay, as a part of a sentence."""
    return "; ".join(f"{name}: {reason}" for name, reason in skipped.items())


def require_sound(net: nn.Module) -> dict[str, Any]:
    """The layers whose place others can take, of a net that is materialised and finite.

    Raises:
        ValueError: If a parameter is lazy or not finite, or there is no such layer.
    """
    require_finite(net)
    found, skipped = candidates(net)
    if not found:
        raise ValueError(
            "Expected a net with Conv2d, Conv1d or Linear layers that can be compressed; "
            f"{type(net).__name__} has none{f' ({listed(skipped)})' if skipped else ''}."
        )
    return found


def require_finite(net: nn.Module) -> None:
    """Raises `ValueError` unless a net's parameters are all materialised and finite."""
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
        inputs: What it takes, with shape `(N, *shape)`.

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


def swapped(net: nn.Module, replacements: Mapping[int, nn.Module]) -> nn.Module:
    """Puts modules into all places of others, given by `id`, and returns the net."""
    if id(net) in replacements:  # the net is a single layer
        return replacements[id(net)]
    for module in list(net.modules()):
        for key, child in module._modules.items():
            if id(child) in replacements:
                module._modules[key] = replacements[id(child)]
    return net


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks, which are registered as the handles are taken, at the end of the block."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


def same_outputs(got: Tensor, expected: Tensor) -> bool:
    """Whether two nets compute the same, as far as single precision can tell."""
    scale = max(expected.abs().max().item(), 1e-30)
    return got.shape == expected.shape and torch.allclose(
        got, expected, rtol=0, atol=TOLERANCE * scale
    )
