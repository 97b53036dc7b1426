"""Training states on disk: nested tensors and plain values as one safetensors file, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from ..errors import CheckpointError
from ..files import atomic


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):  # pairs, since optimizers have integer keys
        return {"dict": [[k, _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(v, tensors) for v in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"Expected tensors and plain values in a state; got {type(value).__name__}.")


def _unpack(node: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in value}
    return [_unpack(v, tensors) for v in value] if kind == "list" else value


def save_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Writes a nested state (tensors, numbers, strings, lists, dicts) atomically.

    Tuples come back as lists.

    Raises:
        TypeError: If the state holds anything else.
        OSError: If the file cannot be written; an earlier one stays.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps(_pack(state, tensors))
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"state": skeleton})


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what :func:`save_state` wrote, onto the CPU.

    Raises:
        CheckpointError: If the file is not such a state.
    """
    try:
        with safetensors.safe_open(Path(path), framework="pt") as file:
            skeleton = (file.metadata() or {})["state"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _unpack(json.loads(skeleton), tensors)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"Expected a training state in {path}; {error}.") from error
