"""From evidence to the agreement on real data, by students of which both are known."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..config import Config, Count, NonNegative, Share
from ..report.schema import Expectation
from .evidence import Evidence, logit

FILE = Path(__file__).with_name("calibration.json")  # what `benchmarks/trust.py` writes
LEVEL = 0.9  # of students of a teacher left out, whose agreement lies within the interval


@dataclass(frozen=True)
class Case:
    """A student whose agreement with its teacher on real data is known.

    Arguments:
        teacher: The teacher, by name.
        features: Its evidence (:attr:`Evidence.features`).
        agreement: Its agreement on real data, in [0, 1].
    """

    teacher: str
    features: dict[str, float]
    agreement: float


@dataclass(frozen=True)
class Calibration(Config):
    r"""A linear model of the logit of the agreement on real data, and how far off it was.

    .. math:: \mathrm{logit}\,a \approx w_0 + \sum_k w_k x_k

    Arguments:
        weights: The weight of each feature.
        intercept: :math:`w_0`.
        margin: Half the width of the interval, on the scale of logits.
        level: The share of students that lay within it when their teacher was left out.
        error: The mean absolute error of the agreement, their teacher left out, in [0, 1].
        students: How many there were.
        ranges: The smallest and the largest value of each feature among them.
        about: What they were: teachers, students, the date and the command.
    """

    title: ClassVar[str] = "calibration"
    weights: dict[str, float]
    intercept: float
    margin: NonNegative
    level: Share
    error: NonNegative
    students: Count
    ranges: dict[str, tuple[float, float]]
    about: dict[str, Any]

    def expect(self, evidence: Evidence) -> Expectation:
        """The agreement to be expected of a student, with its interval."""
        features = evidence.features
        middle = self.intercept + sum(w * features[name] for name, w in self.weights.items())
        beyond = [
            name for name, (low, high) in self.ranges.items() if not low <= features[name] <= high
        ]
        return Expectation(
            value=_share(middle),
            low=_share(middle - self.margin),
            high=_share(middle + self.margin),
            level=self.level,
            is_beyond=bool(beyond),
            basis=self.basis,
            evidence=json.loads(json.dumps(dataclasses.asdict(evidence))),  # as a file has it
        )

    @property
    def basis(self) -> str:
        """What it rests on, in a sentence."""
        teachers = ", ".join(self.about["teachers"])
        return (
            f"Calibrated on {self.students} students of {len(self.about['teachers'])} teachers "
            f"({teachers}), {self.about['date']}: with a teacher left out, "
            f"{self.level:.0%} of its students lay within such an interval, and the prediction was "
            f"{100 * self.error:.1f} points off on average. It may not hold for other domains."
        )


def calibrate(
    cases: Sequence[Case],
    names: Sequence[str],
    about: Mapping[str, Any],
    level: float = LEVEL,
) -> Calibration:
    """Fits the model by least squares, every teacher with the same weight in all.

    The margin is the quantile of the absolute errors on the scale of logits when each teacher is
    left out in turn, with the correction of split conformal prediction for few of them.

    Arguments:
        cases: The students, of two teachers or more.
        names: The features to predict by.
        about: What they were.
        level: The share that is to lie within the interval.

    Raises:
        ValueError: If there are fewer than two teachers.

    References:
        | Distribution-Free Predictive Inference for Regression (Lei et al., 2018)
        | https://arxiv.org/abs/1604.04173

    Example:
        >>> cases = [Case(t, {"x": float(x)}, 1 / (1 + 2.0**-x)) for t in "ab" for x in range(7)]
        >>> found = calibrate(cases, ["x"], {"teachers": ["a", "b"]})
        >>> round(found.weights["x"], 3), round(found.margin, 3)
        (0.693, 0.0)
    """
    errors = leave_one_out(cases, names)
    rank = min(math.ceil((len(cases) + 1) * level), len(cases))
    weights, intercept = _fit(cases, names)
    ranges = {n: _ends([case.features[n] for case in cases]) for n in names}
    return Calibration(
        weights=weights,
        intercept=intercept,
        margin=float(np.sort([abs(e.logit) for e in errors])[rank - 1]),
        level=level,
        error=float(np.mean([abs(e.agreement) for e in errors])),
        students=len(cases),
        ranges=ranges,
        about=dict(about),
    )


@dataclass(frozen=True)
class Miss:
    """What was predicted of a student less what was, its teacher left out.

    Arguments:
        case: The student.
        logit: The difference on the scale of logits.
        agreement: The difference of agreements.
    """

    case: Case
    logit: float
    agreement: float


def leave_one_out(cases: Sequence[Case], names: Sequence[str]) -> list[Miss]:
    """The errors on each teacher's students of a model of all others; errors as of `calibrate`."""
    teachers = sorted({case.teacher for case in cases})
    if len(teachers) < 2:
        raise ValueError(f"Expected students of 2 teachers or more; got {len(teachers)}.")
    found = []
    for left in teachers:
        weights, intercept = _fit([c for c in cases if c.teacher != left], names)
        for case in (case for case in cases if case.teacher == left):
            middle = intercept + sum(w * case.features[n] for n, w in weights.items())
            found.append(
                Miss(case, middle - logit(case.agreement), _share(middle) - case.agreement)
            )
    return found


def _fit(cases: Sequence[Case], names: Sequence[str]) -> tuple[dict[str, float], float]:
    counts = {t: sum(case.teacher == t for case in cases) for t in {c.teacher for c in cases}}
    roots = np.sqrt([1 / counts[case.teacher] for case in cases])
    matrix = np.array([[*(case.features[n] for n in names), 1.0] for case in cases])
    values = np.array([logit(case.agreement) for case in cases])
    solution, *_ = np.linalg.lstsq(matrix * roots[:, None], values * roots, rcond=None)
    *weights, intercept = map(float, solution)
    return dict(zip(names, weights, strict=True)), intercept


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@lru_cache
def read_calibration() -> Calibration:
    """The calibration that the package ships."""
    fields = json.loads(FILE.read_text(encoding="utf-8"))
    ranges = {name: tuple(ends) for name, ends in fields["ranges"].items()}
    return Calibration.from_dict({**fields, "ranges": ranges})
