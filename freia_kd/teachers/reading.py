"""Checkpoint files: read without running anything from them, or named for what they are."""

from __future__ import annotations

import argparse
import codecs
import io
import json
import os
import pathlib
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from ..errors import CheckpointError

PathLike = str | os.PathLike[str]

META_KEY = "freia_kd"
STATE_KEYS = ("model_state", "state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
EXPORTED = ("serialized_exported_program.json", "/archive_format")  # in files of torch.export
NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
CORES = ("core", "_core")  # of numpy 1 and 2
# What trainers write beside the weights: options, paths and numpy's numbers. These are values;
# making them runs nothing, and paths of any system are read as texts that only look like paths.
KNOWN = ("torch.", "collections", "argparse", "pathlib", "numpy", "_codecs")
DATA: list[Any] = [
    argparse.Namespace,
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in CORES),
    np.dtype,
    *(type(np.dtype(name)) for name in NUMBERS),
    *((pathlib.PurePosixPath, f"pathlib{home}.PosixPath") for home in ("", "._local")),
    *((pathlib.PureWindowsPath, f"pathlib{home}.WindowsPath") for home in ("", "._local")),
]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Arguments:
        state: The weights by name, on the CPU.
        meta: What else is in the file; under `"freia_kd"`, what this package wrote there.
    """

    state: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> dict[str, Any]:
        """The metadata of this package: `arch`, `domain`, perhaps `compression`; else empty."""
        own = self.meta.get(META_KEY, {})
        return own if isinstance(own, dict) else {}


def read_checkpoint(path: PathLike) -> Checkpoint:
    """Reads the weights in a .pt, .pth, .pth.tar or .safetensors file; nothing in it is run.

    The weights may be the file's whole content, or lie under `model_state`, `state_dict`,
    `model_state_dict`, `model` or `net`. Prefixes of DataParallel and `torch.compile` are dropped.

    Raises:
        CheckpointError: If the file is missing, empty, truncated, not a checkpoint, holds code,
            or has no weights inside.
    """
    path = Path(path)
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    state, meta = _split(content)
    if not state:
        raise CheckpointError(
            f"{path} holds no weights: expected a state dict, bare or under one of "
            f"{', '.join(STATE_KEYS)}; got {_describe(content)}."
        )
    checkpoint = Checkpoint(state, meta)
    return checkpoint if checkpoint.own else Checkpoint(_strip_prefixes(state), meta)


def _is_safetensors(path: Path) -> bool:
    """Tells safetensors by suffix or content; raises for what cannot be any checkpoint."""
    try:
        head = _beginning(path, 9)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"Expected a checkpoint file; {path} is a folder.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not head:
        raise CheckpointError(f"{path} is empty.")
    return path.suffix == ".safetensors" or head[8:] == b"{"


def _beginning(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: truncated, or something else ({error})."
        ) from error
    meta = {key: _from_json(value) for key, value in metadata.items()}
    return {**meta, STATE_KEYS[0]: state}


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_torch(path: Path) -> Any:
    if _beginning(path, 4) == b"PK\x03\x04":
        _check_archive(path)
    try:
        with _data_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(_diagnose(path, error)) from error


@contextmanager
def _data_allowed() -> Iterator[None]:
    """Lets torch read what is data beside tensors; afterwards it is as it was."""
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals(DATA):
            yield
        return
    # torch 2.4 has no such context, knows a class or function by its own names alone, and does not
    # allow by itself what numpy writes bytes with.
    known = list(torch.serialization.get_safe_globals())
    own = [_renamed(*data) if isinstance(data, tuple) else data for data in DATA]
    torch.serialization.add_safe_globals([*own, codecs.encode])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)


def _renamed(make: Callable[..., Any], path: str) -> Callable[..., Any]:
    """A function that makes the same, and goes by the name in a path."""

    def made(*arguments: Any) -> Any:
        return make(*arguments)

    made.__module__, _, made.__name__ = path.rpartition(".")
    return made


def _check_archive(path: Path) -> None:
    """Names archives that are no checkpoints for what they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}); copy it again."
        ) from error
    if any(name.endswith("/constants.pkl") for name in names):
        what, load = "a TorchScript program, which is code", f"net = torch.jit.load({str(path)!r})"
        save = "net.state_dict()"
    elif any(name.endswith(EXPORTED) for name in names):
        what, load = "a program of torch.export", f"net = torch.export.load({str(path)!r})"
        save = "dict(net.state_dict)"
    elif names and all(name.endswith(".npy") for name in names):
        what, load = "a file .npz of numpy's arrays", f"arrays = numpy.load({str(path)!r})"
        save = "{name: torch.from_numpy(arrays[name]) for name in arrays}"
    else:
        return
    raise CheckpointError(f"{path} is {what}; {_conversion(path, load, save)}")


def _conversion(path: Path, load: str, save: str) -> str:
    """Two lines that make a checkpoint of something else."""
    target = str(path.with_name(f"{path.stem}-weights.pt"))
    return f"these two lines make a checkpoint of it:\n  {load}\n  torch.save({save}, {target!r})"


def _diagnose(path: Path, error: Exception) -> str:
    """Says why torch refused a file."""
    named = _named_globals(path)
    suspects = [name for name in named if name in str(error)]
    suspects += [name for name in named if not name.startswith(("torch.", "collections."))]
    if suspects and _is_module(named):
        load = f"net = torch.load({str(path)!r}, weights_only=False){_module_key(path)}"
        return (
            f"{path} holds a whole module (it names {suspects[0]}), whose code would run when it "
            "is loaded; it was refused and nothing was run. Where you trust it and have its code, "
            f"{_conversion(path, load, 'net.state_dict()')}"
        )
    if suspects:
        return (
            f"{path} wants to run code when it is loaded (it names {suspects[0]}); it was refused "
            "and nothing was run. Save model.state_dict() instead of whole objects."
        )
    if isinstance(error, pickle.UnpicklingError):  # torch's words advise to load without care
        reason = f"it begins with {_beginning(path, 8)!r}"
    else:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{path} is not a checkpoint, or a damaged one ({reason})."


def _is_module(named: list[str]) -> bool:
    """Whether a file's objects are those of a module, and nothing of Python's own could act."""
    harmless = {"set", "OrderedDict", "defaultdict", "encode", "Namespace", "PosixPath"}
    own = {*sys.stdlib_module_names, "__builtin__"}
    ends = [(name.partition(".")[0], name.rpartition(".")[2]) for name in named]
    acting = [last for first, last in ends if first in own and last not in harmless]
    return not acting and any(name.startswith("torch.nn.modules.") for name in named)


def _module_key(path: Path) -> str:
    """What stands behind a file's content to get its module: `['model']` where a dict holds it."""
    with suppress(ValueError), _pickle_stream(path) as stream:
        while True:  # the format of torch < 1.6 has several pickles in a row
            is_found, key = _scan_for_module(stream)
            if is_found:
                return "" if key is None else f"[{key!r}]"
    return ""


def _scan_for_module(stream: IO[bytes]) -> tuple[bool, str | None]:
    """Whether the next pickle names a module's class, and the key before it if it is a dict."""
    is_dict, memo, before = False, dict[int, str](), ""
    strings = [("", False)]  # so far, and whether each begins a tuple, or a dict's entries
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        is_dict |= opcode.name == "EMPTY_DICT" and number <= 2  # behind PROTO and FRAME
        if opcode.name.endswith("PUT") or opcode.name == "MEMOIZE":
            memo[len(memo) if argument is None else int(argument)] = strings[-1][0]
        elif "GET" in opcode.name:
            strings.append((memo.get(int(argument or 0), ""), before == "MARK"))
        elif opcode.name in ("GLOBAL", "STACK_GLOBAL"):
            is_stacked = opcode.name == "STACK_GLOBAL"
            name = (
                ".".join(s for s, _ in strings[-2:])
                if is_stacked
                else str(argument).replace(" ", ".")
            )
            if name.startswith("torch.nn.") or not name.startswith(KNOWN):
                keys = strings[1 : -2 if is_stacked else None]
                if keys[-1:] == [("module", True)] and len(keys) > 1:  # torch < 1.6 adds it
                    keys.pop()
                return True, keys[-1][0] if is_dict and keys else None
        elif isinstance(argument, str):
            strings.append((argument, before == "MARK"))
        before = opcode.name
    return False, None


def _named_globals(path: Path) -> list[str]:
    """The functions and classes that the pickles in a file name; they are scanned, not loaded."""
    names: list[str] = []
    try:
        with _pickle_stream(path) as stream:
            while True:  # the format of torch < 1.6 has several pickles in a row
                names += _scan_pickle(stream)
    except Exception:  # the end of the pickles, or no pickle at all
        return names


def _pickle_stream(path: Path) -> IO[bytes]:
    if not zipfile.is_zipfile(path):
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return io.BytesIO(archive.read(member))


def _scan_pickle(stream: IO[bytes]) -> list[str]:
    names: list[str] = []
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            names.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return names


def _split(content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the rest of a file's content."""
    if not isinstance(content, Mapping):
        return {}, {}
    for key in STATE_KEYS:
        if isinstance(content.get(key), Mapping):
            return _tensors(content[key]), {k: v for k, v in content.items() if k != key}
    return _tensors(content), {}


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict with the keys {', '.join(map(repr, list(content)[:5])) or '(none)'}"
    return f"an object of type {type(content).__name__}"


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES * 2:  # either may be outside
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
