"""Which student follows its teacher best: class by class, and how sure that is."""

import pytest
import torch
from torch import nn

from freia_kd.domain import Domain
from freia_kd.teachers import Classifier
from freia_kd.trust import Judge, can_judge, hold_contest

PLAIN = Domain((3,), 3, (0.0,), (1.0,), "plain")  # whose inputs are the student's logits


class Says(nn.Module):
    """Answers with its inputs, or wrongly where one of them is below a bound."""

    def __init__(self, bound):
        super().__init__()
        self.bound, self.weight = bound, nn.Parameter(torch.ones(()))

    def forward(self, x):
        wrong = x.amin(1, keepdim=True) < self.bound
        return torch.where(wrong, x.roll(1, 1), x)


def student(bound):
    return Classifier(Says(bound), PLAIN, "says")


def judge(rows, family="one"):
    """Rows of (class, how low the lowest logit is), of which the teacher is sure."""
    inputs = torch.zeros(len(rows), 3)
    for row, (label, low) in zip(inputs, rows, strict=True):
        row[label], row[(label + 1) % 3] = 9.0, low
    return Judge(family, inputs, inputs)


# 90 inputs of class 0 that are easy, 10 of class 1 that only the first student gets right.
UNEVEN = [(0, -1.0)] * 90 + [(1, -5.0)] * 10


def test_classes_count_alike_however_many_inputs_they_have():
    (best, other), strata = hold_contest({"b": student(-3.0), "a": student(-9.0)}, [judge(UNEVEN)])
    assert (best.synthesizer, best.agreement, best.certainty) == ("a", 1.0, 1.0)
    assert other.agreement == other.judges["one"] == pytest.approx(0.5)  # not 0.9
    assert other.behind.value == pytest.approx(-0.5)
    assert [(s.family, s.label, s.same.shape[1]) for s in strata] == [
        ("one", 0, 90),
        ("one", 1, 10),
    ]


def test_families_count_alike():
    judges = [judge(UNEVEN), judge([(0, -1.0)] * 500 + [(2, -1.0)] * 500, "two")]
    _, other = hold_contest({"a": student(-9.0), "b": student(-3.0)}, judges)[0]
    assert other.judges == {"one": 0.5, "two": 1.0}
    assert other.agreement == pytest.approx(0.75)


def test_equals_share_what_they_win():
    rows = [(k, -float(i % 7)) for k in range(3) for i in range(40)]
    same = {name: student(-4.5) for name in "abc"}
    found, _ = hold_contest(same, [judge(rows)])
    assert [c.synthesizer for c in found] == ["a", "b", "c"]
    assert [c.certainty for c in found] == pytest.approx([1 / 3] * 3)
    assert {(c.behind.value, c.behind.low, c.behind.high) for c in found} == {(0, 0, 0)}


def test_few_inputs_are_less_sure_than_many():
    def certainty(times):
        one, other = [(0, -5.0)] * 2 + [(0, -1.0)] * 30, [(1, -1.0)] * 30
        rows = (one + other) * times
        return hold_contest({"a": student(-9.0), "b": student(-4.0)}, [judge(rows)])[0][0].certainty

    few, many = certainty(1), certainty(10)
    assert 0.8 < few < 0.98  # 2 of 32 in which they differ are not drawn in e^-2 of resamples
    assert many == 1.0
    assert few == certainty(1)


def test_a_teacher_who_is_nowhere_sure_says_nothing():
    unsure = Judge("one", torch.zeros(50, 3), torch.randn(50, 3, generator=torch.manual_seed(0)))
    assert not can_judge(Judge("one", unsure.inputs, unsure.logits.clamp(-0.5, 0.5)))
    assert hold_contest({"a": student(0.0)}, [Judge("one", unsure.inputs, 0 * unsure.logits)]) == (
        [],
        [],
    )
    assert not can_judge(judge([(0, -1.0)] * 50 + [(1, -1.0)] * 2))  # of class 1 too few
    assert can_judge(judge([(0, -1.0)] * 50 + [(1, -1.0)] * 3))


def test_the_interval_is_that_of_drawing_the_inputs_again():
    # Of 17 inputs 7 differ: of 17 drawn again 3 to 11, the ends of 95 % of Bin(17, 7/17).
    rows = [(0, -5.0)] * 7 + [(0, -1.0)] * 10
    _, other = hold_contest({"a": student(-9.0), "b": student(-4.0)}, [judge(rows)])[0]
    assert (other.behind.low, other.behind.high) == pytest.approx((-11 / 17, -3 / 17))
