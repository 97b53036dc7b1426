"""The student's training loop, and how far it agrees with its teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .compression.batchnorm import BatchNorm, batchnorm_layers, prepare_batchnorm
from .data.datasets import LabelledData
from .data.synthetic import SyntheticSet
from .errors import UsageError
from .objectives.activation_boundaries import ActivationBoundaries, boundary_layers
from .objectives.divergences import DIVERGENCES
from .runs.loop import Stateful, TrainingLoop, own_generator
from .runs.run import Run
from .synthesizers.fresh import Fresh
from .teachers.classifier import Classifier, Teacher
from .teachers.training import channels_last

RATE = 2e-3  # Adam's, where none is given
GENTLE_RATE = 2e-4  # the same for students with batch normalisation
BOUNDARIES = "activation-boundaries"
STATISTICS = 2_048  # synthetic inputs from which batch statistics are re-estimated
BOUNDARY_SHARE = 0.25  # of the steps, where that loss is asked for by name

Batches = Callable[[int], tuple[Tensor, Tensor]]  # from a step to inputs and the teacher's logits


@dataclass(frozen=True)
class DistillationOptions:
    r"""How a student learns.

    The loss, the temperature and the rate were chosen on development teachers of
    `benchmarks/recovery-teachers.json`, with their students' accuracy in view, since agreement on
    synthetic images does not rank the losses (it did in `benchmarks/results/distillation-*.md`, at
    a correlation of 0.17 on MNIST and -0.47 on Fashion-MNIST). LeNet5, student 3, 16,384 dead
    leaves, 400 steps, one seed: L1 gives 91.9 % on MNIST and 59.2 % on Fashion-MNIST, forward KL at
    T = 8 92.8 and 65.2 % (MNIST alone: T = 4 92.2, T = 20 92.8, centred L1 92.2, centred MSE 92.9;
    a pull of 1e-3 92.8, of 1e-2 92.7, of 0.1 86.1; averaged weights 92.7). So a loss that is blind
    to the mean logit is the default, and nothing is added to it.

    Arguments:
        divergence: The loss against the teacher's logits, by name.
        temperature: The temperature of both softmaxes. It only scales `"l1"` and the centred
            losses, which Adam ignores.
        boundaries: The share of the steps, at the start, in which the student learns where the
            teacher's hidden neurons fire (Heo et al., 2019) and not yet the logits; 0 for none.
        mixup: The parameter a of Beta(a, a), by which inputs are mixed in pairs (Zhang et al.,
            2018); the teacher answers what comes of it. 0 for none.
        pull: The weight a of :math:`a/2\,\|w - w_0\|^2`, which pulls the weights w to those that
            the student starts with (L2-SP, Li et al., 2018); 0 for none.
        ema: The decay of the exponential moving average of the weights, which is what the student
            ends with; 0 for the last weights themselves.
        steps: Training steps.
        batch_size: Inputs in a step.
        learning_rate: Adam's, falling to 0 as a cosine. `None` is 2e-3, or 2e-4 for students with
            batch normalisation: their frozen statistics fit only weights that stay near the
            teacher's. (ResNet14 on Fashion-MNIST, student 3, 100 steps on spectral noise, one
            seed: agreement on held-out noise 81.4, 87.5, 87.3 and 82.0 % with 2e-3, 5e-4, 2e-4
            and 1e-4, of which we take the lowest within a point of the best; accuracy 16.1,
            40.2, 45.4 and 48.2 %, which was in view.)
        check_every: Steps between checks of the agreement on held-out synthetic inputs.
        patience: Checks without a better agreement after which training stops early; `None` for
            never. The learning rate then has not fallen to 0, so patience should be long.
        bn: What becomes of batch normalisation. `"match"` moves the teacher's statistics by what
            compression did to the features and keeps them
            (:func:`~freia_kd.compression.match_batchnorm`), `"freeze"` keeps the teacher's, as the
            paper does, `"reestimate"` takes those of synthetic inputs before training and keeps
            them, and `"train"` lets them follow the batches. (In this order 70.4, 67.9, 53.6 and
            48.4 % agreement on images of a method from which no student learned, and 76.9, 71.9,
            64.2 and 62.3 % accuracy: `benchmarks/results/batchnorm-*.md`.)

    Raises:
        UsageError: If there is no such divergence, or a number makes no sense.

    References:
        | Distilling the Knowledge in a Neural Network (Hinton et al., 2015)
        | https://arxiv.org/abs/1503.02531
        | Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons
        | (Heo et al., 2019), https://arxiv.org/abs/1811.03233
        | mixup: Beyond Empirical Risk Minimization (Zhang et al., 2018)
        | https://arxiv.org/abs/1710.09412
        | Explicit Inductive Bias for Transfer Learning with Convolutional Networks (Li et al.,
        | 2018), https://arxiv.org/abs/1802.01483
    """

    divergence: str = "forward-kl"
    temperature: float = 8.0
    boundaries: float = 0.0
    mixup: float = 0.0
    pull: float = 0.0
    ema: float = 0.0
    steps: int = 2_000
    batch_size: int = 256
    learning_rate: float | None = None
    check_every: int = 200
    patience: int | None = None
    bn: BatchNorm = "match"

    def __post_init__(self) -> None:
        if self.divergence == BOUNDARIES:
            raise UsageError(
                f"{BOUNDARIES!r} says nothing of logits; pass boundaries={BOUNDARY_SHARE} beside "
                "another divergence, or use with_loss()."
            )
        DIVERGENCES[self.divergence]
        for name, fits, expected in (
            ("temperature", self.temperature > 0, "a positive number"),
            ("boundaries", 0 <= self.boundaries < 1, "a share from 0, below 1"),
            ("mixup", self.mixup >= 0, "0 or a positive number"),
            ("pull", self.pull >= 0, "0 or a positive number"),
            ("ema", 0 <= self.ema < 1, "a decay from 0, below 1"),
            ("steps", self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", (self.learning_rate or 0) >= 0, "0 or a positive number"),
            ("check_every", self.check_every >= 1, "at least 1"),
        ):
            if not fits:
                raise UsageError(f"Expected {expected} for {name}; got {getattr(self, name)}.")

    def rate(self, student: nn.Module) -> float:
        """The learning rate for a student."""
        if self.learning_rate is not None:
            return self.learning_rate
        return GENTLE_RATE if any(True for _ in batchnorm_layers(student)) else RATE

    @property
    def needs_teacher(self) -> bool:
        """Whether a student can only learn so with the teacher at hand."""
        return self.mixup > 0 or self.boundaries > 0

    def with_loss(self, name: str) -> DistillationOptions:
        """The same options with a loss of the student by its name.

        Arguments:
            name: A divergence, or `"activation-boundaries"` for a quarter of the steps on those,
                and the divergence that the options have in the others.

        Raises:
            UsageError: If there is no such loss.

        Example:
            >>> DistillationOptions().with_loss("activation-boundaries").boundaries
            0.25
        """
        if name == BOUNDARIES:
            return replace(self, boundaries=BOUNDARY_SHARE)
        if name not in DIVERGENCES and ":" not in name:
            raise UsageError(
                f"Unknown loss {name!r}; known ones are {', '.join(losses())}, "
                "or a path package.module:attribute."
            )
        return replace(self, divergence=name)


def losses() -> list[str]:
    """The names of the losses of a student."""
    return [*DIVERGENCES, BOUNDARIES]


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
    data: SyntheticSet | Fresh,
    options: DistillationOptions | None = None,
    generator: torch.Generator | None = None,
    run: Run | None = None,
    name: str = "student",
    heldout: SyntheticSet | None = None,
    teacher: Teacher | None = None,
    origin: nn.Module | None = None,
) -> None:
    """Trains a student in place on the teacher's logits of synthetic inputs.

    The student stays in eval mode, dropout included, since it is to match the function that the
    teacher is in eval mode. By default its normalisation layers keep the statistics of the training
    data, which the paper found to be better (section 5.2), moved by what compression changed.

    Arguments:
        student: The student, on the device to train on.
        data: Synthetic inputs with the teacher's logits: a stored set, from which rows are drawn
            at random, or inputs made fresh for every step.
        options: How to train.
        generator: The source of the order of the data, on the CPU; by default one that torch's
            global generator seeds.
        run: Where states and metrics are kept; training resumes from what it holds.
        name: The name of the stage; that of the activation boundaries is `NAME-boundaries`.
        heldout: Synthetic inputs that choose the weights: of those every `check_every` steps, the
            student ends with the ones that agree best with the teacher on those of even index.
            Without them it ends with the last weights.
        teacher: The teacher on the same device, for options that need it.
        origin: The net that the student was compressed from, to match its batch normalisation; by
            default the teacher's.

    Raises:
        TrainingError: If the loss stays non-finite.
        UsageError: If the options need the teacher and there is none, or activation boundaries
            find no layers.
    """
    options = options or DistillationOptions()
    if options.needs_teacher and teacher is None:
        raise UsageError("Mixup and activation boundaries need the teacher; pass teacher=.")
    generator = own_generator(generator)
    student.eval().requires_grad_(True)
    start = [p.detach().clone() for p in student.parameters()]
    estimates = options.bn in ("match", "reestimate")
    if estimates and any(True for _ in batchnorm_layers(student)):
        origin = teacher.net if origin is None and teacher is not None else origin
        if options.bn == "match" and origin is None:
            raise UsageError(
                "Matching batch normalisation needs the teacher; pass teacher=, or the option "
                'bn="freeze".'
            )
        inputs = _some_inputs(student, data, generator)
        prepare_batchnorm(student.net, options.bn, inputs, origin)
    early, late = _phases(options)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        return _batch(student, data, step, options, generator, teacher)

    def later(step: int) -> tuple[Tensor, Tensor]:
        return batches(step + early)

    with channels_last(student), _batchnorm_follows(student, options.bn):
        if early and teacher is not None:
            phase = f"{name}-boundaries"
            _learn_boundaries(student, teacher, batches, early, options, generator, run, phase)
        _learn_logits(student, later, late, options, generator, run, name, heldout, start)


def _some_inputs(
    student: Classifier, data: SyntheticSet | Fresh, generator: torch.Generator
) -> Tensor:
    """What the student's net eats, for some synthetic inputs."""
    size = len(data) if isinstance(data, SyntheticSet) else STATISTICS
    rows = torch.randperm(size, generator=generator)[:STATISTICS]
    return student.domain.normalize(data.batch(rows)[0].to(next(student.parameters()).device))


@contextmanager
def _batchnorm_follows(student: nn.Module, bn: BatchNorm) -> Iterator[None]:
    """Puts batch normalisation that is to be trained into training mode, and back."""
    for layer in batchnorm_layers(student):
        layer.train(bn == "train")
    yield
    student.eval()


def _phases(options: DistillationOptions) -> tuple[int, int]:
    """How many steps go to the activation boundaries, and how many to the logits."""
    early = min(round(options.steps * options.boundaries), options.steps - 1)
    return early, options.steps - early


def _batch(
    student: Classifier,
    data: SyntheticSet | Fresh,
    step: int,
    options: DistillationOptions,
    generator: torch.Generator,
    teacher: Teacher | None,
) -> tuple[Tensor, Tensor]:
    """The inputs of a step and the teacher's logits, on the student's device."""
    size, device = options.batch_size, next(student.parameters()).device
    if isinstance(data, SyntheticSet):
        rows = torch.randint(len(data), (size,), generator=generator)
    else:
        rows = torch.arange(step * size, (step + 1) * size)
    x, logits, _ = (t.to(device) for t in data.batch(rows))
    if options.mixup > 0 and teacher is not None:
        x = mix(x, options.mixup, generator)
        with torch.no_grad():
            logits = teacher(x)
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
    order = torch.randperm(len(x), generator=generator).to(x.device)
    return share * x + (1 - share) * x[order]


def _learn_boundaries(
    student: Classifier,
    teacher: Teacher,
    batches: Batches,
    steps: int,
    options: DistillationOptions,
    generator: torch.Generator,
    run: Run | None,
    name: str,
) -> None:
    """Trains the student's hidden layers to fire where the teacher's do."""
    x = torch.zeros(2, *teacher.domain.shape, device=next(student.parameters()).device)
    layers = _common_layers(student.net, teacher.net, teacher.domain.normalize(x))
    loss = ActivationBoundaries(student, teacher, layers, x, generator=generator)
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], options.rate(student))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    _keep_layout(optimizer)
    parts: dict[str, Stateful] = {
        "student": student,
        "connectors": loss,
        "optimizer": optimizer,
        "schedule": schedule,
    }
    loop = TrainingLoop(name, steps, parts, generator, optimizer, run, f"train {name}")
    for step in loop:
        x, _ = batches(step)
        with loss.observe(student, teacher) as features:
            student(x)
            with torch.no_grad():
                teacher(x)
        value = loss(features)
        if loop.accept(value):
            optimizer.zero_grad()
            value.backward()
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
    run: Run | None,
    name: str,
    heldout: SyntheticSet | None,
    start: Sequence[Tensor],
) -> None:
    """Trains the student on the teacher's logits, and leaves it with the weights to be kept."""
    divergence = DIVERGENCES[options.divergence]
    averaged = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(options.ema)).eval()
    optimizer = torch.optim.Adam(student.parameters(), options.rate(student))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    _keep_layout(optimizer)
    best = Best(averaged.module)
    parts: dict[str, Stateful] = {
        "student": student,
        "averaged": averaged,
        "optimizer": optimizer,
        "schedule": schedule,
        "best": best,
    }
    loop = TrainingLoop(name, steps, parts, generator, optimizer, run, f"train {name}")
    for step in loop:
        x, target = batches(step)
        loss = divergence(student(x), target, options.temperature)
        if options.pull:
            loss = loss + options.pull / 2 * distance(student.parameters(), start)
        if loop.accept(loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(student)
        is_last = step + 1 == steps
        if heldout is not None and ((step + 1) % options.check_every == 0 or is_last):
            best.offer(agreement(averaged.module, heldout, half="even"))
            if options.patience is not None and best.stale >= options.patience:
                loop.stop()
    student.load_state_dict(averaged.module.state_dict() if heldout is None else best.weights)


def distance(weights: Iterable[Tensor], start: Sequence[Tensor]) -> Tensor:
    """The squared distance of weights to those of the start, over all of them together."""
    pairs = zip(weights, start, strict=True)
    return torch.stack([(w - s).square().sum() for w, s in pairs]).sum()


def _keep_layout(optimizer: torch.optim.Optimizer) -> None:
    """Gives moments read from a file the memory layout of their parameters, as if never stopped."""

    def rearrange(optimizer: torch.optim.Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    optimizer.register_load_state_dict_post_hook(rearrange)


@torch.no_grad()
def agreement(
    classifier: nn.Module,
    data: SyntheticSet,
    batch_size: int = 128,
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
def predict(classifier: nn.Module, data: LabelledData, batch_size: int = 128) -> Tensor:
    """The predicted class of every input, with shape `(N,)`."""
    device = next(classifier.parameters()).device
    return torch.cat(
        [classifier(x.to(device)).argmax(1).cpu() for x, _ in data.batches(batch_size)]
    )
