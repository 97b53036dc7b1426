"""The student's training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from . import ranks
from .compression.batchnorm import batchnorm_layers
from .compression.cost import count_macs
from .config import SMALL, DistillationOptions, Precision
from .data.balance import class_balance, draw_rows
from .data.feed import Feed
from .data.synthetic import SyntheticSet
from .device import send
from .errors import UsageError
from .evaluation import agreement
from .objectives.activation_boundaries import ActivationBoundaries, boundary_layers
from .registry import DIVERGENCES
from .synthesizers.on_the_fly import OnTheFlySet
from .teachers.classifier import Classifier, Teacher, autocasting, remedies
from .training import (
    Best,
    Checkpoints,
    MovingAverage,
    Stateful,
    TrainingLoop,
    channels_last,
    keep_layout,
    own_generator,
)

RATE = 2e-3  # Adam's, where none is given: at most, or if it is not known how far there is to go
# The same by the share of held-out inputs on which a small student differs from its teacher at
# first: one that hardly does loses by a rate that one that mostly does gains by
# (`benchmarks/results/recovery-development.md`).
FAR_RATE, NEAREST = 1e-2, 0.01  # the rate of a share of 1, and the least share
# The same for new nets. (Of LeNet5 on MNIST, a development teacher; 16,384 dead leaves, 600 steps,
# one seed, accuracy in view: a net with batch normalisation 91.2, 95.8, 96.3 and 96.7 % with 1e-3,
# 2e-3, 5e-3 and 1e-2, another LeNet5 96.9 and 97.8 % with 2e-3 and 5e-3.)
NEW_RATE = 5e-3
GENTLE_RATE = 2e-4  # the same for students whose batch normalisation stays as it is

Batches = Callable[[int], tuple[Tensor, Tensor]]  # from a step to inputs and the teacher's logits
Rows = Callable[[int, torch.Generator], Tensor]  # from a step to the numbers of its inputs


def learning_rate(
    options: DistillationOptions, student: Classifier, agreement: float | None = None
) -> float:
    r"""The learning rate for a student, where the options leave it open.

    New nets have theirs, and so have students with batch normalisation. Of others it is
    :math:`10^{-2} \max(1 - a, 0.01)` by their agreement a, for large ones 2e-3 at most; ours,
    chosen on development teachers (`benchmarks/results/recovery-development.md`).

    Arguments:
        options: The options.
        student: The student before its training.
        agreement: Its agreement with the teacher on held-out inputs, in [0, 1], if that is known.
    """
    if options.learning_rate is not None:
        return options.learning_rate
    if student.is_new:
        return NEW_RATE
    if any(True for _ in batchnorm_layers(student)):
        return GENTLE_RATE
    if agreement is None:
        return RATE
    rate = FAR_RATE * max(1 - agreement, NEAREST)
    return rate if count_macs(student, student.domain.shape) <= SMALL else min(rate, RATE)


def train_student(
    student: Classifier,
    data: SyntheticSet | OnTheFlySet,
    options: DistillationOptions | None = None,
    generator: torch.Generator | None = None,
    checkpoints: Checkpoints | None = None,
    heldout: SyntheticSet | None = None,
    teacher: Teacher | None = None,
    precision: Precision | None = None,
) -> None:
    """Trains a student in place on the teacher's logits of synthetic inputs.

    The student stays in eval mode, dropout included, since it is to match the function that the
    teacher is in eval mode. Its normalisation layers keep the statistics that they have, which the
    paper found to be better (section 5.2), unless it is a new net, whose statistics are learned.

    Arguments:
        student: The student, on the device to train on.
        data: Synthetic inputs with the teacher's logits: a stored set, from which rows are drawn
            at random (`options.balanced` says how), or inputs made on the fly for every step,
            which are balanced, or not, where they are made.
        options: How to train.
        generator: The source of the order of the data, on the CPU; by default one that torch's
            global generator seeds.
        checkpoints: Where states and metrics are kept; training resumes from what is there. The
            activation boundaries are a part of it of that name.
        heldout: Synthetic inputs that choose the weights: of those before any training and every
            `check_every` steps, the student ends with the ones that agree best with the teacher on
            those of even index, the later ones of equals. They also tell the learning rate. Without
            them it ends with the last weights.
        teacher: The teacher on the same device, for options that need it.
        precision: `"bf16"` computes in bfloat16 where torch finds that safe; else it is float32,
            as weights always are.

    Raises:
        TrainingError: If the loss stays non-finite.
        UsageError: If the options need the teacher and there is none, activation boundaries find
            no layers, or the batches are too small for a new net's batch normalisation.
    """
    options = options or DistillationOptions()
    if options.needs_teacher and teacher is None:
        raise UsageError("Mixup and activation boundaries need the teacher; pass teacher=.")
    generator = own_generator(generator)
    options = options.sized(count_macs(student, student.domain.shape))
    steps, size = options.steps, options.batch_size
    assert steps is not None
    assert size is not None
    student.learning().requires_grad_(True)
    if size < 2 and any(layer.training for layer in batchnorm_layers(student)):
        raise UsageError(
            "The batch normalisation of a new net learns from batches of 2 inputs or more; got 1."
        )
    untrained = None if heldout is None else _agreement(student, heldout)
    options = options.changed(learning_rate=learning_rate(options, student, untrained))
    best = Best(student, -1.0 if untrained is None else untrained)
    early, late = _phases(options, steps)
    device = next(student.parameters()).device
    with (
        Feed(data, device) as feed,
        channels_last(student),
        autocasting(student, precision),
    ):
        batches = partial(_batch, feed, _rows(data, options), options, generator, teacher)
        if early and teacher is not None:
            part = checkpoints and checkpoints.part("boundaries")
            _learn_boundaries(student, teacher, batches, early, options, generator, part)

        def later(step: int) -> tuple[Tensor, Tensor]:
            return batches(step + early)

        _learn_logits(student, later, late, options, generator, checkpoints, heldout, best)
    student.is_new = False
    student.eval()


def _phases(options: DistillationOptions, steps: int) -> tuple[int, int]:
    """How many of the steps go to the activation boundaries, and how many to the logits."""
    early = min(round(steps * options.boundaries), steps - 1)
    return early, steps - early


def _rows(data: SyntheticSet | OnTheFlySet, options: DistillationOptions) -> Rows:
    """Which rows of the data a step learns from."""
    size = options.batch_size
    assert size is not None
    if not isinstance(data, SyntheticSet):
        return lambda step, generator: torch.arange(step * size, (step + 1) * size)
    if not options.balanced:
        return lambda step, generator: torch.randint(len(data), (size,), generator=generator)
    ends = class_balance(data.logits).cumsum(0)
    return lambda step, generator: draw_rows(ends, size, generator)


def _batch(
    feed: Feed,
    rows: Rows,
    options: DistillationOptions,
    generator: torch.Generator,
    teacher: Teacher | None,
    step: int,
) -> tuple[Tensor, Tensor]:
    """This process's inputs of a step and the teacher's logits, on the student's device."""
    assert options.batch_size is not None
    own, mixes = ranks.share(options.batch_size, "student.batch_size"), options.mixup > 0
    wanted = slice(None) if mixes else own
    x, logits, _ = feed.batch(rows(step, generator)[wanted])
    if mixes and teacher is not None:
        x = mix(x, options.mixup, generator)[own]
        with torch.no_grad():
            logits = teacher(x)
    if feed.is_ahead:  # by a copy of the generator, whose state is kept as if nothing were read
        ahead = torch.Generator()
        ahead.set_state(generator.get_state())
        feed.expect(rows(step + 1, ahead)[wanted])
    return x, logits


def mix(x: Tensor, a: float, generator: torch.Generator) -> Tensor:
    r"""Mixup :math:`\lambda x + (1 - \lambda) x'` with the batch in another order.

    :math:`\lambda \sim \mathrm{Beta}(a, a)` is one number for the batch, as in the paper's code.

    Arguments:
        x: Inputs with shape `(B, ...)`.
        a: The parameter a.
        generator: The source of all random numbers, on the CPU.

    References:
        | mixup: Beyond Empirical Risk Minimization (Zhang et al., 2018)
        | https://arxiv.org/abs/1710.09412
    """
    # torch draws no Beta from a generator; numpy does.
    seed = int(torch.randint(2**62, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(a, a))
    order = send(torch.randperm(len(x), generator=generator), x.device)
    return share * x + (1 - share) * x[order]


def _learn_boundaries(
    student: Classifier,
    teacher: Teacher,
    batches: Batches,
    steps: int,
    options: DistillationOptions,
    generator: torch.Generator,
    checkpoints: Checkpoints | None,
) -> None:
    """Trains the student's hidden layers to fire where the teacher's do."""
    x = torch.zeros(2, *teacher.domain.shape, device=next(student.parameters()).device)
    layers = _common_layers(student.net, teacher.net, teacher.domain.normalize(x))
    loss = ActivationBoundaries(student, teacher, layers, x, generator=generator)
    assert options.learning_rate is not None
    optimizer = torch.optim.Adam(
        [*student.parameters(), *loss.parameters()], options.learning_rate, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    keep_layout(optimizer)
    parts: dict[str, Stateful] = {
        "student": student,
        "connectors": loss,
        "optimizer": optimizer,
        "schedule": schedule,
    }
    title, result = _title(checkpoints), ["student"]
    advice = remedies(f"{options.title}.learning_rate", student)
    loop = TrainingLoop(title, steps, parts, generator, optimizer, checkpoints, result, advice)
    for step in loop:
        x, _ = batches(step)
        with loss.observe(student, teacher) as features:
            student(x)
            with torch.no_grad():
                teacher(x)
        value = loss(features)
        if loop.accept(value):
            loop.backward(value)
            optimizer.step()
            schedule.step()


def _common_layers(student: nn.Module, teacher: nn.Module, x: Tensor) -> dict[str, str]:
    """Layers before a ReLU of the teacher that the student has under the same name.

    A compressed layer keeps its name and the shape of its output.
    """
    found = boundary_layers(teacher, x)
    modules = dict(student.named_modules())
    shared = {f"net.{name}": f"net.{name}" for name in found if name in modules}
    if not shared:
        raise UsageError(
            "Activation boundaries need layers before a ReLU that teacher and student share by "
            f"name; the teacher has {', '.join(found) or 'none'}, the student none of them. "
            f"Choose another loss: {', '.join(DIVERGENCES)}."
        )
    return shared


def _learn_logits(
    student: Classifier,
    batches: Batches,
    steps: int,
    options: DistillationOptions,
    generator: torch.Generator,
    checkpoints: Checkpoints | None,
    heldout: SyntheticSet | None,
    best: Best,
) -> None:
    """Trains the student on the teacher's logits, and leaves it with the weights to be kept."""
    start = [best.weights[name] for name, _ in student.named_parameters()]
    divergence = DIVERGENCES[options.divergence]
    averaged = MovingAverage(student, options.ema).eval()
    assert options.learning_rate is not None
    assert options.check_every is not None
    optimizer = torch.optim.Adam(student.parameters(), options.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    keep_layout(optimizer)
    best.net = averaged.module
    parts: dict[str, Stateful] = {
        "student": student,
        "averaged": averaged,
        "optimizer": optimizer,
        "schedule": schedule,
        "best": best,
    }
    title, result = _title(checkpoints), ["averaged" if heldout is None else "best"]
    advice = remedies(f"{options.title}.learning_rate", student)
    loop = TrainingLoop(title, steps, parts, generator, optimizer, checkpoints, result, advice)
    for step in loop:
        x, target = batches(step)
        loss = divergence(student(x), target, options.temperature)
        if options.pull:
            loss = loss + options.pull / 2 * distance(student.parameters(), start)
        if loop.accept(loss):
            loop.backward(loss)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(student)
        is_last = step + 1 == steps
        if heldout is not None and ((step + 1) % options.check_every == 0 or is_last):
            best.offer(_agreement(averaged.module, heldout))
            if options.patience is not None and best.stale >= options.patience:
                loop.stop()
    student.load_state_dict(averaged.module.state_dict() if heldout is None else best.weights)


def _agreement(student: nn.Module, heldout: SyntheticSet) -> float:
    """By which weights are chosen: the same number in all processes that share the training."""
    (share,) = ranks.mean([agreement(student, heldout, half="even")])
    return share


def _title(checkpoints: Checkpoints | None) -> str:
    return f"train {checkpoints.stage if checkpoints else 'the student'}"


def distance(weights: Iterable[Tensor], start: Sequence[Tensor]) -> Tensor:
    """The squared distance of weights to those of the start, over all of them together."""
    pairs = zip(weights, start, strict=True)
    return torch.stack([(w - s).square().sum() for w, s in pairs]).sum()
