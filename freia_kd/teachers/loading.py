"""Checkpoints of classifiers: read without running anything from them, written whole."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..domain import DOMAINS, Domain
from ..errors import CheckpointError, UsageError
from ..files import atomic
from .build import ARCHITECTURES, build_net
from .classifier import Classifier, check_logits, check_weights

PathLike = str | os.PathLike[str]

META_KEY = "freia_kd"
STATE_KEYS = ("model_state", "state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


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
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(_diagnose(path, error)) from error


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}); copy it again."
        ) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program, which is code; save model.state_dict()."
        )


def _diagnose(path: Path, error: Exception) -> str:
    """Says in one line why torch refused a file."""
    named = _named_globals(path)
    suspects = [name for name in named if name in str(error)]
    suspects += [name for name in named if not name.startswith(("torch.", "collections."))]
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


def recognise_arch(state: dict[str, Tensor]) -> str:
    """Names the known architecture whose keys and shapes the weights have.

    Raises:
        UsageError: If there is none.

    Example:
        >>> from freia_kd.teachers.lenet5 import LeNet5
        >>> recognise_arch(LeNet5(1, 10).state_dict())
        'lenet5'
    """
    for name in ARCHITECTURES.builtin:
        if _has_shapes_of(name, state):
            return name
    raise UsageError(
        f"The architecture of these weights is not one of the known ones "
        f"({', '.join(ARCHITECTURES)}); name it with --arch NAME|package.module:Class. "
        f"The weights are {_some(list(state))}."
    )


def _has_shapes_of(arch: str, state: dict[str, Tensor]) -> bool:
    make = ARCHITECTURES[arch]
    try:
        sizes = make.sizes(state)
    except LookupError:
        return False
    with torch.device("meta"):
        expected = make(**sizes).state_dict()
    return {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in state.items()}


Build = Callable[[Checkpoint, str, Domain], nn.Module]


def load_classifier(
    path: PathLike,
    arch: str | None = None,
    domain: Domain | None = None,
    build: Build | None = None,
) -> Classifier:
    """Loads a classifier whose net is of an architecture as it is.

    What the rest of the package and its users call is
    :func:`freia_kd.compression.load_classifier`, which takes compressed nets as well.

    Arguments:
        path: The checkpoint, see :func:`read_checkpoint`.
        arch: A name of `ARCHITECTURES` or a path `package.module:Class`; recognised from the
            weights or the file's metadata if not given.
        domain: The input domain; needed unless this package wrote the file.
        build: Makes the net that a checkpoint's weights are of, with other values, from the
            checkpoint, the architecture and the domain; by default :func:`build_net` does.

    Returns:
        The classifier, in eval mode, on the CPU.

    Raises:
        CheckpointError: If the file is not a sound checkpoint of the architecture.
        UsageError: If the architecture or the domain is unknown or contradicts the file.
    """
    checkpoint = read_checkpoint(path)
    arch = _choose_arch(path, checkpoint, arch)
    domain = _choose_domain(path, checkpoint, domain, arch)
    if build is not None:
        net = build(checkpoint, arch, domain)
    elif "compression" not in checkpoint.own:
        net = build_net(arch, domain, checkpoint.state)
    else:
        raise UsageError(f"{path} holds a compressed net; load it by freia_kd.load_student.")
    _load_weights(path, net, checkpoint.state, arch)
    classifier = Classifier(net, domain, arch).eval()
    _check(path, classifier)
    return classifier


def _choose_arch(path: PathLike, checkpoint: Checkpoint, arch: str | None) -> str:
    if arch is not None:
        return arch
    recorded = checkpoint.own.get("arch")
    if recorded is None:
        return recognise_arch(checkpoint.state)
    if ":" in str(recorded):  # importing what a file names would run what a file names
        raise UsageError(
            f"{path} is of the architecture {recorded!r}, which is code of its own; if you trust "
            f"that code, pass --arch {recorded}."
        )
    return str(recorded)


def _choose_domain(
    path: PathLike, checkpoint: Checkpoint, domain: Domain | None, arch: str
) -> Domain:
    recorded = _recorded_domain(path, checkpoint)
    if domain is None and recorded is None:
        raise UsageError(
            f"The input domain of {path} is unknown (its normalisation cannot be read off the "
            f"weights); pass --domain {'|'.join(DOMAINS)}, or --input-shape, --mean, --std and "
            "--classes."
        )
    if domain is None:
        assert recorded is not None
        return recorded
    if recorded is not None and replace(domain, name=recorded.name) != recorded:
        raise UsageError(
            f"{path} was made for the domain {recorded.to_dict()}; got {domain.to_dict()}. "
            "Leave the domain away to use the recorded one."
        )
    if recorded is None:
        _check_sizes(path, checkpoint.state, domain, arch)
    return domain


def _recorded_domain(path: PathLike, checkpoint: Checkpoint) -> Domain | None:
    if "domain" not in checkpoint.own:
        return None
    try:
        return Domain.from_dict(checkpoint.own["domain"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} records a domain that is none: {error}") from error


def _check_sizes(path: PathLike, state: dict[str, Tensor], domain: Domain, arch: str) -> None:
    """Compares the inputs and classes of a known architecture's weights with the domain's."""
    if arch not in ARCHITECTURES.builtin:
        return
    try:
        got = ARCHITECTURES[arch].sizes(state)
    except LookupError:
        return  # another net: the comparison of keys will say so
    expected = {
        "channels": domain.shape[0],
        "features": math.prod(domain.shape),
        "classes": domain.classes,
    }
    faults = [
        f"{got[name]} {name} (the domain {domain.name!r} has {expected[name]})"
        for name in expected
        if name in got and got[name] != expected[name]
    ]
    if faults:
        raise UsageError(f"The weights in {path} are for {' and '.join(faults)}.")


def _load_weights(path: PathLike, net: nn.Module, state: dict[str, Tensor], arch: str) -> None:
    expected = net.state_dict()
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    mismatched = [
        f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and not is_lazy(v) and state[k].shape != v.shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": mismatched}
    faults = [f"{what}: {_some(keys)}" for what, keys in found.items() if keys]
    if faults:
        raise CheckpointError(
            f"{path} holds the weights of another net than {arch} ({'; '.join(faults)})."
        )
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"The weights in {path} do not load into {arch}: {reason}") from error


def _some(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _check(path: PathLike, classifier: Classifier) -> None:
    try:
        check_weights(classifier.net)
        check_logits(classifier)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def save_classifier(
    path: PathLike, classifier: Classifier, meta: dict[str, Any] | None = None
) -> None:
    """Writes a classifier with its architecture and domain, as safetensors or for torch.load.

    Equal weights and metadata give equal bytes.

    Arguments:
        path: The file, safetensors if it ends in `.safetensors`; replaced as a whole.
        classifier: The classifier.
        meta: More metadata, of JSON types. A compressed net needs its `{"compression": steps}`
            (:func:`freia_kd.compression.rebuild`) to be loaded again.

    Raises:
        TypeError: If the metadata are not of JSON types.
        OSError: If the file cannot be written; what was there stays.
    """
    own = {"arch": classifier.arch, "domain": classifier.domain.to_dict(), **(meta or {})}
    text = json.dumps(own, allow_nan=False)
    # Tied weights are written twice: safetensors takes no tensors that share memory.
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in file_state(classifier.net).items()
    }
    with atomic(path) as temporary:
        if Path(path).suffix == ".safetensors":
            # One entry only: safetensors writes several in an order that varies by process.
            safetensors.torch.save_file(state, temporary, {META_KEY: text})
        else:
            # Given a name, torch.save would write that (temporary) name into the file.
            with temporary.open("wb") as file:
                torch.save({STATE_KEYS[0]: state, META_KEY: json.loads(text)}, file)


def file_state(net: nn.Module) -> dict[str, Tensor]:
    """A net's state dict as files hold it.

    A module that stores its weights in fewer bytes has a method `file_state`, which gives tensors
    to write in place of its own ones of the same names, and that its `load_state_dict` takes.

    Example:
        >>> file_state(nn.Linear(2, 1, bias=False))["weight"].dtype
        torch.float32
    """
    state: dict[str, Tensor] = net.state_dict()
    for name, module in net.named_modules(remove_duplicate=False):
        if hasattr(module, "file_state"):
            state.update({f"{name}.{key}".lstrip("."): v for key, v in module.file_state().items()})
    return state
