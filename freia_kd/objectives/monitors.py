"""Signs of a collapse, from synthetic samples and the teacher alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flows.contract import ConditionalFlow
from .contract import Terms

Sign = Literal["finite", "variety", "classes", "confidence"]  # of what goes wrong


@dataclass(frozen=True)
class Diagnostics:
    """What samples look like to the teacher, and to each other.

    Arguments:
        confidence: The teacher's mean probability of the condition, in [0, 1].
        hit_rate: The share of samples whose likeliest class is that of the condition.
        class_shares: The share of samples that the teacher puts into each class.
        variety: For each class, the root mean square deviation of its samples from their mean,
            relative to the reference's; about 1 as varied as the reference, 0 identical. `None`
            for a class with fewer than two samples.
        finite: Whether all samples and logits are finite.
    """

    confidence: float
    hit_rate: float
    class_shares: tuple[float, ...]
    variety: tuple[float | None, ...]
    finite: bool

    @property
    def balance(self) -> float:
        """The rarest class's share relative to an equal share, from 0 (missing) to 1."""
        return min(self.class_shares) * len(self.class_shares)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types, for metrics."""
        fields = asdict(self) | {"balance": self.balance}
        return {
            k: [_json(v) for v in f] if isinstance(f, tuple) else _json(f)
            for k, f in fields.items()
        }

    def warnings(self, advice: Mapping[Sign, str] | None = None) -> list[str]:
        """What looks wrong; empty if nothing does.

        Arguments:
            advice: What to change about each sign; it is said behind it.
        """
        said: dict[Sign, str]
        said = {"finite": "Samples or logits are not finite"} if not self.finite else self._signs()
        return [
            f"{fault}: {advice[sign]}." if advice and sign in advice else f"{fault}."
            for sign, fault in said.items()
        ]

    def _signs(self) -> dict[Sign, str]:
        signs: dict[Sign, str] = {}
        poor = [k for k, value in enumerate(self.variety) if value is not None and value < 0.1]
        if poor:
            signs["variety"] = (
                f"The samples of class {', '.join(map(str, poor))} have collapsed to nearly the "
                "same one (variety below 0.1 of the base's)"
            )
        classes = len(self.class_shares)
        rare = [k for k, share in enumerate(self.class_shares) if share * classes < 0.25]
        if rare:
            signs["classes"] = (
                f"The teacher hardly ever sees class {', '.join(map(str, rare))} in the samples "
                "(less than a quarter of an equal share)"
            )
        if self.confidence < 0.3:
            signs["confidence"] = (
                f"The teacher gives the wanted class a mean probability of {self.confidence:.2f} "
                "only"
            )
        return signs


def diagnose(logits: Tensor, x: Tensor, c: Tensor, reference: Tensor) -> Diagnostics:
    """Measures the health of samples.

    Arguments:
        logits: The teacher's logits for `x` with shape `(B, classes)`.
        x: Samples with shape `(B, *shape)`.
        c: The classes asked for with shape `(B,)`, or soft labels with shape `(B, classes)`.
        reference: Samples of what variety is relative to (what an untrained flow gives), with
            shape `(R, *shape)`, R at least 2.

    Raises:
        ValueError: If shapes do not fit.
    """
    if len(logits) != len(x) or len(c) != len(x) or len(reference) < 2:
        raise ValueError(
            f"Expected logits and conditions for {len(x)} samples and a reference of 2 or more; "
            f"got {len(logits)}, {len(c)} and {len(reference)}."
        )
    classes = logits.shape[1]
    wanted = c if c.ndim == 1 else c.argmax(1)
    soft = F.one_hot(c, classes) if c.ndim == 1 else c
    seen = logits.argmax(1)
    scale = _deviation(reference)
    groups = [x[wanted == k] for k in range(classes)]
    return Diagnostics(
        confidence=(logits.softmax(1) * soft).sum(1).mean().item(),
        hit_rate=(seen == wanted).double().mean().item(),
        class_shares=tuple((torch.bincount(seen, minlength=classes) / len(seen)).tolist()),
        variety=tuple(_deviation(g) / scale if len(g) > 1 else None for g in groups),
        finite=bool(x.isfinite().all() and logits.isfinite().all()),
    )


@torch.no_grad()
def diagnose_flow(
    flow: ConditionalFlow,
    teacher: nn.Module,
    n: int = 256,
    generator: torch.Generator | None = None,
) -> Diagnostics:
    """Draws `n` samples, equally many of each class, and measures their health.

    The reference is what the identity gives: base samples, squashed.
    """
    device = next(flow.parameters()).device
    c = torch.arange(n, device=device) % flow.classes
    z = flow.sample_base(c, generator=generator)
    x, _ = flow.decode(z, c)
    return diagnose(teacher(x), x, c, flow.to_input(z)[0])


def not_finite(terms: Terms) -> list[str]:
    """The names of terms that are NaN or infinite.

    Example:
        >>> not_finite(Terms(cls=torch.tensor(1.0), volume=torch.tensor(float("nan"))))
        ['volume']
    """
    return [name for name, term in terms.items() if not torch.isfinite(term).all()]


def _json(value: float | None) -> float | None:
    """A number that JSON can hold: NaN and infinity become `None`."""
    return None if value is None or not math.isfinite(value) else value


def _deviation(x: Tensor) -> float:
    return x.double().var(0).mean().sqrt().clamp(min=1e-12).item()
