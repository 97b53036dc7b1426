"""What students cost and how good they are, beside their teacher."""

from __future__ import annotations

import json
from typing import Any

import torch

from .compression import compare_costs, count_macs, count_parameters
from .data.datasets import LabelledData
from .data.synthetic import SyntheticSet
from .distillation import agreement, predict
from .teachers import Classifier, Teacher


def measure_teacher(teacher: Teacher, evaluation: LabelledData | None) -> dict[str, Any]:
    """The report's entry for a teacher.

    Arguments:
        teacher: The teacher.
        evaluation: Real data to measure accuracy on, if any.
    """
    return {
        "parameters": count_parameters(teacher.net),
        "macs": count_macs(teacher.net, teacher.domain.shape),
        "accuracy": _accuracy(teacher, evaluation),
    }


def measure_student(
    teacher: Teacher,
    before: Classifier,
    student: Classifier,
    heldout: SyntheticSet,
    evaluation: LabelledData | None,
) -> dict[str, Any]:
    """The report's figures for a student.

    Arguments:
        teacher: The teacher.
        before: The student before any training.
        student: The student.
        heldout: Synthetic inputs; those of odd index measure agreement.
        evaluation: Real data to measure accuracy on, if any.
    """
    costs = compare_costs(teacher.net, student.net, teacher.domain.shape)
    theirs, ours = costs.before.latency[1], costs.after.latency[1]
    answers = None if evaluation is None else predict(teacher, evaluation)
    return {
        "parameters": costs.after.parameters,
        "macs": costs.after.macs,
        "compression": costs.before.parameters / costs.after.parameters,
        "latency_ms": ours.median,
        "latency_range_ms": [ours.low, ours.high],
        "teacher_latency_ms": theirs.median,
        "teacher_latency_range_ms": [theirs.low, theirs.high],
        "accuracy_before": _accuracy(before, evaluation),
        "accuracy": _accuracy(student, evaluation),
        "agreement_before": agreement(before, heldout, half="odd"),
        "agreement": agreement(student, heldout, half="odd"),
        "real_agreement_before": _share_equal(before, evaluation, answers),
        "real_agreement": _share_equal(student, evaluation, answers),
        "costs": json.loads(json.dumps(costs.to_dict())),  # whose keys are all text
    }


def _accuracy(classifier: Classifier, data: LabelledData | None) -> float | None:
    return _share_equal(classifier, data, None if data is None else data.labels)


def _share_equal(
    classifier: Classifier, data: LabelledData | None, expected: torch.Tensor | None
) -> float | None:
    """The share of inputs of `data` on which a classifier says what is expected."""
    if data is None or expected is None:
        return None
    return predict(classifier, data).eq(expected).double().mean().item()
