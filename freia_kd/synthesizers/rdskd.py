"""RDSKD: a generator that seeks confident answers, all classes, and inputs unlike each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor

from .. import ranks
from ..config import Config, Count, Positive
from ..data.datasets import LabelledData
from ..objectives.contract import Terms
from ..teachers.classifier import Classifier, Teacher, remedies
from ..training import Checkpoints, Stateful, TrainingLoop, own_generator
from .unconditional import InputGenerator, Unconditional

EPS = 1e-12


@dataclass(frozen=True)
class RDSKDOptions(Config):
    """The hyper-parameters of RDSKD; the defaults are those of the authors' code for MNIST.

    Arguments:
        steps: Training steps (the authors' 20 epochs of 120).
        epoch: Steps after which the losses are compared with new references.
        batch_size: Latents in a step, an even number.
        latents: The length of a latent.
        channels: The generator's sizes, see :class:`InputGenerator`.
        learning_rate: That of Adam.
        penalty: Whether increments of two of the losses are penalised exponentially; else the
            plain losses are summed.
    """

    title: ClassVar[str] = "rdskd"
    steps: Count = 2_400
    epoch: Count = 120
    batch_size: Annotated[int, Ge(2), MultipleOf(2)] = 512
    latents: Count = 100
    channels: tuple[Count, ...] = (128, 64)
    learning_rate: Positive = 1e-3
    penalty: bool = True


class RDSKD(Unconditional):
    r"""Robustness and Diversity Seeking Data-Free Knowledge Distillation.

    An unconditional generator is trained by the teacher alone (the student comes after it):

    .. math:: \min_G\; e^{A - A_0} + e^{C - C_0} + S

    with the losses of :func:`authenticity`, :func:`class_diversity` and :func:`sample_diversity`.
    The references :math:`A_0, C_0` are the losses at the start of the present epoch (0 in the
    first step), so that the gradient of a loss that has risen since is multiplied by more than 1,
    and of one that has fallen by less: there are no weights to tune.

    The terms follow the authors' code; the paper's text was not at hand. Departures from it:
    references are taken in the first step of an epoch (theirs the second), pixels are clamped to
    [0, 1] before the teacher sees them (the gradient passes the clamp), and the generator has a
    convolution less (see :class:`InputGenerator`) and the usual 1e-5 in batch normalisation, where
    theirs adds 0.8 to the variances after convolutions.

    References:
        | Robustness and Diversity Seeking Data-Free Knowledge Distillation (Han et al., 2021)
        | https://arxiv.org/abs/2011.03749
    """

    name = "rdskd"
    is_shared = True
    Options = RDSKDOptions
    presets: ClassVar = {
        "quick": {"steps": 240, "batch_size": 128, "channels": (64, 32)},
        "standard": {"steps": 720, "batch_size": 256, "channels": (64, 32)},
    }

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        """Trains the generator; real samples have no part in it."""
        device, options = next(teacher.parameters()).device, self.options
        generator = own_generator(generator, device)
        net = InputGenerator.seeded(teacher.domain, options.latents, options.channels, generator)
        optimizer = torch.optim.Adam(net.parameters(), options.learning_rate)
        penalty = IncrementPenalty()
        parts: dict[str, Stateful] = {"generator": net, "optimizer": optimizer, "penalty": penalty}
        title, steps = "train the generator", options.steps
        advice = remedies(f"{self.name}.learning_rate", teacher)
        loop = TrainingLoop(
            title, steps, parts, generator, optimizer, checkpoints, ["generator"], advice
        )
        for step in loop:
            z = torch.randn(options.batch_size, options.latents, generator=generator, device=device)
            terms = losses(teacher, net(z[ranks.share(len(z))]))
            loss = penalty(terms) if options.penalty else terms.total
            if loop.accept(loss, terms.items()):
                loop.backward(loss)
                optimizer.step()
                if step % options.epoch == 0:
                    penalty.refer_to(terms)
        self.finish(teacher, [net.eval()], options.latents, checkpoints, generator)


def losses(teacher: Teacher, x: Tensor) -> Terms:
    """The three losses of inputs `x` with shape `(B, *shape)`, B even.

    Images are compared in the units that the teacher's net takes, as in the authors' code. The
    losses are those of the whole batch where processes share it.
    """
    # Not by rows: norms and entropies are of a whole batch, as is what is exponentiated later.
    logits, u = ranks.whole(teacher(x)), ranks.whole(teacher.domain.normalize(x))
    return Terms(
        authenticity=authenticity(logits),
        class_diversity=class_diversity(logits),
        sample_diversity=sample_diversity(u, logits),
    )


def authenticity(logits: Tensor) -> Tensor:
    r"""The cross-entropy with the teacher's own likeliest class, :math:`A`, in nats.

    .. math:: A = \Bigl\langle -\log \max_k p_k \Bigr\rangle,\quad p = \mathrm{softmax}(t)

    Arguments:
        logits: The teacher's logits t with shape `(B, classes)`.
    """
    return F.cross_entropy(logits, logits.detach().argmax(1))


def class_diversity(logits: Tensor) -> Tensor:
    r"""The negative entropy of the mean prediction, :math:`C`, from -log classes to 0 nats.

    .. math:: C = \sum_k \bar p_k \log \bar p_k,\quad \bar p = \langle \mathrm{softmax}(t) \rangle

    Arguments:
        logits: The teacher's logits t with shape `(B, classes)`.
    """
    mean = logits.softmax(1).mean(0)
    return torch.xlogy(mean, mean.clamp(min=EPS)).sum()


def sample_diversity(x: Tensor, logits: Tensor) -> Tensor:
    r"""How much predictions differ for how much inputs differ, :math:`S`.

    .. math:: S = \frac{\|p_2 - p_1\|}{\|x_2 - x_1\|}

    with the first and the second half of the batch, and Euclidean norms over a whole half. A
    generator lowers it by inputs that differ more than the teacher's answers ask for.

    Arguments:
        x: Inputs with shape `(B, *shape)`, B even.
        logits: The teacher's logits of them with shape `(B, classes)`.
    """
    x1, x2 = x.chunk(2)
    p1, p2 = logits.softmax(1).chunk(2)
    return torch.dist(p2, p1) / torch.dist(x2, x1).clamp(min=EPS)


class IncrementPenalty:
    r"""The sum of the losses, with increments of two of them penalised exponentially.

    :math:`e^{L - L_0}` in place of L has the gradient :math:`e^{L - L_0} \nabla L`: the plain one
    where L is at its reference, more where it has risen, less where it has fallen.
    """

    penalised = ("authenticity", "class_diversity")

    def __init__(self) -> None:
        self.references: dict[str, float | Tensor] = dict.fromkeys(self.penalised, 0.0)

    def __call__(self, terms: Terms) -> Tensor:
        """The loss to be minimised, a scalar."""
        return torch.stack([self._penalise(name, loss) for name, loss in terms.items()]).sum()

    def _penalise(self, name: str, loss: Tensor) -> Tensor:
        return (loss - self.references[name]).exp() if name in self.references else loss

    def refer_to(self, terms: Terms) -> None:
        """Compares with these losses from now on."""
        self.references = {k: v.detach() for k, v in terms.items() if k in self.penalised}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return dict(self.references)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.references = dict(state_dict)
