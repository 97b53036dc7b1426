"""DFAD: a generator that looks for what the student has not learned from its teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ranks
from ..config import Config, Count, Decay, NonNegative, Size
from ..data.datasets import LabelledData
from ..errors import UsageError
from ..objectives.divergences import l1
from ..teachers.classifier import Classifier, Teacher, remedies
from ..training import Checkpoints, Stateful, TrainingLoop, own_generator
from .unconditional import InputGenerator, Unconditional


@dataclass(frozen=True)
class DFADOptions(Config):
    """The hyper-parameters of the game; the defaults are those of the authors' code for MNIST.

    All but `log`, which that code has for segmentation only. The student's learning rate stays as
    it is, as there unless a scheduler is asked for; for CIFAR-10 that code has 25,000 steps,
    batches of 256, 256 latents, a student's learning rate of 0.1 and a weight decay of 5e-4.

    Arguments:
        steps: Rounds, each with one step of the generator.
        student_steps: Steps of the student in a round.
        batch_size: Latents in a step, fresh ones in each.
        latents: The length of a latent.
        channels: The generator's sizes, see :class:`InputGenerator`.
        learning_rate: That of Adam for the generator.
        student_learning_rate: That of stochastic gradient descent for the student.
        momentum: The student's.
        weight_decay: The student's.
        log: Whether the generator maximises log(D + 1), or the discrepancy D itself, as in the
            authors' code for MNIST and CIFAR-10.
        snapshots: How many generators, kept at equal distances over the game, make the inputs
            (the paper trains the student in the game alone, and needs none).
    """

    title: ClassVar[str] = "dfad"
    steps: Count = 2_000
    student_steps: Count = 5
    batch_size: Size = 512  # the generator normalises batches
    latents: Count = 100
    channels: tuple[Count, ...] = (128, 64)
    learning_rate: NonNegative = 1e-3
    student_learning_rate: NonNegative = 1e-2
    momentum: Decay = 0.9
    weight_decay: NonNegative = 1e-4
    log: bool = True
    snapshots: Count = 8


class DFAD(Unconditional):
    r"""Data-Free Adversarial Distillation: inputs from the game that :func:`play` describes.

    `fit` plays with a copy of the student. Departures from the paper:

    - The game's own student is thrown away: what `sample` gives is for the student's usual
      training. The last generator alone aims at the last student's faults, which is narrow, so
      that inputs come from several generators of the game, in equal shares.
    - The student stays in eval mode, as in :func:`freia_kd.distillation.train_student`, save the
      batch normalisation of a new net; theirs is in training mode.
    - Pixels are clamped to [0, 1] before the nets see them; the gradient passes the clamp.
    - The generator has a convolution less, see :class:`InputGenerator`.

    References:
        | Data-Free Adversarial Distillation (Fang et al., 2019), https://arxiv.org/abs/1912.11006
    """

    name = "dfad"
    is_shared = True
    Options = DFADOptions
    needs_student = True
    presets: ClassVar = {
        "quick": {"steps": 100, "batch_size": 64, "channels": (64, 32)},
        "standard": {"steps": 400, "batch_size": 96, "channels": (64, 32)},
    }

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        """Plays the game; real samples have no part in it.

        Raises:
            UsageError: If there is no student.
        """
        if student is None:
            raise UsageError(
                "The synthesizer 'dfad' learns from a student, and there is none; expected "
                "fit(teacher, ..., student=...) with the student before its training."
            )
        device, options = next(teacher.parameters()).device, self.options
        generator = own_generator(generator, device)
        net = InputGenerator.seeded(teacher.domain, options.latents, options.channels, generator)
        rival = copy.deepcopy(student).to(device).learning().requires_grad_(True)
        generators = play(net, teacher, rival, options, generator, checkpoints)
        self.finish(teacher, list(generators), options.latents, checkpoints, generator)


def play(
    net: nn.Module,
    teacher: nn.Module,
    student: nn.Module,
    options: DFADOptions,
    generator: torch.Generator,
    checkpoints: Checkpoints | None = None,
) -> nn.ModuleList:
    r"""Plays the game of a generator G against a student S, which learns from a teacher T.

    .. math:: \min_S \max_G D(S, T; G),\quad
              D = \bigl\langle |S(G(z)) - T(G(z))| \bigr\rangle_{z \sim \mathcal{N}(0, I)}

    the mean over inputs, classes and positions of absolute differences of logits. In each round
    the student takes `options.student_steps` steps down :math:`D`, and the generator one step down
    :math:`-\log(D + 1)`, which tames large discrepancies, or :math:`-D`. (The authors' code has
    the logarithm for segmentation, and the plain form for MNIST and CIFAR-10.)

    Nothing here asks for classes: logits with shape `(B, classes, H, W)` do as well, so that dense
    predictions are distilled alike.

    Arguments:
        net: The generator, from latents `(B, options.latents)` to inputs; trained in place.
        teacher: A net from inputs to logits, in eval mode; it gets no gradients.
        student: Another with logits of the same shape; trained in place, in the mode it is in.
        options: How to play; `channels` has no meaning here.
        generator: The source of all random numbers, on the device of the nets.
        checkpoints: Where states and metrics are kept; the game resumes from what is there.

    Returns:
        `options.snapshots` copies of the generator in eval mode, the last one from the end.

    Raises:
        ValueError: If the teacher is not in eval mode, or the shapes of the logits differ.
        TrainingError: If the discrepancy stays non-finite.

    References:
        | Data-Free Adversarial Distillation (Fang et al., 2019), https://arxiv.org/abs/1912.11006
    """
    if teacher.training:
        raise ValueError("Expected the teacher in eval mode; call teacher.eval() first.")
    adam = torch.optim.Adam(net.parameters(), options.learning_rate)
    sgd = torch.optim.SGD(
        student.parameters(),
        options.student_learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    kept = nn.ModuleList(copy.deepcopy(net) for _ in range(options.snapshots))
    parts: dict[str, Stateful] = {
        "generator": net, "student": student, "adam": adam, "sgd": sgd, "kept": kept,
    }  # fmt: skip
    # The student's steps are those that can diverge: a rollback halves its learning rate.
    title, steps = "play with the student", options.steps
    advice = remedies(f"{options.title}.student_learning_rate", teacher)
    loop = TrainingLoop(title, steps, parts, generator, sgd, checkpoints, ["kept"], advice)
    for step in loop:
        learned = [
            imitate(student, teacher, _inputs(net, options, generator), loop)
            for _ in range(options.student_steps)
        ]
        x = _inputs(net, options, generator, differentiable=True)
        discrepancy = ranks.mean_over(l1(student(x), teacher(x)))
        loss = generation_loss(discrepancy, options.log)
        terms = {"discrepancy": discrepancy, "student": torch.stack(learned).mean()}
        if loop.accept(loss, terms.items()):
            loop.backward(loss, adam)  # the two nets get no gradients
            adam.step()
        _keep(kept, net, step, options.steps)
    return kept.eval()


def imitate(student: nn.Module, teacher: nn.Module, x: Tensor, loop: TrainingLoop) -> Tensor:
    """One step of the student down the discrepancy on inputs `x`; returns what it was.

    Arguments:
        student: Trained by the loop's optimizer.
        teacher: What it imitates.
        x: Inputs with shape `(B, *shape)`.
        loop: The game.
    """
    with torch.no_grad():
        wanted = teacher(x)
    loss = l1(student(x), wanted)
    loop.backward(loss)
    loop.optimizer.step()
    return loss.detach()


def generation_loss(discrepancy: Tensor, log: bool = True) -> Tensor:
    r"""The generator's loss, :math:`-\log(D + 1)` or :math:`-D`, to be minimised.

    Example:
        >>> generation_loss(torch.tensor(1.0)).item(), generation_loss(torch.tensor(1.0), False)
        (-0.6931..., tensor(-1.))
    """
    return -discrepancy.log1p() if log else -discrepancy


def _inputs(
    net: nn.Module, options: Any, generator: torch.Generator, differentiable: bool = False
) -> Tensor:
    """The generator's inputs for this process's rows of a batch of fresh latents."""
    shape = (options.batch_size, options.latents)
    z = torch.randn(shape, generator=generator, device=generator.device)
    with torch.set_grad_enabled(differentiable):
        return net(z[ranks.share(len(z))])


def _keep(kept: nn.ModuleList, net: nn.Module, step: int, steps: int) -> None:
    """Copies the generator, at equal distances, into the first copy not reached and all later.

    The later ones too, so that a rollback never brings back an untrained one.
    """
    first, last = step * len(kept) // steps, (step + 1) * len(kept) // steps
    for k in range(first, len(kept) if last > first else first):
        kept[k].load_state_dict(net.state_dict())
