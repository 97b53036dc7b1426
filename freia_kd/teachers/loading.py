"""Classifiers of checkpoints, whoever wrote them, and their own files, written whole."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..domain import DOMAINS, Domain
from ..errors import CheckpointError, UsageError
from ..files import atomic
from .build import ARCHITECTURES, build_net
from .classifier import Classifier, check_logits, check_weights
from .published import is_published, read_published
from .reading import META_KEY, STATE_KEYS, Checkpoint, PathLike, read_checkpoint


def recognise_arch(state: Mapping[str, Tensor]) -> str:
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
        f"({', '.join(ARCHITECTURES)}); name it with --arch NAME|package.module:Class, and its "
        "constructor's arguments with --arch-arg NAME=VALUE. "
        f"The weights are {_some(list(state))}."
    )


def _has_shapes_of(arch: str, state: Mapping[str, Tensor]) -> bool:
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
        path: The checkpoint, see :func:`read_checkpoint`; or weights by torchvision's name
            (:func:`~freia_kd.teachers.published.read_published`).
        arch: A name of `ARCHITECTURES` or a path `package.module:Class`, see :func:`build_net`;
            recognised from the weights or the file's metadata if not given.
        domain: The input domain; needed unless this package wrote the file.
        build: Makes the net that a checkpoint's weights are of, with other values, from the
            checkpoint, the architecture and the domain; by default :func:`build_net` does.

    Returns:
        The classifier, in eval mode, on the CPU.

    Raises:
        CheckpointError: If the file is not a sound checkpoint of the architecture.
        UsageError: If the architecture or the domain is unknown or contradicts the file.
    """
    if is_published(path):
        checkpoint, known, own_domain = read_published(path)
        arch, domain = arch or known, domain or own_domain
    else:
        checkpoint = read_checkpoint(path)
    if not checkpoint.own:
        checkpoint = _without_wrapper(path, checkpoint, arch)
    arch = _choose_arch(path, checkpoint, arch)
    domain = _choose_domain(path, checkpoint, domain, arch)
    if build is None and "compression" in checkpoint.own:
        raise UsageError(f"{path} holds a compressed net; load it by freia_kd.load_student.")
    make = build or _build
    net = make(checkpoint, arch, domain)
    if not checkpoint.own and set(net.state_dict()) != set(checkpoint.state):
        keys = set(net.state_dict())
        inner = _part(path, checkpoint, lambda state: set(state) == keys)
        net, checkpoint = (net if inner is checkpoint else make(inner, arch, domain)), inner
    _load_weights(path, net, checkpoint.state, arch)
    classifier = Classifier(net, domain, arch).eval()
    _check(path, classifier)
    return classifier


def _build(checkpoint: Checkpoint, arch: str, domain: Domain) -> nn.Module:
    return build_net(arch, domain, checkpoint.state)


def _without_wrapper(path: PathLike, checkpoint: Checkpoint, arch: str | None) -> Checkpoint:
    """The weights of a known architecture without what trainers have put around it."""
    names = [name for name in ARCHITECTURES.builtin if arch in (None, name)]
    return _part(path, checkpoint, lambda s: any(_has_shapes_of(name, s) for name in names))


def _part(
    path: PathLike, checkpoint: Checkpoint, fits: Callable[[dict[str, Tensor]], bool]
) -> Checkpoint:
    """The weights under the one prefix under which all that a net needs is, and nothing else.

    Lightning and others keep the net in an attribute of a larger module, such as `model.`; what
    that module has beside it (a loss, metrics) is not the net's.

    Raises:
        UsageError: If there are several such prefixes, as with averaged weights beside the last.
    """
    state = checkpoint.state
    if fits(state):
        return checkpoint
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        for match in re.finditer(r"\.", key):
            parts.setdefault(key[: match.end()], {})[key[match.end() :]] = value
    fitting = [prefix for prefix, part in parts.items() if fits(part)]
    if len(fitting) > 1:
        raise UsageError(
            f"{path} holds several nets that fit, under {_some(fitting)}; save the state dict of "
            "one of them."
        )
    return Checkpoint(parts[fitting[0]], checkpoint.meta) if fitting else checkpoint


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
            "Leave the domain out to use the recorded one."
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
        raise CheckpointError(f"{path} records no valid domain: {error}") from error


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
    # Copied into floats, complex numbers lose a part, and integers the scale that they lack.
    odd = [
        f"{k} ({str(state[k].dtype).removeprefix('torch.')})"
        for k, v in expected.items()
        if k in state
        and v.is_floating_point()
        and not state[k].is_floating_point()
        and not (state[k].dtype == torch.int8 and f"{k}_scale" in expected)
    ]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "wrong shape": mismatched,
        "no real numbers": odd,
    }
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
