"""The noise baselines: images that know nothing of the teacher but its input domain."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..data.datasets import LabelledData
from ..flows.bases import SpectralBase
from ..runs.run import Run
from ..teachers.classifier import Teacher
from .contract import Synthesizer


class Noise(Synthesizer):
    r"""Random inputs, labelled by the teacher's own answer.

    - `uniform`: :math:`\mathcal{U}(-1, 1)` in the units that the teacher eats, the paper's;
    - `normal`: :math:`\mathcal{N}(0, 1)` in the same units, the paper's;
    - `spectral`: a sigmoid of :class:`~freia_kd.flows.bases.SpectralBase`, fitted to the mean and
      std of the domain.

    Pixels are clamped to [0, 1]. Labels asked for are met by rejection: the inputs of a label are
    those that the teacher gives this label, as far as `tries` times as many draws hold any.

    Arguments:
        kind: Which noise.
        tries: How many times more inputs are drawn, at most, when labels are asked for.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), section 5.2
    """

    def __init__(
        self, kind: Literal["uniform", "normal", "spectral"] = "spectral", tries: int = 50
    ) -> None:
        if kind not in ("uniform", "normal", "spectral"):
            raise ValueError(f"Expected uniform, normal or spectral noise; got {kind!r}.")
        self.kind, self.name, self.tries = kind, kind, tries

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        run: Run | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Remembers the teacher; there is nothing to train."""
        self.teacher = teacher
        self.device = next(teacher.parameters()).device
        if self.kind == "spectral":
            self.base = SpectralBase.for_domain(teacher.domain).to(self.device)

    def sample(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        if labels is None:
            x = self._draw(n, generator)
            return x, self._label(x)
        wanted = labels if labels.ndim == 1 else labels.argmax(1)
        return self._reject(wanted.to(self.device), generator), labels

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        domain = self.teacher.domain
        if self.kind == "spectral":
            return torch.sigmoid(self.base.sample(n, generator=generator))
        draw = torch.rand if self.kind == "uniform" else torch.randn
        noise = draw(n, *domain.shape, generator=generator, device=self.device)
        x = domain.denormalize(2 * noise - 1 if self.kind == "uniform" else noise)
        return x.clamp(0, 1) if domain.is_image else x

    @torch.no_grad()
    def _label(self, x: Tensor) -> Tensor:
        return torch.cat([self.teacher(part).argmax(1) for part in x.split(1024)])

    def _reject(self, wanted: Tensor, generator: torch.Generator | None) -> Tensor:
        x = self._draw(len(wanted), generator)
        missing = torch.ones_like(wanted, dtype=torch.bool)
        for _ in range(self.tries):
            drawn = self._draw(max(64, len(wanted)), generator)
            labels = self._label(drawn)
            for label in wanted[missing].unique():
                rows = torch.nonzero(missing & (wanted == label)).flatten()
                found = drawn[labels == label][: len(rows)]
                x[rows[: len(found)]] = found
                missing[rows[: len(found)]] = False
            if not missing.any():
                break
        return x
