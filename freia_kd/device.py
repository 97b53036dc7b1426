"""Where to compute."""

from __future__ import annotations

from typing import get_args

import torch

from .config import Device
from .errors import ConfigError, UsageError


def choose_device(name: Device) -> torch.device:
    """The device that `"auto"`, `"cpu"` or `"cuda"` names.

    Raises:
        UsageError: If there is no such device here.
    """
    if name not in get_args(Device):
        raise ConfigError([f"device: expected 'auto', 'cpu' or 'cuda'; got {name!r}."])
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device here; use --device cpu.")
    return torch.device(name)
