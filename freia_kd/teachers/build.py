"""Nets by name: the known architectures, those of other packages, and `module:Class` paths."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import Tensor, nn

from ..domain import Domain
from ..errors import UsageError
from ..registry import Registry

CLASSES = ("classes", "num_classes", "n_classes")  # what constructors call the number of them
CHANNELS = ("in_channels", "in_chans", "input_channels")

ARCHITECTURES = Registry(
    "freia_kd.teachers",
    {
        "lenet5": "freia_kd.teachers.lenet5:LeNet5",
        "resnet14": "freia_kd.teachers.resnet14:ResNet14",
        "mlp": "freia_kd.teachers.mlp:MLP",
    },
    "architecture",
)


def build_net(arch: str, domain: Domain, state: dict[str, Tensor] | None = None) -> nn.Module:
    """Makes an untrained net (initialised from torch's global generator) for a domain.

    What `arch` names is one of

    - a class with a class method `from_domain(domain, state)`, as the known ones have;
    - a class or function that gives the net when called with the number of classes and of input
      channels, as far as it has arguments of the usual names for them, and else without any;
    - a net, which is copied.

    Arguments:
        arch: A name of `ARCHITECTURES`, or a path `package.module:Class`.
        domain: The domain that the net is for.
        state: The weights to be loaded later, from which a net may read its widths.

    Raises:
        UsageError: If there is no such architecture, it does not fit the domain, or what is
            named does not give an `nn.Module`.

    Example:
        >>> net = build_net("lenet5", Domain((1, 32, 32), 10))
        >>> net.fc2.out_features
        10
    """
    target = ARCHITECTURES[arch]
    if isinstance(target, nn.Module):
        return copy.deepcopy(target)
    net = _call(arch, target, domain, state)
    if not isinstance(net, nn.Module):
        raise UsageError(
            f"Expected an nn.Module, or a class or function that gives one, from {arch!r}; "
            f"got {type(net).__name__}."
        )
    return net


def _call(arch: str, target: Any, domain: Domain, state: dict[str, Tensor] | None) -> Any:
    if hasattr(target, "from_domain"):
        return target.from_domain(domain, state)
    if not callable(target):
        return target
    given = _usual_arguments(target, domain)
    try:
        return target(**given)
    except Exception as error:
        what = ", ".join(f"{k}={v}" for k, v in given.items())
        what = f"with {what}" if given else "without arguments"
        raise UsageError(
            f"Calling {arch!r} {what} failed ({type(error).__name__}: {error}); "
            "name a function without arguments that returns the net."
        ) from error


def _usual_arguments(target: Any, domain: Domain) -> dict[str, int]:
    """What a constructor is to be told of the domain, by the names that it has for it."""
    try:
        names = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some of C have no signature
        return {}
    values = dict.fromkeys(CLASSES, domain.classes)
    if domain.is_image:
        values |= dict.fromkeys(CHANNELS, domain.shape[0])
    return {name: value for name, value in values.items() if name in names}
