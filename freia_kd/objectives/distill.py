"""Training a flow from a teacher alone: the paper's eq. (4) to (7), and eq. (1) in full."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flows.bases import Base
from ..flows.contract import ConditionalFlow
from .batchnorm import BatchStatistics, normalization_layers
from .contract import Batch, Terms
from .image_priors import Prior


@dataclass(frozen=True)
class Distill:
    r"""The paper's data-free objective, eq. (4): samples that the teacher recognises, and spread.

    The paper maximises :math:`\sum (\mathrm{CLS} + \alpha\,\mathrm{Jacobian}) + \beta L_{bn}` with
    a sum over the batch. Here, as in the paper's code, the sum is a mean, so that beta weighs as
    many times more as the batch has inputs; and the negative is minimised. With
    :math:`x = f(z; c)` the terms are

    - `cls` :math:`= -\langle c \cdot \log \mathrm{softmax}(t(x) / T) \rangle`, eq. (5);
    - `volume` :math:`= -\alpha \langle \log|\det \partial x/\partial z| \rangle`: eq. (6), and
      the squash to pixels, which eq. (6) leaves out, and which the code of the paper's Table 1 adds
      as eq. (1) asks;
    - `batchnorm` :math:`= \beta \sum_l \ldots`, eq. (7), left out if beta is 0 or the teacher
      has no such layers (the paper's LeNet5);
    - `prior` :math:`= -w \langle \log p_X(x) \rangle`, the term of eq. (1) that the paper
      replaces by `batchnorm`; left out if there is no prior.

    Without a prior and without a squash (vectors) the volume has no upper bound: give a prior.

    Arguments:
        alpha: The weight of the volume (the paper 1e-2, its code 5e-3 to 4e-2).
        beta: The weight of the batch statistics (the paper 1, its code 2).
        temperature: The temperature T of the teacher's softmax.
        volume: Whether the log-determinant is that of an `"image"` (the sum over dimensions, as in
            eq. (6) and in the paper's code) or the mean over its `"dimension"` s (this package's,
            so that one alpha serves all image sizes).
        contrast: The range of a random factor a, drawn per image, by which the teacher sees
            :math:`1/2 + a (x - 1/2)`; `None` shows the images as they are. The paper's code has
            (1, 2) with one factor per batch, and :math:`a (x - 1/2)` itself is what the teacher's
            net takes.
        prior: The log-density of inputs, see :mod:`freia_kd.objectives.image_priors`.
        prior_weight: The weight w of the prior.
        batchnorm: How statistics are weighted.

    Raises:
        ValueError: If an option makes no sense; when called, if shapes do not fit.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), section 4.2
    """

    alpha: float = 1e-2
    beta: float = 1.0
    temperature: float = 1.0
    volume: Literal["image", "dimension"] = "image"
    contrast: tuple[float, float] | None = None
    prior: Prior | None = None
    prior_weight: float = 1.0
    batchnorm: BatchStatistics = field(default_factory=BatchStatistics)

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta, self.prior_weight) < 0:
            raise ValueError(
                "Expected alpha, beta and prior_weight of at least 0; got "
                f"{self.alpha}, {self.beta} and {self.prior_weight}."
            )
        if not self.temperature > 0:
            raise ValueError(f"Expected a positive temperature; got {self.temperature}.")
        if self.volume not in ("image", "dimension"):
            raise ValueError(f"Expected volume 'image' or 'dimension'; got {self.volume!r}.")
        if self.contrast is not None and not 0 < self.contrast[0] <= self.contrast[1]:
            raise ValueError(f"Expected a contrast (low, high) with 0 < low; got {self.contrast}.")

    def __call__(self, flow: ConditionalFlow, teacher: nn.Module, batch: Batch) -> Terms:
        """Evaluates eq. (4) on `batch.z` and `batch.c`; the total is to be minimised."""
        flow.check(batch.z, batch.c)
        u, ladj_flow = flow.decode_unbounded(batch.z, batch.c)
        x, ladj_squash = flow.to_input(u)
        volume = (ladj_flow + ladj_squash).mean()
        if self.volume == "dimension":
            volume = volume / math.prod(flow.shape)
        logits, statistics = self._ask(teacher, self._vary(x, batch.generator))
        terms = {
            "cls": cross_entropy(logits, flow.soft(batch.c), self.temperature),
            "volume": -self.alpha * volume,
        }
        if statistics is not None:
            terms["batchnorm"] = self.beta * statistics
        if self.prior is not None:
            terms["prior"] = -self.prior_weight * self.prior(flow, u, x, ladj_squash).mean()
        return Terms(**terms)

    def _vary(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.contrast is None:
            return x
        return vary_contrast(x, *self.contrast, generator=generator)

    def _ask(self, teacher: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.beta or not normalization_layers(teacher):
            return teacher(x), None
        with self.batchnorm.observe(teacher) as records:
            logits = teacher(x)
        return logits, self.batchnorm.loss(records)


@dataclass(frozen=True)
class Exact:
    r"""Eq. (1) with every term, in nats: a Kullback-Leibler divergence between joint densities.

    With a base density :math:`p_0` of unbounded values u, pushed through the flow's squash, as
    :math:`p_X`, the squash's log-determinants cancel and

    .. math:: -\log p_Y(y|x) - \log\Bigl|\det \frac{\partial u}{\partial z}\Bigr| - \log p_0(u)
              + \log p_Y(y) + \log p_Z(z)

    is an unbiased estimate of
    :math:`\mathrm{KL}\bigl(p_Y(y)\,q(x|y) \,\|\, p_X(x)\,p_Y(y|x)\bigr)`, where q is the flow's
    density and :math:`p_Y(y|x)` the teacher's softmax. It is at least 0 on average, and 0 when the
    flow samples Bayes' posterior of a class. The terms are, in this order, `cls`, `volume`,
    `prior`, `labels` and `base`; the last two have no gradient, unless the base is learned (a
    external flow's) and z was drawn by reparametrisation. Classes are uniform, so that
    :math:`\log p_Y(y) = -\log K`. For soft labels the first is the cross-entropy, and the total a
    divergence up to a constant.

    Arguments:
        prior: The density :math:`p_0` of unbounded values, or `None` for the flow's own base.
        sharpness: An exponent s: the target is :math:`p_X(x)\,p_Y(y|x)^s`. With 1 the total is the
            divergence above; larger values ask for more confident samples, and the total keeps its
            gradient's meaning but loses a constant.
        temperature: The temperature of the teacher's softmax.

    Raises:
        ValueError: If an option makes no sense; when called, if shapes do not fit.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), eq. (1)
    """

    prior: Base | None = None
    sharpness: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.sharpness > 0):
            raise ValueError(
                "Expected a positive temperature and sharpness; got "
                f"{self.temperature} and {self.sharpness}."
            )

    def __call__(self, flow: ConditionalFlow, teacher: nn.Module, batch: Batch) -> Terms:
        """Evaluates eq. (1) on `batch.z` and `batch.c`; the total is to be minimised."""
        flow.check(batch.z, batch.c)
        u, ladj = flow.decode_unbounded(batch.z, batch.c)
        x, _ = flow.to_input(u)
        prior = flow.base if self.prior is None else self.prior
        cls = cross_entropy(teacher(x), flow.soft(batch.c), self.temperature)
        return Terms(
            cls=self.sharpness * cls,
            volume=-ladj.mean(),
            prior=-prior.log_prob(u).mean(),
            labels=cls.new_full((), -math.log(flow.classes)),
            base=flow.base_log_prob(batch.z, batch.c).mean(),
        )


def cross_entropy(logits: Tensor, soft: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Eq. (5) with its sign changed: :math:`-\langle c \cdot \log\mathrm{softmax}(t/T)\rangle`.

    Arguments:
        logits: The teacher's logits `t` with shape `(B, classes)`.
        soft: Soft labels `c` with shape `(B, classes)`.
        temperature: The temperature T.

    Raises:
        ValueError: If the shapes differ.
    """
    if logits.shape != soft.shape:
        raise ValueError(
            f"Expected logits with shape {tuple(soft.shape)} from the teacher; "
            f"got {tuple(logits.shape)}. The flow and the teacher need the same classes."
        )
    return -(soft.to(logits) * F.log_softmax(logits / temperature, 1)).sum(1).mean()


def vary_contrast(
    x: Tensor, low: float, high: float, generator: torch.Generator | None = None
) -> Tensor:
    """Stretches each image around mid-grey by a factor drawn uniformly from [low, high].

    Values may leave [0, 1]: they are shown to the teacher, not kept.
    """
    device = x.device if generator is None else generator.device
    factor = low + (high - low) * torch.rand(len(x), generator=generator, device=device)
    return 0.5 + factor.to(x).view(-1, *(1,) * (x.ndim - 1)) * (x - 0.5)
