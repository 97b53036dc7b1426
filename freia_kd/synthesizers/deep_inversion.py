"""DeepInversion and its adaptive form: images by optimisation under the teacher's statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ranks
from ..config import NonNegative, Positive
from ..errors import UsageError
from ..objectives.batchnorm import BatchStatistics, Form
from ..objectives.contract import Terms
from ..objectives.divergences import jensen_shannon
from ..teachers.classifier import Classifier, Teacher
from .inversion import (
    QUICK,
    STANDARD,
    Inversion,
    InversionOptions,
    Loss,
    total_variation,
    unit,
)


@dataclass(frozen=True)
class DeepInversionOptions(InversionOptions):
    """The hyper-parameters of DeepInversion, for CIFAR-10.

    Arguments:
        form: How batch statistics are compared
            (:class:`~freia_kd.objectives.batchnorm.BatchStatistics`): `"norms"` as published, or
            `"divergence"`, whose weight serves teachers of any scale and depth.
        statistics: The weight of the batch statistics; for norms the paper searches 1, 5, 10 and
            100, its code's "parameters from the paper" have 10.
        variation: The weight of the total variation. For nicer images the code's authors advise
            1e-3 with a learning rate of 0.1 and no `norm`.
        norm: The weight of the norm of the images: the paper's, where its code has 0.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = "deepinversion"
    form: Form = "divergence"
    statistics: NonNegative = 10.0
    variation: NonNegative = 2.5e-5
    norm: NonNegative = 3e-8


@dataclass(frozen=True)
class AdaptiveDeepInversionOptions(DeepInversionOptions):
    """The hyper-parameters of Adaptive DeepInversion, for CIFAR-10.

    Arguments:
        competition: The weight of the divergence between teacher and student; the paper's code has
            10, beside norms of the statistics.
        temperature: Divides both logits in it; not in the paper, its code has 3.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = "adaptive-deepinversion"
    competition: NonNegative = 1.0
    temperature: Positive = 3.0


# The paper's smoothness is too weak for few steps.
WEIGHTS: dict[str, Any] = {"variation": 1e-2}
# With its norms the paper's weight of the statistics leaves no share of few steps to the classes.


class DeepInversion(Inversion):
    r"""Images that the teacher puts into given classes, with the features of its training data.

    For a batch of images x and its labels y, Adam minimises

    .. math:: -\langle \log p_T(y|x) \rangle + \alpha_f \sum_l \bigl(\|\mu_l - \hat\mu_l\|_2
              + \|\sigma^2_l - \hat\sigma^2_l\|_2\bigr) + \alpha_{tv}\,\mathrm{TV}(x)
              + \alpha_{l2}\,\|x\|_2

    over normalised pixels, with :class:`~freia_kd.objectives.batchnorm.BatchStatistics` and
    :func:`~freia_kd.synthesizers.inversion.total_variation`; norms of images are those of the whole
    batch, as in the paper's code.

    Departures: every step clips the images to pixels in [0, 1] (the code for ImageNet does, that
    for CIFAR-10 does not); the last images are kept (the code for CIFAR-10 means those of the
    smallest loss, but its copy follows the optimisation to the last); labels are balanced over the
    bank in a random order; half-size images (`coarse`, off, as for CIFAR-10) are enlarged before
    the teacher sees them, where the code for ImageNet shrinks full ones; how many images are made
    is ours.

    References:
        | Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion (Yin et al., 2020),
        | section 3.2 and 4.1, https://arxiv.org/abs/1912.08795
    """

    name = "deepinversion"
    Options = DeepInversionOptions
    needs_batchnorm = True
    presets: ClassVar = {
        "quick": {**QUICK, **WEIGHTS, "images": 128},
        "standard": {**STANDARD, **WEIGHTS},
    }

    def loss(self, teacher: Teacher, student: Classifier | None) -> Loss:
        return lambda x, y: self.terms(teacher, x, y)[0]

    def terms(self, teacher: Teacher, x: Tensor, y: Tensor) -> tuple[Terms, Tensor]:
        """The weighted terms of normalised images and their labels, and the teacher's logits.

        Of a batch that processes share the logits are those of this process's rows.
        """
        options, statistics = self.options, BatchStatistics(self.options.form)
        own = ranks.share(len(x))
        with statistics.observe(teacher.net) as records:
            logits = teacher.net(x[own])
        scaled = x / unit(teacher.domain)
        terms = Terms(
            cls=F.cross_entropy(logits, y[own]),
            statistics=options.statistics * statistics.loss(records),
            variation=options.variation * total_variation(scaled),
            norm=options.norm * torch.linalg.vector_norm(scaled),
        )
        return terms, logits


class AdaptiveDeepInversion(DeepInversion):
    r"""DeepInversion of images on which a student does not yet follow its teacher.

    The loss gains :math:`\alpha_c\,\bigl(1 - \mathrm{JS}(p_T, p_S)\bigr)`, the Jensen-Shannon
    divergence of the softmax of both at the temperature of the options, in nats. The student is
    the one given, and stays as it is.

    Departures beside those of :class:`DeepInversion`: the divergence is that of its name, from both
    to their mean m, where the code has the reverse, :math:`\mathrm{KL}(m \| p)`, of probabilities
    clamped to [0.01, 0.99]; the paper trains the student and makes more images in turns.

    References:
        | Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion (Yin et al., 2020),
        | section 3.3, https://arxiv.org/abs/1912.08795
    """

    name = "adaptive-deepinversion"
    Options = AdaptiveDeepInversionOptions
    presets: ClassVar = {  # a step costs twice as much
        "quick": {**QUICK, **WEIGHTS, "images": 128},
        "standard": {**STANDARD, **WEIGHTS, "images": 256},
    }
    needs_student = True

    def loss(self, teacher: Teacher, student: Classifier | None) -> Loss:
        if student is None:
            raise UsageError(f"The synthesizer {self.name!r} needs a student; none was given.")
        options = self.options

        def loss(x: Tensor, y: Tensor) -> Terms:
            terms, logits = self.terms(teacher, x, y)
            pixels = teacher.domain.denormalize(x)[ranks.share(len(x))]
            # The divergence has a factor of the squared temperature, which the paper has not.
            divergence = jensen_shannon(student(pixels), logits, options.temperature)
            share = 1 - divergence / options.temperature**2
            return terms + Terms(competition=options.competition * share)

        return loss
