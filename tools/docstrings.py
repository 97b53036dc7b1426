"""Docstrings in the site: the roles and formulas of reStructuredText as Markdown has them."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`([^`]+)`")
INLINE_MATH = re.compile(r":math:`([^`]+)`", re.DOTALL)
MATH = re.compile(r"^( *)\.\. math:: (.+(?:\n\1 +.+)*)", re.MULTILINE)


class Roles(griffe.Extension):
    """Turns roles into cross-references, formulas into `$...$`, lines of references into lines."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for obj in walk(pkg):
            if obj.docstring is not None:
                obj.docstring.value = as_markdown(obj.docstring.value, obj, pkg)


def walk(obj: griffe.Object) -> list[griffe.Object]:
    """An object and all below it; names that are only imported are left out."""
    found = [obj]
    for member in obj.members.values():
        if not member.is_alias:
            found += walk(member)
    return found


def as_markdown(text: str, obj: griffe.Object, pkg: griffe.Module) -> str:
    """A docstring of `obj` in Markdown."""
    text = ROLE.sub(lambda m: _reference(m[1], obj, pkg), text)
    text = MATH.sub(lambda m: f"{m[1]}$$\n{m[1]}{' '.join(m[2].split())}\n{m[1]}$$", text)
    text = INLINE_MATH.sub(lambda m: f"${' '.join(m[1].split())}$", text)
    text = re.sub(r"^( *)\| (.*)$", r"\1\2 <br>", text, flags=re.MULTILINE)
    return re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


def _reference(name: str, obj: griffe.Object, pkg: griffe.Module) -> str:
    name = name.lstrip("~")
    shown = f"`{name.rpartition('.')[2]}`"
    path = _resolve(name.lstrip("."), obj)
    try:
        target = pkg[path.removeprefix(f"{pkg.path}.")]
        target = target.final_target if target.is_alias else target
    except (KeyError, ValueError, griffe.GriffeError):
        return shown  # of another package
    private = any(part.startswith("_") for part in target.path.split("."))
    return f"[{shown}][{target.path}]" if target.has_docstring and not private else shown


def _resolve(name: str, obj: griffe.Object) -> str:
    if name.startswith("freia_kd."):
        return name
    first, dot, rest = name.partition(".")
    try:
        return obj.resolve(first) + dot + rest
    except griffe.NameResolutionError:
        package = obj.module if obj.module.is_init_module else obj.module.parent
        return f"{package.path}.{name}"
