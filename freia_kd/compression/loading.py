"""Files of classifiers, compressed or not: what every other part of the package loads them by."""

from __future__ import annotations

from torch import nn

from ..domain import Domain
from ..errors import CheckpointError, UsageError
from ..teachers import Checkpoint, Classifier, Teacher, build_net, loading
from ..teachers.loading import PathLike
from .method import Trusted, original_state, rebuild


def load_classifier(
    path: PathLike,
    arch: str | None = None,
    domain: Domain | None = None,
    trusted: Trusted = (),
) -> Classifier:
    """Loads a classifier: a teacher from anywhere, or a student of this package.

    Arguments:
        path: The checkpoint, see :func:`~freia_kd.teachers.read_checkpoint`.
        arch: A name of an architecture or a path `package.module:Class`; recognised from the
            weights or the file's metadata if not given.
        domain: The input domain; needed unless this package wrote the file.
        trusted: Methods of compression of the user's own, as classes or `module:Class`: code that
            only the file names is not imported.

    Returns:
        The classifier, in eval mode, on the CPU.

    Raises:
        CheckpointError: If the file is not a sound checkpoint of the architecture.
        UsageError: If the architecture or the domain is unknown or contradicts the file, or the
            file was compressed by code that is not trusted.
    """

    def build(checkpoint: Checkpoint, arch: str, domain: Domain) -> nn.Module:
        if "compression" not in checkpoint.own:
            return build_net(arch, domain, checkpoint.state)
        try:
            steps = checkpoint.own["compression"]
            net = build_net(arch, domain, original_state(checkpoint.state, steps, trusted))
            return rebuild(net, steps, trusted)
        except UsageError as error:
            raise UsageError(f"Cannot load {path}: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} records a compression that does not fit its net: {error}"
            ) from error

    return loading.load_classifier(path, arch, domain, build)


def load_teacher(
    path: PathLike,
    arch: str | None = None,
    domain: Domain | None = None,
    trusted: Trusted = (),
) -> Teacher:
    """Loads a classifier and freezes it; arguments and errors as in :func:`load_classifier`."""
    classifier = load_classifier(path, arch, domain, trusted)
    return Teacher(classifier.net, classifier.domain, classifier.arch)
