"""BDNF: a class-conditional flow trained by the teacher, and by real samples in reverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data.datasets import LabelledData
from ..domain import Domain
from ..errors import CheckpointError, UsageError
from ..flows import build_flow
from ..flows.bases import Base, GaussianBase, SpectralBase
from ..flows.contract import ConditionalFlow
from ..objectives.bidirectional import Bidirectional
from ..objectives.contract import Batch, Objective
from ..objectives.distill import Distill
from ..objectives.image_priors import BasePrior
from ..objectives.monitors import Health, examine_flow
from ..runs.loop import Stateful, TrainingLoop, own_generator
from ..runs.run import Run
from ..teachers.classifier import Classifier, Teacher
from .contract import Synthesizer, draw_labels


@dataclass(frozen=True)
class BDNFOptions:
    """The hyper-parameters of BDNF.

    Arguments:
        flow: The flow's architecture, see :func:`freia_kd.flows.build_flow`.
        base: The base density: `"spectral"` noise fitted to the domain, or `"gaussian"` as in the
            paper. Vectors always have a Gaussian one, in the teacher's normalised units.
        prior: Whether the objective keeps :math:`log p_X(x)` of eq. (1), as the density of the base
            through the squash, with the weight `alpha` of the volume. The paper drops it.
        alpha: The weight of the volume, per image (the paper's 1e-2).
        beta: The weight of the batch statistics (the paper's 1).
        gamma: The weight of the real samples' likelihood (the paper's 1e-2).
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
        ValueError: If a value makes no sense.
    """

    flow: str = "auto"
    base: Literal["spectral", "gaussian"] = "spectral"
    prior: bool = True
    alpha: float = 1e-2
    beta: float = 1.0
    gamma: float = 1e-2
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 1e-3
    clip: float = 1.0
    ema: float = 0.99
    contrast: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.base not in ("spectral", "gaussian"):
            raise ValueError(f"Expected the base 'spectral' or 'gaussian'; got {self.base!r}.")
        if min(self.steps, self.batch_size) < 1:
            raise ValueError(
                "Expected at least 1 for steps and batch_size; got "
                f"{self.steps} and {self.batch_size}."
            )
        if not (self.learning_rate > 0 and self.clip > 0):
            raise ValueError(
                "Expected a positive learning_rate and clip; got "
                f"{self.learning_rate} and {self.clip}."
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"Expected an ema in [0, 1); got {self.ema}.")
        self.objective(samples=True)  # refuses weights and ranges that make no sense

    def objective(self, samples: bool) -> Objective:
        """What the flow learns by: eq. (9) if there are real samples, else eq. (4)."""
        distill = Distill(
            alpha=self.alpha,
            beta=self.beta,
            prior=BasePrior() if self.prior else None,
            prior_weight=self.alpha,
            contrast=self.contrast,
        )
        return Bidirectional(distill, self.gamma) if samples else distill


# As the paper and its code have it, but for what the docstring of BDNF names.
PUBLISHED: dict[str, Any] = {"base": "gaussian", "prior": False, "contrast": (1.0, 2.0)}


class BDNF(Synthesizer):
    r"""The paper's method: inputs :math:`x = f(z; y)` of a flow trained by eq. (4) or eq. (9).

    Departures, each an option of :class:`BDNFOptions`: a spectral base, and the term
    :math:`\log p_X(x)` of eq. (1) that the paper drops for teachers without batch normalisation.
    With both, the objective is :math:`\mathrm{CLS} + \alpha \cdot` (the divergence from the
    flow's density to its base), plus the batch statistics of teachers that have them. There are
    fewer steps of a larger learning rate, and their weights are averaged.

    The preset `paper` undoes these, save the cosine: its weights and learning rate are those of the
    paper's text, its 9,390 steps of 64 latents (30 times 20,000) those of the paper's code. What
    that code has beside, and this preset has not:

    - z is of :math:`\mathcal{N}(0, 1/4)`, when the flow learns and when it samples;
    - the volume leaves out the squash to pixels, which is part of f here
      (:class:`~freia_kd.objectives.distill.Distill`);
    - CLS has :math:`\log(p + 0.01)`, unless there are samples;
    - the teacher's net eats :math:`a (x - 1/2)` in place of normalised pixels, with one factor a of
      [1, 2] for a batch (and x itself where there are samples), and so do students;
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
    Options = BDNFOptions
    presets: ClassVar = {
        "quick": {"steps": 200, "batch_size": 64},
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

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        run: Run | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        device = next(teacher.parameters()).device
        generator = own_generator(generator, device)
        options = self.options
        if samples is not None:
            samples.check(teacher.domain)
        flow = self._build(teacher.domain, generator).to(device)
        averaged = AveragedModel(flow, multi_avg_fn=get_ema_multi_avg_fn(options.ema))
        objective = options.objective(samples is not None)
        optimizer = torch.optim.Adam(flow.parameters(), options.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        parts: dict[str, Stateful] = {
            "flow": flow,
            "averaged": averaged,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        loop = TrainingLoop(
            self.stage, options.steps, parts, generator, optimizer, run, "train the flow"
        )
        for _ in loop:
            terms = objective(flow, teacher, self._batch(flow, samples, generator))
            if loop.accept(terms.total, terms.items()):
                optimizer.zero_grad()
                terms.total.backward()
                torch.nn.utils.clip_grad_norm_(flow.parameters(), options.clip)
                optimizer.step()
                schedule.step()
                averaged.update_parameters(flow)
        self.flow = cast(ConditionalFlow, averaged.module).eval()

    def restore(self, domain: Domain, run: Run) -> None:
        """Takes the trained flow from a run's folder.

        Raises:
            CheckpointError: If the run has no flow, or one of another architecture.
        """
        state = run.load(self.stage)
        if state is None or not run.done(self.stage):
            raise CheckpointError(f"The run in {run.folder} has no trained flow yet.")
        averaged = AveragedModel(self._build(domain, torch.Generator().manual_seed(0)))
        try:
            averaged.load_state_dict(state["parts"]["averaged"])
        except RuntimeError as error:
            raise CheckpointError(f"The run in {run.folder} has another flow: {error}") from error
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
        self, flow: ConditionalFlow, samples: LabelledData | None, generator: torch.Generator
    ) -> Batch:
        n = self.options.batch_size
        c = draw_labels(n, flow.classes, None, generator)
        z = flow.sample_base(c, generator=generator)
        if samples is None:
            return Batch(z, c, generator=generator)
        few = min(n, len(samples))  # more would cost time and tell nothing new
        rows = torch.randint(len(samples), (few,), generator=generator, device=generator.device)
        x, y = samples.take(rows.cpu())
        return Batch(z, c, x.to(z.device), y.to(z.device), generator)

    def examine(self, teacher: Teacher, generator: torch.Generator | None = None) -> Health:
        """How the flow's samples look to the teacher and to each other, from 512 of them."""
        return examine_flow(self.flow, teacher, 512, generator)

    @torch.no_grad()
    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        c = draw_labels(n, self.flow.classes, labels, generator)
        device = next(self.flow.parameters()).device
        parts = [self.flow.sample(part.to(device), generator=generator) for part in c.split(256)]
        return torch.cat(parts), c


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
