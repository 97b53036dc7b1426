"""Weights that torchvision publishes, by the names that it gives them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from ..domain import Domain
from ..errors import CheckpointError, UsageError, unknown
from .reading import Checkpoint, PathLike

NAME = re.compile(r"(?:torchvision(?:\.models)?[.:])?(\w+_Weights)\.(\w+)")


def is_published(path: PathLike) -> bool:
    """Whether what is given for a file is the name of weights that torchvision publishes.

    Example:
        >>> is_published("ResNet18_Weights.IMAGENET1K_V1"), is_published("teacher.pt")
        (True, False)
    """
    return NAME.fullmatch(os.fspath(path)) is not None and not Path(path).exists()


def read_published(name: PathLike) -> tuple[Checkpoint, str, Domain]:
    """Weights by torchvision's name, with the architecture and the domain that belong to them.

    torch keeps what it has downloaded; what is there is not downloaded again. Nothing in the file
    is run.

    Arguments:
        name: Such as `"ResNet18_Weights.IMAGENET1K_V1"`, perhaps with `torchvision.models:` before.

    Raises:
        UsageError: If there are no such weights of a classifier.
        CheckpointError: If they can neither be found nor downloaded.
    """
    from torchvision import models

    found = NAME.fullmatch(os.fspath(name))
    kinds = {
        models.get_model_weights(model).__name__: model
        for model in models.list_models(module=models)
    }
    kind, member = found.groups() if found else (os.fspath(name), "")
    if kind not in kinds:
        raise UsageError(unknown(kind, sorted(kinds), "weights of torchvision"))
    members = models.get_model_weights(kinds[kind]).__members__
    if member not in members:
        raise UsageError(unknown(member, members, f"weights {kind}"))
    weights: Any = members[member]
    transforms = weights.transforms()
    shape = (len(transforms.mean), transforms.crop_size[0], transforms.crop_size[0])
    classes = len(weights.meta["categories"])
    domain = Domain(shape, classes, transforms.mean, transforms.std, f"{kind}.{member}")
    return Checkpoint(_download(weights)), f"torchvision.models:{kinds[kind]}", domain


def _download(weights: Any) -> dict[str, torch.Tensor]:
    try:
        return weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"Cannot get {weights} ({reason}). Without a network, fetch {weights.url} elsewhere "
            f"and put it into {folder}."
        ) from error
