"""BDNF: a class-conditional flow trained by the teacher, and by real samples in reverse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from .. import ranks
from ..config import Config, Count, Decay, NonNegative, Positive
from ..data.augment import Augmentation
from ..data.datasets import LabelledData
from ..domain import Domain
from ..errors import CheckpointError, UsageError
from ..flows import build_flow, explain_default
from ..flows.bases import Base, GaussianBase, SpectralBase
from ..flows.contract import ConditionalFlow
from ..objectives.batchnorm import BatchStatistics, Form
from ..objectives.bidirectional import Bidirectional
from ..objectives.contract import Batch, Objective
from ..objectives.distill import Distill
from ..objectives.image_priors import BasePrior
from ..objectives.monitors import Diagnostics, diagnose_flow
from ..teachers.classifier import Classifier, Teacher, remedies
from ..training import Checkpoints, MovingAverage, Stateful, TrainingLoop, own_generator
from .contract import Synthesizer, sample_labels


@dataclass(frozen=True)
class BDNFOptions(Config):
    """The hyper-parameters of BDNF.

    Arguments:
        flow: The flow's architecture, see :func:`freia_kd.flows.build_flow`.
        base: The base density: `"spectral"` noise fitted to the domain, or `"gaussian"` as in the
            paper. Vectors always have a Gaussian one, in the teacher's normalised units.
        prior: Whether the objective keeps :math:`log p_X(x)` of eq. (1), as the density of the base
            through the squash, with the weight `alpha` of the volume. The paper drops it.
        alpha: The weight of the volume, per image (the paper's 1e-2).
        statistics: How batch statistics are compared: `"norms"` as published, or `"divergence"`,
            which has no units, so that one beta serves teachers of any scale and depth
            (:class:`~freia_kd.objectives.batchnorm.BatchStatistics`).
        beta: The weight of the batch statistics (the paper's 1, for its norms).
        gamma: The weight of the real samples' likelihood (the paper's 1e-2).
        augment: Whether real samples are augmented before the flow learns their likelihood, without
            mixing them (:class:`~freia_kd.data.augment.Augmentation`); the paper's are not.
        natural: As of :class:`~freia_kd.synthesizers.bank.BankOptions`, where they are augmented.
        steps: Training steps.
        batch_size: Latents in a step.
        learning_rate: Adam's (the paper's 1e-4, with far more steps), falling to 0 as a cosine.
        clip: The bound of the gradient's norm.
        ema: The decay of the exponential moving average of the weights, which is what samples; 0
            takes the last weights, as the paper's code does.
        contrast: The range of a random factor a by which the teacher sees 1/2 + a (x - 1/2) while
            the flow learns, after the paper's code, see :class:`BDNF`; `None` shows the images as
            they are.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = "bdnf"
    flow: str = "auto"
    base: Literal["spectral", "gaussian"] = "spectral"
    prior: bool = True
    alpha: NonNegative = 1e-2
    statistics: Form = "divergence"
    beta: NonNegative = 10.0
    gamma: NonNegative = 1e-2
    augment: bool = True
    natural: bool | None = None
    steps: Count = 600
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    clip: Positive = 1.0
    ema: Decay = 0.99
    contrast: tuple[Positive, Positive] | None = None

    def faults(self) -> Iterator[str]:
        try:
            self.objective(samples=True)
        except ValueError as error:  # such as a range whose ends are the wrong way round
            yield f"{self.title}: {error}"

    def objective(self, samples: bool) -> Objective:
        """What the flow learns by: eq. (9) if there are real samples, else eq. (4)."""
        distill = Distill(
            alpha=self.alpha,
            beta=self.beta,
            prior=BasePrior() if self.prior else None,
            prior_weight=self.alpha,
            contrast=self.contrast,
            batchnorm=BatchStatistics(self.statistics),
        )
        return Bidirectional(distill, self.gamma) if samples else distill


# As the paper and its code have it, but for what the docstring of BDNF names.
PUBLISHED: dict[str, Any] = {
    "base": "gaussian",
    "prior": False,
    "contrast": (1.0, 2.0),
    "statistics": "norms",
    "beta": 1.0,
    "augment": False,
}


class BDNF(Synthesizer):
    r"""The paper's method: inputs :math:`x = f(z; y)` of a flow trained by eq. (4) or eq. (9).

    Departures, each an option of :class:`BDNFOptions`: a spectral base, and the term
    :math:`\log p_X(x)` of eq. (1) that the paper drops for teachers without batch normalisation.
    With both, the objective is :math:`\mathrm{CLS} + \alpha \cdot` (the divergence from the
    flow's density to its base), plus the batch statistics of teachers that have them. There are
    fewer steps of a larger learning rate, and their weights are averaged.

    The preset `paper` undoes these, save the cosine: its weights and learning rate are those of the
    paper's text, its 9,390 steps of 64 latents (30 times 20,000) those of the paper's code. The
    volume includes the squash to pixels, as in the code of the paper's Table 1. What that code has
    beside, `freiakd reproduce table1 --preset code` has (:mod:`freia_kd.experiments.recipes`):

    - z is of :math:`\mathcal{N}(0, 1/4)`, when the flow learns and when it samples, and the flow is
      1500 wide and starts from random weights;
    - CLS has :math:`\log(p + 0.01)`, unless there are samples;
    - the teacher's net takes :math:`a (x - 1/2)` in place of normalised pixels, with one factor a
      of [1, 2] for a batch (and x itself where there are samples), and so do students;
    - in eq. (7) the first layer weighs double, and so do all means;
    - a weight decay of 1e-3, and a constant learning rate, 5e-5 for MNIST;
    - weights by data set: alpha 5e-3 (MNIST), 2e-2 (Fashion-MNIST) and 4e-2 (SVHN), beta 2, and
      gamma 1e-3 (1e-2 for Fashion-MNIST).

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), eq. (4), (9)
    """

    name = "bdnf"
    family = "spectral noise"  # which its base is
    takes_samples = True
    varying: ClassVar = {"alpha": 2, "steps": 0.5}
    directing: ClassVar = {"steps": 2, "alpha": 0.5}
    is_shared = True
    Options = BDNFOptions
    presets: ClassVar = {
        "quick": {"steps": 100, "batch_size": 64},
        "best": {"steps": 2_000},
        "paper": {
            **PUBLISHED,
            "learning_rate": 1e-4,
            "steps": 9_390,
            "batch_size": 64,
            "ema": 0.0,
        },
    }
    flow: ConditionalFlow

    def check(self, teacher: Teacher) -> None:
        """Builds the flow, whose name or file may be wrong."""
        super().check(teacher)
        self._build(teacher.domain, torch.Generator().manual_seed(0))

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        device = next(teacher.parameters()).device
        generator = own_generator(generator, device)
        options = self.options
        if samples is not None:
            samples.check(teacher.domain)
            samples = samples.to(device)
        flow = self._build(teacher.domain, generator).to(device)
        averaged = MovingAverage(flow, options.ema)
        objective = options.objective(samples is not None)
        optimizer = torch.optim.Adam(flow.parameters(), options.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        parts: dict[str, Stateful] = {
            "flow": flow,
            "averaged": averaged,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        title, steps = "train the flow", options.steps
        advice = remedies(f"{self.name}.learning_rate", teacher)
        loop = TrainingLoop(
            title, steps, parts, generator, optimizer, checkpoints, ["averaged"], advice
        )
        for _ in loop:
            batch = self._batch(flow, samples, teacher.domain, generator)
            terms = objective(flow, teacher, batch)
            if loop.accept(terms.total, terms.items()):
                loop.backward(terms.total)
                torch.nn.utils.clip_grad_norm_(flow.parameters(), options.clip)
                optimizer.step()
                schedule.step()
                averaged.update_parameters(flow)
        self.flow = cast(ConditionalFlow, averaged.module).eval()

    def restore(self, domain: Domain, checkpoints: Checkpoints) -> None:
        """Takes the trained flow from a run's folder.

        Raises:
            CheckpointError: If the run has no flow, or one of another architecture.
        """
        state = checkpoints.load()
        if state is None or state["step"] < state["steps"]:
            raise CheckpointError(f"The run in {checkpoints.folder} has no trained flow yet.")
        averaged = MovingAverage(
            self._build(domain, torch.Generator().manual_seed(0)), self.options.ema
        )
        try:
            averaged.load_state_dict(state["parts"]["averaged"])
        except RuntimeError as error:
            raise CheckpointError(
                f"The run in {checkpoints.folder} has another flow: {error}"
            ) from error
        self.flow = cast(ConditionalFlow, averaged.module).eval()

    def _build(self, domain: Domain, generator: torch.Generator) -> ConditionalFlow:
        base: Base
        if not domain.is_image:
            base = GaussianBase.for_domain(domain)
        elif self.options.base == "spectral":
            base = SpectralBase.for_domain(domain)
        else:
            base = GaussianBase(domain.shape)
        # Architectures draw their weights from the global generator, which is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(generator))
            flow = build_flow(self.options.flow, domain, base)
        if not any(p.requires_grad for p in flow.parameters()):
            raise UsageError(f"The flow {self.options.flow!r} has nothing to train.")
        return flow

    def _batch(
        self,
        flow: ConditionalFlow,
        samples: LabelledData | None,
        domain: Domain,
        generator: torch.Generator,
    ) -> Batch:
        n = self.options.batch_size
        c = sample_labels(n, flow.classes, None, generator)
        z = flow.sample_base(c, generator=generator)
        c, z = c[ranks.share(n)], z[ranks.share(n)]
        if samples is None:
            return Batch(z, c, generator=ranks.own_noise(generator))
        # As many as there are: more would cost time and tell nothing new, unless augmented.
        few = min(n, max(len(samples), n // 4 if self.options.augment else 1))
        rows = torch.randint(len(samples), (few,), generator=generator, device=generator.device)
        x, y = samples.take(rows)
        if self.options.augment:
            change = Augmentation.for_domain(domain, self.options.natural, mixing=0.0)
            x = change(x, generator, domain)
        # Where they are too few to be shared evenly, every process learns from all.
        own = slice(None) if few % ranks.count() else ranks.share(few)
        return Batch(z, c, x[own], y[own], ranks.own_noise(generator))

    @property
    def chosen(self) -> str | None:
        """Which flow `"auto"` is, why, and its size."""
        if self.options.flow != "auto":
            return None
        why = explain_default(Domain(self.flow.shape, self.flow.classes))
        size = sum(p.numel() for p in self.flow.parameters())
        return (
            f"Of the flows, {self.name} chose {why}; it has {size:,} parameters "
            f"(--set {self.name}.flow=NAME takes another)."
        )

    def diagnose(self, teacher: Teacher, generator: torch.Generator | None = None) -> Diagnostics:
        """How the flow's samples look to the teacher and to each other, from 512 of them."""
        return diagnose_flow(self.flow, teacher, 512, generator)

    @torch.no_grad()
    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        c = sample_labels(n, self.flow.classes, labels, generator)
        device = next(self.flow.parameters()).device
        with self.flow.fixed():
            parts = [self.flow.sample(y.to(device), generator=generator) for y in c.split(256)]
        return torch.cat(parts), c


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
