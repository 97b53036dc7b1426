"""Flows from YAML files: one's own architecture without writing Python."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml
from FrEIA.modules import (
    GINCouplingBlock,
    GLOWCouplingBlock,
    InvertibleModule,
    RNVPCouplingBlock,
)

from ..domain import Domain
from ..errors import UsageError
from ..registry import import_object
from .bases import Base, GaussianBase, SpectralBase
from .blocks import DCT, AffineCoupling, Conv1x1, Permute, Squeeze
from .compose import INN, INNFlow
from .glow import rotation

Options: TypeAlias = dict[str, Any]

BASES: dict[str, type[Base]] = {"gaussian": GaussianBase, "spectral": SpectralBase}
KINDS: dict[str, type[InvertibleModule]] = {
    "one-sided": AffineCoupling,
    "glow": GLOWCouplingBlock,
    "rnvp": RNVPCouplingBlock,
    "gin": GINCouplingBlock,
}
SUBNETS: dict[str, str] = {
    "hidden_features": "positive integer",
    "layers": "positive integer",
    "bf16": "boolean",
}
# The options of each layer, and what each must be.
LAYERS: dict[str, dict[str, str]] = {
    "affine": {"clamp": "positive number"},
    "conv1x1": {"rotate": "boolean"},
    "coupling": {"kind": "kind", "clamp": "positive number", **SUBNETS},
    "spline": {"bins": "positive integer", "bound": "positive number", **SUBNETS},
    "dct": {},
    "permute": {},
    "swap": {},
    "squeeze": {},
    "unsqueeze": {},
    "repeat": {"times": "positive integer", "layers": "list"},
    "split": {"layers": "list"},
    "module": {"path": "string", "conditional": "boolean", "options": "mapping"},
}
REQUIRED: dict[str, tuple[str, ...]] = {
    "repeat": ("times", "layers"),
    "split": ("layers",),
    "module": ("path",),
}
CHECKS: dict[str, Callable[[Any], bool]] = {
    "boolean": lambda v: isinstance(v, bool),
    "positive integer": lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0,
    "positive number": lambda v: (
        isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < float("inf")
    ),
    "string": lambda v: isinstance(v, str),
    "list": lambda v: isinstance(v, list),
    "mapping": lambda v: isinstance(v, dict),
    "kind": lambda v: isinstance(v, str) and v in KINDS,
}
TRUSTED = ("FrEIA", "freia_kd")  # whose modules a file may name


def read_flow(path: str | Path, domain: Domain, base: Base | None = None) -> INNFlow:
    """Makes the flow that a YAML file describes, for a domain.

    The file holds `layers`, from inputs to latents, and may hold `base` and `whiten`:

    .. code-block:: yaml

        base: {name: spectral, offset: 1.0}   # or gaussian; the caller's choice by default
        whiten: false                         # whether to work in the base's coordinates
        layers:
          - affine                            # a scale and shift by class
          - squeeze                           # 2 x 2 pixels to channels
          - repeat:
              times: 4
              layers:
                - conv1x1                     # learned; {rotate: true} starts as a rotation
                - coupling: {kind: glow, hidden_features: 32}   # one-sided, glow, rnvp or gin
          - split:                            # half of the channels go on
              layers: [{spline: {bins: 8}}]
          - unsqueeze
          - module: {path: "FrEIA.modules:OrthogonalTransform", options: {}}

    Further layers are `dct`, `permute` (a fixed random permutation of the channels, another one
    each time) and `swap` (the halves of the channels). All but `permute`, `swap`, `dct` and
    rotations start as the identity. A module by `path` must be a subclass of FrEIA's
    `InvertibleModule`, from FrEIA, from this package, or from a module that has been imported
    already: nothing is imported because the file names it. The file is read by `yaml.safe_load`.

    Arguments:
        path: The file.
        domain: What the flow is for.
        base: The base density if the file names none.

    Raises:
        UsageError: If the file cannot be read, or has faults; all of them are in the message
            (shapes are followed up to the first fault).
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read the flow {str(path)!r}: {error}.") from error
    return build_recipe(recipe, domain, base, name=str(path))


def build_recipe(
    recipe: Any, domain: Domain, base: Base | None = None, name: str = "recipe"
) -> INNFlow:
    """As :func:`read_flow`, from what the YAML file holds.

    Example:
        >>> layers = ["swap", {"coupling": {"hidden_features": 16}}]
        >>> build_recipe({"layers": layers}, Domain((2,), 3)).classes
        3
    """
    reader = _Reader(domain)
    whiten = False
    inn = INN([domain.shape], classes=domain.classes)
    if not isinstance(recipe, dict):
        reader.fault("", f"expected a mapping with layers; got {type(recipe).__name__}")
    else:
        for key in recipe.keys() - {"base", "whiten", "layers"}:
            reader.fault(str(key), "unknown; known ones are base, whiten, layers")
        whiten = recipe.get("whiten", False)
        if not isinstance(whiten, bool):
            reader.fault("whiten", f"expected a boolean; got {whiten!r}")
        base = reader.base(recipe["base"]) if "base" in recipe else base
        reader.layers(recipe.get("layers"), "layers", inn)
    if not reader.faults and not any(True for _ in inn.parameters()):
        reader.fault("layers", "expected at least one layer that learns; got none")
    if reader.faults:
        listed = "\n".join(f"  - {fault}" for fault in reader.faults)
        raise UsageError(f"The flow {name!r} has {len(reader.faults)} fault(s):\n{listed}")
    return INNFlow(inn, domain.shape, domain.classes, base, whiten=whiten)


@dataclass
class _Reader:
    """Checks all layers, and appends them to a net as long as there is no fault."""

    domain: Domain
    faults: list[str] = field(default_factory=list)
    seed: int = 0  # of the next fixed random permutation or rotation

    def fault(self, path: str, message: str) -> None:
        self.faults.append(f"{path}: {message}" if path else message)

    def base(self, entry: Any) -> Base | None:
        options = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(options, dict) or options.get("name") not in BASES:
            self.fault("base", f"expected a name among {', '.join(BASES)}; got {entry!r}")
            return None
        make = BASES[options["name"]]
        options = {key: value for key, value in options.items() if key != "name"}
        try:
            return make(self.domain.shape, **options)
        except (TypeError, ValueError) as error:
            known = [name for name in inspect.signature(make).parameters if name != "shape"]
            self.fault("base", f"{error} (options: {', '.join(known) or 'none'})")
            return None

    def layers(self, entries: Any, path: str, inn: INN) -> None:
        if not isinstance(entries, list) or not entries:
            self.fault(path, f"expected a list of layers; got {entries!r}")
            return
        for index, entry in enumerate(entries):
            self.layer(entry, f"{path}[{index}]", inn)

    def layer(self, entry: Any, path: str, inn: INN) -> None:
        name: Any = entry
        options: Any = {}
        if isinstance(entry, dict) and len(entry) == 1:
            ((name, options),) = entry.items()
            options = {} if options is None else options
        if not isinstance(name, str) or name not in LAYERS:
            self.fault(path, f"expected a layer among {', '.join(LAYERS)}; got {entry!r}")
            return
        path = f"{path}.{name}"
        valid = self.options(name, options, path)
        nested = options.get("layers") if isinstance(options, dict) else None
        if name == "repeat" and isinstance(nested, list):
            # Every repetition has its own parameters. Once is enough to see the faults.
            for _ in range(options["times"] if valid else 1):
                before = len(self.faults)
                self.layers(nested, f"{path}.layers", inn)
                if len(self.faults) > before:
                    break
        elif name == "split" and isinstance(nested, list):
            rest = (max(inn.dims[0] // 2, 1), *inn.dims[1:])
            inner = INN([rest], classes=inn.classes)
            self.layers(nested, f"{path}.layers", inner)
            self.attempt(path, inn, lambda: inn.split(inner))
        elif valid:
            self.attempt(path, inn, lambda: self.append(name, options, inn))

    def options(self, name: str, options: Any, path: str) -> bool:
        """Whether the options of a layer fit; the faults are noted."""
        before = len(self.faults)
        known = LAYERS[name]
        if not isinstance(options, dict):
            self.fault(path, f"expected a mapping of options; got {options!r}")
            return False
        for key, value in options.items():
            if key not in known:
                self.fault(f"{path}.{key}", f"unknown; known ones are {', '.join(known) or 'none'}")
            elif not CHECKS[known[key]](value):
                choices = f" among {', '.join(KINDS)}" if known[key] == "kind" else ""
                self.fault(f"{path}.{key}", f"expected a {known[key]}{choices}; got {value!r}")
        for key in REQUIRED.get(name, ()):
            if key not in options:
                self.fault(f"{path}.{key}", "missing")
        return len(self.faults) == before

    def attempt(self, path: str, inn: INN, append: Callable[[], object]) -> None:
        """Appends a layer, unless there were faults before, which change the shapes."""
        if self.faults:
            return
        try:
            append()
        except Exception as error:  # a stranger's module may raise anything
            self.fault(path, f"does not fit the shape {inn.dims}: {error}")

    def append(self, name: str, options: Options, inn: INN) -> None:
        channels = inn.dims[0]
        if name in ("coupling", "spline") and channels < 2:
            raise ValueError("a coupling needs at least 2 channels; squeeze first")
        if name == "affine":
            inn.affine(**options)
        elif name == "conv1x1":
            self.seed += 1
            initial = rotation(channels, self.seed) if options.get("rotate") else None
            inn.append(Conv1x1, initial=initial)
        elif name == "coupling":
            kind = KINDS[options.get("kind", "one-sided")]
            inn.coupling(kind, **{k: v for k, v in options.items() if k != "kind"})
        elif name == "spline":
            inn.spline(**options)
        elif name == "dct":
            inn.append(DCT)
        elif name == "permute":
            self.seed += 1
            generator = torch.Generator().manual_seed(self.seed)
            inn.append(Permute, permutation=torch.randperm(channels, generator=generator))
        elif name == "swap":
            inn.append(Permute, permutation=torch.arange(channels).roll(channels // 2))
        elif name == "module":
            self.module(inn, **options)
        else:
            inn.append(Squeeze, undo=name == "unsqueeze")

    @staticmethod
    def module(
        inn: INN, path: str, conditional: bool = False, options: Options | None = None
    ) -> None:
        module = path.partition(":")[0]
        if module.partition(".")[0] not in TRUSTED and module not in sys.modules:
            raise ValueError(
                f"{path!r} is code that only the file names, which is not imported; make the flow "
                "in a function, and name that by --flow MODULE:FUNCTION"
            )
        target = import_object(path)
        if not (inspect.isclass(target) and issubclass(target, InvertibleModule)):
            raise ValueError(f"{path!r} is not a subclass of FrEIA.modules.InvertibleModule")
        inn.append(target, conditional=conditional, **(options or {}))
