"""Frozen dataclasses of options, changed by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from .errors import UsageError

Options = TypeVar("Options")
KINDS: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
}


def change(options: Options, changes: Mapping[str, Any], title: str) -> Options:
    """A copy of a dataclass of options with other values.

    Arguments:
        options: The options.
        changes: New values by name.
        title: Whose options they are, for errors.

    Raises:
        UsageError: If there is no such option, or a value is of another kind or makes no sense.

    Example:
        >>> from freia_kd.distillation import DistillationOptions
        >>> change(DistillationOptions(), {"steps": 5}, "student").steps
        5
    """
    known = [field.name for field in fields(options)]  # type: ignore[arg-type]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise UsageError(
            f"Unknown option {', '.join(unknown)} of {title}; known ones are {', '.join(known)}."
        )
    for name, value in changes.items():
        _expect_like(f"{title}.{name}", value, getattr(options, name))
    try:
        return replace(options, **changes)  # type: ignore[type-var]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{title}: {error}") from error


def _expect_like(name: str, value: Any, usual: Any) -> None:
    """Raises `UsageError` unless a value is of the kind of the usual one (if that tells)."""
    kinds = KINDS.get(type(usual))
    if kinds is None:
        return
    if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
        raise UsageError(f"Expected a value like {usual!r} for {name}; got {value!r}.")
