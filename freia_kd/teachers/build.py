"""Nets by name: the known architectures, those of other packages, and `module:Class` paths."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..domain import Domain
from ..errors import UsageError
from ..registry import Registry

ARCHITECTURES = Registry(
    "freia_kd.teachers",
    {
        "lenet5": "freia_kd.teachers.lenet5:LeNet5",
        "resnet14": "freia_kd.teachers.resnet14:ResNet14",
        "mlp": "freia_kd.teachers.mlp:MLP",
    },
    "architecture",
)
CLASSES = ("num_classes", "classes", "n_classes")  # what constructors call it
CHANNELS = ("in_channels", "in_chans", "input_channels")


def build_net(arch: str, domain: Domain, state: dict[str, Tensor] | None = None) -> nn.Module:
    """Makes an untrained net (initialised from torch's global generator) for a domain.

    What `arch` names is one of

    - a class with a class method `from_domain(domain, state)`, as the known ones have;
    - a class or function that gives the net when called, with the arguments that stand behind its
      path, and with the number of classes where it takes that (as `num_classes`, `classes` or
      `n_classes`), and of input channels (`in_channels`, `in_chans` or `input_channels`);
    - a net, which is copied.

    Arguments:
        arch: A name of `ARCHITECTURES`, or a path `package.module:Class`, perhaps with arguments:
            `"package.module:Class(width=64)"`.
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
    path, arguments = parse_arch(arch)
    target = ARCHITECTURES[path]
    takes_none = isinstance(target, nn.Module) or hasattr(target, "from_domain")
    if arguments and (takes_none or not callable(target)):
        raise UsageError(f"{path!r} takes no arguments; got {', '.join(arguments)}.")
    if isinstance(target, nn.Module):
        return copy.deepcopy(target)
    if hasattr(target, "from_domain"):
        net = target.from_domain(domain, state)
    else:
        net = _call(path, target, domain, arguments) if callable(target) else target
    if not isinstance(net, nn.Module):
        raise UsageError(
            f"Expected an nn.Module, or a class or function that gives one, from {arch!r}; "
            f"got {type(net).__name__}."
        )
    return net


def with_arguments(arch: str, arguments: Mapping[str, Any]) -> str:
    """An architecture's path with a constructor's arguments behind it, by their names.

    Raises:
        UsageError: If the path has arguments already, or a value is not a plain one.

    Example:
        >>> with_arguments("torchvision.models:vgg11", {"num_classes": 10, "dropout": 0.1})
        'torchvision.models:vgg11(dropout=0.1, num_classes=10)'
    """
    if not arguments:
        return arch
    said = ", ".join(f"{name}={arguments[name]!r}" for name in sorted(arguments))
    whole = f"{arch}({said})"
    parse_arch(whole)
    return whole


def parse_arch(arch: str) -> tuple[str, dict[str, Any]]:
    """The path or name of an architecture, and the arguments behind it.

    Raises:
        UsageError: If what stands behind it is not `NAME=VALUE, ...` of plain values.

    Example:
        >>> parse_arch("torchvision.models:vgg11(num_classes=10)")
        ('torchvision.models:vgg11', {'num_classes': 10})
    """
    path, bracket, rest = arch.partition("(")
    if not bracket:
        return arch, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or None in [k.arg for k in call.keywords]:
            raise ValueError("not NAME=VALUE")
        return path, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(
            f"Expected an architecture like package.module:Class(width=64), with plain values; got "
            f"{arch!r}."
        ) from error


def _call(path: str, target: Any, domain: Domain, arguments: dict[str, Any]) -> Any:
    """Calls a constructor, with the number of classes where it takes that."""
    arguments = {**_channel_argument(target, domain), **arguments}
    extra = _class_argument(target, domain.classes)
    try:
        if extra and not set(CLASSES) & set(arguments):
            try:
                return target(**arguments, **extra)
            except TypeError:  # of a function that hands on what it does not name
                if set(extra) <= set(inspect.signature(target).parameters):
                    raise
        return target(**arguments)
    except Exception as error:
        said = f"with {', '.join(arguments)}" if arguments else "without arguments"
        raise UsageError(
            f"Calling {path!r} {said} failed ({type(error).__name__}: {error}); give its arguments "
            f"behind it, as in {path + '(width=64)'!r} (those of a teacher also by --arch-arg "
            "NAME=VALUE), or name a function without arguments that returns the net."
        ) from error


def _class_argument(target: Any, classes: int) -> dict[str, int]:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # of builtins
        return {}
    named = [name for name in CLASSES if name in parameters]
    hands_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return dict.fromkeys(named[:1] or CLASSES[: int(hands_on)], classes)


def _channel_argument(target: Any, domain: Domain) -> dict[str, int]:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # of builtins
        return {}
    named = [name for name in CHANNELS if name in parameters and domain.is_image]
    return dict.fromkeys(named, domain.shape[0])
