"""Libraries that are optional extras of this package."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, extra: str) -> Any:
    """Imports a library that an extra installs.

    Raises:
        ImportError: If it is missing; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Expected the library {module}, which is not installed; install it by "
            f"`pip install 'freia_kd[{extra}]'` (from a checkout `pip install '.[{extra}]'`)."
        ) from error
