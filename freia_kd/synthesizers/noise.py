"""The noise baselines: images that know nothing of the teacher but its input domain."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import Config, Count
from ..data.datasets import LabelledData
from ..flows.bases import SpectralBase
from ..teachers.classifier import Classifier, Teacher
from ..training import Checkpoints
from .contract import TEACHER_BATCH_SIZE, Synthesizer, sample_labels


@dataclass(frozen=True)
class NoiseOptions(Config):
    """What there is to choose about noise.

    Arguments:
        tries: How many times more inputs are drawn, at most, when labels are asked for.
    """

    title: ClassVar[str] = "noise"
    tries: Count = 10


class Noise(Synthesizer):
    """Random inputs, labelled by the teacher; the base class of three kinds.

    Pixels are clamped to [0, 1]. Labels asked for are met by rejection: the inputs of a label are
    those that the teacher gives this label, as far as `tries` times as many draws hold any.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), section 5.2
    """

    Options = NoiseOptions

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        """Remembers the teacher; there is nothing to train."""
        self.teacher = teacher
        self.device = next(teacher.parameters()).device

    def diagnose(self, teacher: Teacher, generator: torch.Generator | None = None) -> None:
        """Nothing: noise learned nothing that could have failed."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Inputs with shape `(n, *shape)`."""

    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        if labels is None:
            x = self.draw(n, generator)
            return x, self._label(x)
        labels = sample_labels(n, self.teacher.domain.classes, labels, generator)
        wanted = labels if labels.ndim == 1 else labels.argmax(1)
        return self._reject(wanted.to(self.device), generator), labels

    @torch.no_grad()
    def _label(self, x: Tensor) -> Tensor:
        return torch.cat([self.teacher(part).argmax(1) for part in x.split(TEACHER_BATCH_SIZE)])

    def unanswered(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if type(self).sample is not Noise.sample:  # it gives labels of its own
            return super().unanswered(n, generator)
        return self.draw(n, generator), None

    def _reject(self, wanted: Tensor, generator: torch.Generator | None) -> Tensor:
        x = self.draw(len(wanted), generator)
        missing = torch.ones_like(wanted, dtype=torch.bool)
        for _ in range(self.options.tries):
            drawn = self.draw(max(64, len(wanted)), generator)
            labels = self._label(drawn)
            for label in wanted[missing].unique():
                rows = torch.nonzero(missing & (wanted == label)).flatten()
                found = drawn[labels == label][: len(rows)]
                x[rows[: len(found)]] = found
                missing[rows[: len(found)]] = False
            if not missing.any():
                break
        return x


class Uniform(Noise):
    r""":math:`\mathcal{U}(-1, 1)` in the units that the teacher takes, the paper's baseline."""

    name = "uniform"
    family = "pixel noise"

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        domain = self.teacher.domain
        noise = torch.rand(n, *domain.shape, generator=generator, device=self.device)
        x = domain.denormalize(2 * noise - 1)
        return x.clamp(0, 1) if domain.is_image else x


class Normal(Noise):
    r""":math:`\mathcal{N}(0, 1)` in the units that the teacher takes, the paper's baseline."""

    name = "normal"
    family = "pixel noise"

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        domain = self.teacher.domain
        x = domain.denormalize(
            torch.randn(n, *domain.shape, generator=generator, device=self.device)
        )
        return x.clamp(0, 1) if domain.is_image else x


class Spectral(Noise):
    """A sigmoid of 1/f noise, :class:`~freia_kd.flows.bases.SpectralBase`, fitted to the domain."""

    name = "spectral"
    family = "spectral noise"
    needs_images = True

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        super().fit(teacher, samples, checkpoints, generator, student)
        self.base = SpectralBase.for_domain(teacher.domain).to(self.device)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.sigmoid(self.base.sample(n, generator=generator))
