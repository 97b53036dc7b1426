"""How right a classifier is, and how far it agrees with its teacher: the one place for both."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .data.datasets import LabelledData
from .data.synthetic import SyntheticSet
from .device import send
from .modes import evaluating

ONE_SIDED = 0.95  # the share of one answer from which on agreeing shows nothing
BATCH_SIZE = 128  # larger batches are slower on CPUs


def predict(classifier: nn.Module, data: LabelledData) -> Tensor:
    """The predicted class of every input, with shape `(N,)`."""
    device = next(classifier.parameters()).device
    with evaluating(classifier):
        parts = [classifier(send(x, device)).argmax(1) for x, _ in data.batches(BATCH_SIZE)]
    return torch.cat(parts).cpu()


def share_equal(ours: Tensor, theirs: Tensor) -> float:
    """The share of entries that are equal, of class indices `(N,)`.

    Example:
        >>> share_equal(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0]))
        0.75
    """
    return ours.eq(theirs).double().mean().item()


def commonest(answers: Tensor) -> float:
    """The share of inputs to which the commonest answer is given, of class indices `(N,)`.

    Example:
        >>> commonest(torch.tensor([3, 3, 1, 3]))
        0.75
    """
    return answers.bincount().max().item() / len(answers)


def accuracy(classifier: nn.Module, data: LabelledData) -> float:
    """The share of labelled inputs that a classifier gets right."""
    return share_equal(predict(classifier, data), data.labels)


def agreement(
    classifier: nn.Module, data: SyntheticSet, half: Literal["even", "odd"] | None = None
) -> float:
    """The share of a synthetic set's inputs on which a classifier and the teacher say the same.

    Arguments:
        classifier: The classifier.
        data: Synthetic inputs with the teacher's logits.
        half: Only the inputs with even or with odd indices.
    """
    return share_equal(*predict_with_teacher(classifier, data, half))


def predict_with_teacher(
    classifier: nn.Module, data: SyntheticSet, half: Literal["even", "odd"] | None = None
) -> tuple[Tensor, Tensor]:
    """The classes that a classifier and the teacher predict, with shape `(N,)` each.

    Arguments:
        classifier: The classifier.
        data: Synthetic inputs with the teacher's logits.
        half: Only the inputs with even or with odd indices.
    """
    device = next(classifier.parameters()).device
    rows = torch.arange(len(data))
    rows = rows if half is None else rows[half == "odd" :: 2]
    ours, theirs = [], []
    with evaluating(classifier):
        for part in rows.split(BATCH_SIZE):
            x, logits, _ = data.batch(part, device)
            ours.append(classifier(x).argmax(1))
            theirs.append(logits.argmax(1))
    return torch.cat(ours).cpu(), torch.cat(theirs).cpu()
