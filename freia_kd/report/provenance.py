"""When and where a report was made, and by which versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import torch

from ..ranks import launched
from ..version import COMMAND, __version__
from .schema import Provenance

PACKAGES = ("torch", "torchvision", "FrEIA", "normflows", "tensorly", "numpy")


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of what decides the numbers."""
    own = {"freia_kd": __version__, "python": platform.python_version()}
    return {**own, **{name: version(name) for name in PACKAGES}}


def record(
    config: Mapping[str, Any],
    device: torch.device | str,
    seed: int | None = None,
) -> Provenance:
    """The provenance of what is computed here and now.

    Arguments:
        config: All options, as plain JSON types.
        device: Where it is computed.
        seed: The seed of all random numbers, if there is one.
    """
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seed=seed,
        device=str(device),
        machine=f"{platform.system()} {platform.machine()}",
        threads=torch.get_num_threads(),
        processes=launched(),
        versions=versions(),
        config=dict(config),
        command=COMMAND.get(),
    )
