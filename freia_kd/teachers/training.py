"""The plain training loop that makes a teacher from labelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ..domain import Domain
from ..errors import TrainingError
from ..training import Progress
from .build import build_net
from .classifier import Classifier, check_classifier

if TYPE_CHECKING:
    from ..data.datasets import LabelledData


@contextmanager
def channels_last(net: nn.Module) -> Iterator[None]:
    """Keeps weights of two-dimensional convolutions with their channels last within the block.

    A training step of the nets here then takes half the time or less; the values are the same but
    for rounding.

    Arguments:
        net: The net, whose optimizer is to be made within the block.
    """
    kernels = [p for p in net.parameters() if p.ndim == 4]
    try:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous()


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
) -> None:
    """Trains a net in place by cross-entropy, with Adam and a cosine learning rate.

    The weights after the last step are kept: no checkpoint is chosen.

    Arguments:
        net: The net, from normalised inputs to logits; left on `device`, in eval mode.
        train: The training data.
        domain: The domain that normalises the inputs.
        epochs: The number of passes over the data.
        batch_size: Images per step.
        learning_rate: The learning rate of the first step; it falls to zero.
        generator: The source of the order of the data.
        on_step: Called after each step with `epoch`, `step`, `steps`, `loss` and
            `learning_rate`.
        device: Where to train.

    Raises:
        ValueError: If the data or the net do not fit the domain, or there is nothing to do.
        TrainingError: If the loss is not finite.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            f"Expected 1 epoch and 1 input a batch or more; got {epochs}, {batch_size}."
        )
    train.check(domain)
    classifier = Classifier(net, domain, type(net).__name__).to(device)
    check_classifier(classifier)
    classifier.train()
    batch_size = min(batch_size, len(train))
    steps = epochs * (len(train) // batch_size)
    with channels_last(net):
        optimizer = torch.optim.Adam(net.parameters(), learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        step = 0
        for epoch in range(1, epochs + 1):
            # The last, smaller batch is left out: batch normalisation cannot do with one input.
            for x, y in train.batches(batch_size, generator, drop_last=True):
                loss = F.cross_entropy(classifier(x.to(device)), y.to(device))
                step += 1
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"The loss is {loss.item()} at step {step} of {steps}, with learning rate "
                        f"{schedule.get_last_lr()[0]:.3g}; lower the learning rate."
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if on_step is not None:
                    on_step(
                        {
                            "epoch": epoch,
                            "step": step,
                            "steps": steps,
                            "loss": loss.item(),
                            "learning_rate": float(schedule.get_last_lr()[0]),
                        }
                    )
                schedule.step()
    classifier.eval()


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
) -> Classifier:
    """A net of an architecture, trained from scratch; other arguments as of `train_classifier`.

    Arguments:
        arch: The architecture, by name or `package.module:Class`.
        seed: The seed of weights and of the order of the data.
        progress: What to show meanwhile.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_net(arch, domain)
    generator = torch.Generator().manual_seed(seed)
    title, steps = f"train {arch} on {train.name}", epochs * max(1, len(train) // batch_size)
    with (progress or Progress()).stage(title, steps) as stage:

        def show(values: dict[str, float]) -> None:
            stage.update(int(values["step"]), {k: values[k] for k in ("epoch", "loss")})

        train_classifier(
            net, train, domain, epochs, batch_size, learning_rate, generator, show, device
        )
    return Classifier(net, domain, arch).eval()
