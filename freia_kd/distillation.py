"""The student's training loop, and how far it agrees with its teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

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
        check_every: Steps between checks of the agreement on held-out synthetic inputs.
        patience: Checks without a better agreement after which training stops early; `None` for
            never. The learning rate then has not fallen to 0, so patience should be long.
    """

    divergence: str = "l1"
    temperature: float = 1.0
    steps: int = 2_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    check_every: int = 200
    patience: int | None = None


class Best:
    """The weights that agree best with the teacher on held-out synthetic inputs, so far.

    Arguments:
        student: The student while it trains.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self.agreement, self.weights = -1.0, copy.deepcopy(student.state_dict())
        self.stale = 0  # checks since the agreement was last better

    def offer(self, value: float) -> None:
        """Takes the student's present weights if they agree at least as well."""
        self.stale = 0 if value > self.agreement else self.stale + 1
        if value >= self.agreement:
            self.agreement, self.weights = value, copy.deepcopy(self.student.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "agreement": self.agreement,
            "weights": dict(self.weights),
            "stale": self.stale,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.agreement, self.weights = state_dict["agreement"], state_dict["weights"]
        self.stale = state_dict["stale"]


def train_student(
    student: Classifier,
    data: SyntheticSet,
    options: DistillationOptions | None = None,
    generator: torch.Generator | None = None,
    run: Run | None = None,
    name: str = "student",
    heldout: SyntheticSet | None = None,
) -> None:
    """Trains a student in place on the teacher's logits of a synthetic set.

    The student stays in eval mode: its normalisation layers keep the teacher's statistics, which
    the paper found to be better (section 5.2).

    Arguments:
        student: The student, on the device to train on.
        data: Synthetic inputs with the teacher's logits.
        options: How to train.
        generator: The source of the order of the data, on the CPU.
        run: Where states and metrics are kept; training resumes from what it holds.
        name: The name of the stage.
        heldout: Synthetic inputs that choose the weights: of those every `check_every` steps, the
            student ends with the ones that agree best with the teacher on those of even index.
            Without them it ends with the last weights.

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
    best = Best(student)
    parts: dict[str, Stateful] = {
        "student": student,
        "optimizer": optimizer,
        "schedule": schedule,
        "best": best,
    }
    loop = TrainingLoop(name, options.steps, parts, generator, optimizer, run, f"train {name}")
    for step in loop:
        rows = torch.randint(len(data), (options.batch_size,), generator=generator)
        x, target, _ = (t.to(device) for t in data.batch(rows))
        loss = divergence(student(x), target, options.temperature)
        if loop.accept(loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        is_last = step + 1 == options.steps
        if heldout is not None and ((step + 1) % options.check_every == 0 or is_last):
            best.offer(agreement(student, heldout, half="even"))
            if options.patience is not None and best.stale >= options.patience:
                loop.stop()
    if heldout is not None:
        student.load_state_dict(best.weights)


@torch.no_grad()
def agreement(
    classifier: nn.Module,
    data: SyntheticSet,
    batch_size: int = 1024,
    half: Literal["even", "odd"] | None = None,
) -> float:
    """The share of a synthetic set's inputs on which a classifier and the teacher say the same.

    Arguments:
        classifier: The classifier.
        data: Synthetic inputs with the teacher's logits.
        batch_size: Inputs at a time.
        half: Only the inputs with even or with odd indices.
    """
    device = next(classifier.parameters()).device
    rows = torch.arange(len(data))
    rows = rows if half is None else rows[half == "odd" :: 2]
    same = 0
    for part in rows.split(batch_size):
        x, logits, _ = data.batch(part)
        same += int((classifier(x.to(device)).argmax(1).cpu() == logits.argmax(1)).sum())
    return same / len(rows)


@torch.no_grad()
def predict(classifier: nn.Module, data: LabelledData, batch_size: int = 1024) -> Tensor:
    """The predicted class of every input, with shape `(N,)`."""
    device = next(classifier.parameters()).device
    return torch.cat(
        [classifier(x.to(device)).argmax(1).cpu() for x, _ in data.batches(batch_size)]
    )
