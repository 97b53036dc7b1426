"""Names to objects: built-in ones, entry points of other packages, and `module:attribute` paths."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import UsageError, unknown


def import_object(path: str) -> Any:
    """Imports `module:attribute`.

    Raises:
        UsageError: If the module or its attribute cannot be imported.

    Example:
        >>> import_object("math:sqrt")(9.0)
        3.0
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"Expected a path like package.module:attribute; got {path!r}.")
    try:
        target: Any = importlib.import_module(module_name)
    except ImportError as error:
        is_lost = isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]
        hint = " Is its folder in PYTHONPATH?" if is_lost else ""
        raise UsageError(
            f"Cannot import module {module_name!r} of {path!r}: {error}.{hint}"
        ) from error
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError as error:
            raise UsageError(f"Module {module_name!r} has no attribute {attribute!r}.") from error
    return target


class Registry(Mapping[str, Any]):
    """A lazy mapping from names to objects.

    A name is looked up among the built-in ones, then among the entry points of `group`, and
    a name with a colon is imported as `module:attribute`.

    Arguments:
        group: The entry-point group, e.g. `"freia_kd.flows"`.
        builtin: Built-in names and their `module:attribute` paths.
        kind: What the entries are called in errors, e.g. `"flow"`.
    """

    def __init__(self, group: str, builtin: Mapping[str, str], kind: str) -> None:
        self.group = group
        self.builtin = dict(builtin)
        self.kind = kind

    def __getitem__(self, name: str) -> Any:
        if ":" in name:
            return import_object(name)
        if name in self.builtin:
            return import_object(self.builtin[name])
        for entry in entry_points(group=self.group):
            if entry.name == name:
                return self._load(entry)
        raise UsageError(
            f"{unknown(name, self, self.kind)} A path package.module:attribute names any other."
        )

    def _load(self, entry: EntryPoint) -> Any:
        try:
            return entry.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"Cannot load the {self.kind} {entry.name!r}, which an installed package names as "
                f"{entry.value!r}: {error}."
            ) from error

    def __iter__(self) -> Iterator[str]:
        found = {entry.name for entry in entry_points(group=self.group)}
        return iter([*self.builtin, *sorted(found - set(self.builtin))])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        # Entry points are looked for last: that reads the files of every installed package.
        return name in self.builtin or any(e.name == name for e in entry_points(group=self.group))


# What the options and the command name; the other tables stand beside what they list.
DIVERGENCES = Registry(
    "freia_kd.divergences",
    {
        "forward-kl": "freia_kd.objectives.divergences:forward_kl",
        "reverse-kl": "freia_kd.objectives.divergences:reverse_kl",
        "js": "freia_kd.objectives.divergences:jensen_shannon",
        "l1": "freia_kd.objectives.divergences:l1",
        "centred-l1": "freia_kd.objectives.divergences:centred_l1",
        "centred-mse": "freia_kd.objectives.divergences:centred_mse",
    },
    "divergence",
)
COMPRESSIONS = Registry(
    "freia_kd.compressions",
    {
        "tucker": "freia_kd.compression.tucker:Tucker",
        "prune": "freia_kd.compression.prune:Prune",
        "quantize": "freia_kd.compression.quantize:Quantize",
    },
    "method of compression",
)
TOYS = Registry(
    "freia_kd.toys",
    {
        "moons": "freia_kd.data.toy:moons",
        "circles": "freia_kd.data.toy:circles",
        "mixture": "freia_kd.data.toy:mixture",
        "pinwheel": "freia_kd.data.toy:pinwheel",
        "pizza": "freia_kd.data.toy:pizza",
    },
    "toy data set",
)
