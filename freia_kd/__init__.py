"""Data-free knowledge distillation with bi-directional normalizing flows, on FrEIA and normflows.

Importing the package loads neither torch nor anything else that is slow; its parts are imported
when they are used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PARTS = {
    "distill": "pipeline",
    "open_job": "pipeline",
    "load_student": "pipeline",
    "Domain": "domain",
    "Classifier": "teachers",
    "Teacher": "teachers",
    "load_teacher": "teachers",
    "load_classifier": "teachers",
    "load_dataset": "data.datasets",
    "SyntheticSet": "data.synthetic",
    "BDNF": "synthesizers.bdnf",
    "BDNFOptions": "synthesizers.bdnf",
    "Noise": "synthesizers.noise",
    "build_flow": "flows",
}

__all__ = ["__version__", *_PARTS]


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PARTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS])
