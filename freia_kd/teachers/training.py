"""The plain training loop that makes a teacher from labelled data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ranks
from ..device import send
from ..domain import Domain
from ..evaluation import accuracy
from ..training import (
    Best,
    Checkpoints,
    Progress,
    Remedies,
    Stateful,
    TrainingLoop,
    channels_last,
    keep_layout,
    own_generator,
)
from .build import build_net
from .classifier import Classifier, check_classifier

if TYPE_CHECKING:
    from ..data.datasets import LabelledData


def train_classifier(
    net: nn.Module,
    train: LabelledData,
    domain: Domain,
    epochs: int = 8,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    generator: torch.Generator | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    device: torch.device | str = "cpu",
    heldout: LabelledData | None = None,
    checkpoints: Checkpoints | None = None,
    title: str = "train the classifier",
) -> None:
    """Trains a net in place by cross-entropy, with Adam and a cosine learning rate.

    Arguments:
        net: The net, from normalised inputs to logits; left on `device`, in eval mode.
        train: The training data.
        domain: The domain that normalises the inputs.
        epochs: The number of passes over the data.
        batch_size: Images per step.
        learning_rate: The learning rate of the first step; it falls to zero.
        generator: The source of the order of the data, on the CPU; by default one that torch's
            global generator seeds. Dropout draws from torch's global generator.
        on_step: Called after each step with `epoch`, `step`, `steps`, `learning_rate` and the
            `loss` that was read last, on a GPU one of up to twenty steps ago.
        device: Where to train.
        heldout: Data that choose the weights: of those after every epoch, the net ends with the
            most accurate ones, the latest of equal ones. Without them it ends with the last ones.
        checkpoints: Where states and metrics are kept; training resumes from what is there.
        title: What a person reads beside the bar.

    Raises:
        ValueError: If the data or the net do not fit the domain, or there is nothing to do.
        TrainingError: If the loss stays non-finite.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            f"Expected at least 1 epoch and 1 input per batch; got {epochs} and {batch_size}."
        )
    train.check(domain)
    classifier = Classifier(net, domain, type(net).__name__).to(device)
    check_classifier(classifier)
    classifier.train()
    # The last, smaller batch is left out: batch normalisation cannot do with one input.
    batch_size = min(batch_size, len(train))
    own = ranks.share(batch_size)
    per_epoch = len(train) // batch_size
    steps = epochs * per_epoch
    generator = own_generator(generator)
    with channels_last(net):
        optimizer = torch.optim.Adam(net.parameters(), learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        keep_layout(optimizer)
        best, order = Best(classifier), _Order(len(train))
        parts: dict[str, Stateful] = {
            "classifier": classifier,
            "optimizer": optimizer,
            "schedule": schedule,
            "best": best,
            "order": order,
        }
        loop = TrainingLoop(
            title,
            steps,
            parts,
            generator,
            optimizer,
            checkpoints,
            remedies=Remedies("--learning-rate " if checkpoints else ""),  # of train-teacher
        )
        for step in loop:
            if step % per_epoch == 0:
                order.rows = torch.randperm(len(train), generator=generator)
            first = step % per_epoch * batch_size
            x, y = train.take(order.rows[first : first + batch_size][own])
            loss = F.cross_entropy(classifier(send(x, device)), send(y, device))
            rate = float(schedule.get_last_lr()[0])
            if loop.accept(loss):
                loop.backward(loss)
                optimizer.step()
                schedule.step()
            if on_step is not None:
                epoch = step // per_epoch + 1
                said = {"epoch": epoch, "step": step + 1, "steps": steps}
                known = loop.last_values.get("loss", math.nan)
                on_step({**said, "loss": known, "learning_rate": rate})
            if heldout is not None and (step + 1) % per_epoch == 0:
                best.offer(*ranks.mean([accuracy(classifier, heldout)]))
        if heldout is not None:
            classifier.load_state_dict(best.weights)
    classifier.eval()


class _Order:
    """The order of the data in an epoch, and what dropout draws from."""

    def __init__(self, size: int) -> None:
        self.rows = torch.arange(size)

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.rows, "random": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        torch.set_rng_state(state_dict["random"])


def train_new(
    arch: str,
    train: LabelledData,
    domain: Domain,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    heldout: LabelledData | None = None,
    checkpoints: Checkpoints | None = None,
) -> Classifier:
    """A net of an architecture, trained from scratch; other arguments as of `train_classifier`.

    Arguments:
        arch: The architecture, by name or `package.module:Class`.
        seed: The seed of weights, of the order of the data, and of dropout.
        progress: What to show meanwhile, if there are no checkpoints that do.
    """
    generator = torch.Generator().manual_seed(seed)
    title, steps = f"train {arch} on {train.name}", epochs * max(1, len(train) // batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_net(arch, domain)
        own = Progress() if checkpoints else progress or Progress()
        with own.stage(title, steps) as stage:

            def show(values: dict[str, float]) -> None:
                stage.update(int(values["step"]), {k: values[k] for k in ("epoch", "loss")})

            train_classifier(
                net,
                train,
                domain,
                epochs,
                batch_size,
                learning_rate,
                generator,
                show,
                device,
                heldout,
                checkpoints,
                title,
            )
    return Classifier(net, domain, arch).eval()
