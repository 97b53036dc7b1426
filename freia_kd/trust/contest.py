"""Which of several students follows its teacher best, on inputs from which none has learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..report.schema import Candidate, Difference
from ..teachers import Classifier
from .evidence import CONFIDENT, MIN_INPUTS, Judge, log_probabilities

RESAMPLES = 1_000
MIN_CLASSES = 2  # in which a teacher is confident of a judge's inputs, for these to say anything


@dataclass(frozen=True)
class Stratum:
    """The inputs of a judge that the teacher confidently puts into one class.

    Arguments:
        family: The judge's family.
        label: The class.
        same: Whether each student names it, with shape `(students, inputs)`.
    """

    family: str
    label: int
    same: np.ndarray


def hold_contest(
    students: Mapping[str, Classifier], judges: Sequence[Judge], seed: int = 0
) -> tuple[list[Candidate], list[Stratum]]:
    r"""Compares students where the teacher is confident, class by class.

    The score of student s is the mean over judges of the mean over classes of the agreement,

    .. math:: a_s = \frac1J \sum_j \frac{1}{K_j} \sum_k
        \mathrm{mean}\,[s(x) = k \mid x \in j,\ p_T(k \mid x) > 0.9]

    over the classes of which a judge holds 3 such inputs or more. A bootstrap draws the inputs of
    each class of each judge again, the same for all students. It knows nothing of other seeds of
    training, nor of how much a judge's inputs say about real ones.

    Arguments:
        students: The students by name, all judged alike.
        judges: Inputs from which none of them has learned.
        seed: The seed of the resamples.

    Returns:
        The students, the best first, the earlier of equals; and what they were judged by. Nothing
        of either where the teacher is nowhere confident.
    """
    strata = [stratum for judge in judges for stratum in _strata(students, judge)]
    if not strata:
        return [], []
    names, families = list(students), list(dict.fromkeys(s.family for s in strata))
    exact = _scores([s.same.mean(1)[None] for s in strata], strata)  # (1, families, students)
    generator = np.random.default_rng(seed)
    drawn = _scores([_resample(s.same, generator) for s in strata], strata).mean(1)
    shares, means = exact[0], exact[0].mean(0)
    order = np.argsort(-means, kind="stable")
    best = order[0]
    leads = drawn == drawn.max(1, keepdims=True)
    certainty = (leads / leads.sum(1, keepdims=True)).mean(0)  # equals share what they win
    behind = drawn - drawn[:, [best]]
    low, high = np.quantile(behind, (0.025, 0.975), axis=0)
    candidates = [
        Candidate(
            synthesizer=names[i],
            agreement=float(means[i]),
            judges={family: float(shares[row, i]) for row, family in enumerate(families)},
            behind=Difference(float(means[i] - means[best]), float(low[i]), float(high[i])),
            certainty=float(certainty[i]),
        )
        for i in order
    ]
    return candidates, strata


def can_judge(judge: Judge) -> bool:
    """Whether the teacher is confident of a judge's inputs in two classes or more."""
    return len(_strata({}, judge)) >= MIN_CLASSES


def _strata(students: Mapping[str, Classifier], judge: Judge) -> list[Stratum]:
    confidence, answers = judge.logits.softmax(1).max(1)
    sure = confidence > CONFIDENT
    if not sure.any():
        return []
    inputs, answers = judge.inputs[sure], answers[sure]
    said = [log_probabilities(s, inputs).argmax(1) for s in students.values()]
    found = []
    for label in range(judge.logits.shape[1]):
        rows = answers == label
        if int(rows.sum()) >= MIN_INPUTS:
            same = [answer[rows].eq(label).tolist() for answer in said]
            found.append(Stratum(judge.family, label, np.array(same, dtype=float)))
    return found


def _resample(same: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The means of a stratum drawn again and again, `(resamples, students)`."""
    count = same.shape[1]
    weights = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return weights @ same.T / count


def _scores(means: Sequence[np.ndarray], strata: Sequence[Stratum]) -> np.ndarray:
    """The means of strata as means of families, `(resamples, families, students)`."""
    families = dict.fromkeys(stratum.family for stratum in strata)
    own = [
        np.mean([m for m, s in zip(means, strata, strict=True) if s.family == family], axis=0)
        for family in families
    ]
    return np.stack(own, axis=1)
