"""The student's training loop, and how far it agrees with its teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .data.datasets import LabelledData
from .data.synthetic import SyntheticSet
from .objectives.divergences import DIVERGENCES
from .runs.loop import Stateful, TrainingLoop
from .runs.run import Run
from .teachers.classifier import Classifier


@dataclass(frozen=True)
class DistillationOptions:
    """How a student learns.

    Arguments:
        divergence: The loss against the teacher's logits, by name.
        temperature: The temperature of both softmaxes.
        steps: Training steps.
        batch_size: Inputs in a step.
        learning_rate: Adam's, falling to 0 as a cosine.
    """

    divergence: str = "l1"
    temperature: float = 1.0
    steps: int = 2_000
    batch_size: int = 256
    learning_rate: float = 2e-3


def train_student(
    student: Classifier,
    data: SyntheticSet,
    options: DistillationOptions | None = None,
    generator: torch.Generator | None = None,
    run: Run | None = None,
    name: str = "student",
) -> None:
    """Trains a student in place on the teacher's logits of a synthetic set.

    The student stays in eval mode: its normalisation layers keep the teacher's statistics, which
    the paper found to be better (section 5.2). The weights after the last step are the result.

    Arguments:
        student: The student, on the device to train on.
        data: Synthetic inputs with the teacher's logits.
        options: How to train.
        generator: The source of the order of the data, on the CPU.
        run: Where states and metrics are kept; training resumes from what it holds.
        name: The name of the stage.

    Raises:
        TrainingError: If the loss stays non-finite.
    """
    options = options or DistillationOptions()
    generator = generator or torch.Generator().manual_seed(torch.seed())
    device = next(student.parameters()).device
    divergence = DIVERGENCES[options.divergence]
    student.eval().requires_grad_(True)
    optimizer = torch.optim.Adam(student.parameters(), options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    parts: dict[str, Stateful] = {"student": student, "optimizer": optimizer, "schedule": schedule}
    loop = TrainingLoop(name, options.steps, parts, generator, optimizer, run, f"train {name}")
    for _ in loop:
        rows = torch.randint(len(data), (options.batch_size,), generator=generator)
        x, target, _ = (t.to(device) for t in data.batch(rows))
        loss = divergence(student(x), target, options.temperature)
        if loop.accept(loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def agreement(classifier: nn.Module, data: SyntheticSet, batch_size: int = 1024) -> float:
    """The share of a synthetic set's inputs on which a classifier and the teacher say the same."""
    device = next(classifier.parameters()).device
    same = 0
    for rows in torch.arange(len(data)).split(batch_size):
        x, logits, _ = data.batch(rows)
        same += int((classifier(x.to(device)).argmax(1).cpu() == logits.argmax(1)).sum())
    return same / len(data)


@torch.no_grad()
def predict(classifier: nn.Module, data: LabelledData, batch_size: int = 1024) -> Tensor:
    """The predicted class of every input, with shape `(N,)`."""
    device = next(classifier.parameters()).device
    return torch.cat(
        [classifier(x.to(device)).argmax(1).cpu() for x, _ in data.batches(batch_size)]
    )
