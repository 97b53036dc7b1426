"""The agreement to be expected on real data: evidence, its calibration, and the file shipped."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from freia_kd.domain import Domain
from freia_kd.synthesizers.leaves import Leaves
from freia_kd.synthesizers.noise import Spectral
from freia_kd.teachers import Classifier, Teacher
from freia_kd.trust import Case, calibrate, examine, make_judges, read_calibration
from freia_kd.trust.calibration import leave_one_out
from freia_kd.trust.evidence import Evidence

ROWS = Path(__file__).parents[2] / "benchmarks/results/trust.json"


@pytest.fixture(scope="module")
def judges(teacher):
    return make_judges(teacher, size=64)


def noisy(teacher, scale):
    student = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return Classifier(student.net, teacher.domain, teacher.arch)


def test_a_copy_agrees_in_everything(teacher, judges):
    found = examine(noisy(teacher, 0.0), judges)
    assert max(found.divergence.values()) == pytest.approx(0, abs=1e-6)
    assert min(found.overlap.values()) == pytest.approx(1)
    assert set(found.agreement.values()) == {1.0}
    worse, worst = (examine(noisy(teacher, s), judges).features for s in (0.02, 0.1))
    assert worst["divergence"] > worse["divergence"] > found.features["divergence"]
    for name in ("overlap", "agreement"):
        assert worst[name] < worse[name] < found.features[name]


def test_the_numbers_by_other_formulas(teacher, judges):
    student, judge = noisy(teacher, 0.05), judges[1]
    found = examine(student, judges)
    with torch.no_grad():
        said, taught = student(judge.inputs), teacher(judge.inputs)
    p, q = taught.softmax(1), said.softmax(1)
    kl = F.kl_div(q.log(), p, reduction="batchmean").item()
    assert found.divergence[judge.family] == pytest.approx(kl, rel=1e-4)
    assert found.overlap[judge.family] == pytest.approx(1 - (p - q).abs().sum(1).mean().item() / 2)
    entropies = torch.distributions.Categorical(p).entropy()
    whole = torch.distributions.Categorical(p.mean(0)).entropy()
    mutual = (whole - entropies.mean()).item()
    assert found.information[judge.family] == pytest.approx(mutual, abs=1e-4)
    for shares, least in ((found.agreement, 0.0), (found.confident, 0.9)):
        by_class = {}
        for t, s in zip(p, q, strict=True):
            if t.max() > least:
                by_class.setdefault(int(t.argmax()), []).append(float(t.argmax() == s.argmax()))
        kept = [np.mean(v) for v in by_class.values() if len(v) >= 3]
        assert shares[judge.family] == (pytest.approx(np.mean(kept)) if kept else None)


def test_families_that_a_student_learned_from_do_not_count(teacher, judges):
    """Seen to fail: students were judged by what they had learned from."""
    student = noisy(teacher, 0.05)
    all_families = tuple(judge.family for judge in judges)
    found = examine(student, judges, {Leaves.family})
    assert found.families == tuple(f for f in all_families if f != Leaves.family)
    shares = [found.overlap[f] for f in found.families]
    expected = np.mean([math.log(s / (1 - s)) for s in shares])
    assert found.features["overlap"] == pytest.approx(expected)
    assert examine(student, judges, all_families).families == all_families


def test_the_same_seed_gives_the_same_inputs(teacher, judges):
    again, other = make_judges(teacher, size=64), make_judges(teacher, seed=1, size=64)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(judges, again, strict=True))
    assert not torch.equal(judges[0].inputs, other[0].inputs)
    assert judges[0].family == Spectral.family
    vectors = Teacher(nn.Linear(4, 3), Domain((4,), 3), "linear")
    assert make_judges(vectors) == []


def law(x, teacher=""):
    shift = {"a": 0.3, "b": -0.3}.get(teacher, 0.0)
    return 1 / (1 + math.exp(-(1.5 * x - 0.5 + shift)))


CASES = [Case(t, {"x": x, "y": 0.0}, law(x, t)) for t in "abc" for x in np.linspace(-1, 2, 9)]


def test_the_model_is_that_of_least_squares():
    found = calibrate(CASES, ["x"], {"teachers": ["a", "b", "c"], "date": "then"})
    assert (found.weights["x"], found.intercept) == pytest.approx((1.5, -0.5))
    assert found.ranges == {"x": (-1.0, 2.0)}
    misses = leave_one_out(CASES, ["x"])
    shifts = {"a": 0.3 + 0.15, "b": -0.3 - 0.15, "c": 0.0}  # from the mean of the others
    for miss in misses:
        assert miss.logit == pytest.approx(-shifts[miss.case.teacher])
        predicted = 1 / (1 + math.exp(-miss.logit - logit(miss.case.agreement)))
        assert miss.agreement == pytest.approx(predicted - miss.case.agreement)
    assert found.margin == pytest.approx(0.45)
    assert found.error == pytest.approx(np.mean([abs(m.agreement) for m in misses]))
    narrow = calibrate(CASES, ["x"], {"teachers": ["a", "b", "c"], "date": "then"}, level=0.2)
    assert narrow.margin == pytest.approx(0, abs=1e-9)


def logit(share):
    return math.log(share / (1 - share))


def test_a_teacher_with_many_students_counts_as_much_as_another():
    many = [*CASES, *[c for c in CASES if c.teacher == "a"] * 5]
    found = calibrate(many, ["x"], {"teachers": ["a", "b", "c"], "date": "then"})
    assert found.intercept == pytest.approx(-0.5)


def test_one_teacher_is_not_enough():
    with pytest.raises(ValueError, match="2 teachers or more; got 1"):
        calibrate([c for c in CASES if c.teacher == "a"], ["x"], {})


def evidence(overlap):
    each = {"f": overlap}
    return Evidence(("f",), {"f": 1 - overlap}, {"f": 0.8}, each, each, each)


def test_what_is_shipped_is_what_the_students_measured_give():
    """The file is written by `benchmarks/trust.py`, and nothing in it by hand."""
    shipped, rows = read_calibration(), json.loads(ROWS.read_text(encoding="utf-8"))["rows"]
    cases = []
    for row in rows:
        families = tuple(row["evidence"]["families"])
        found = Evidence(**{**row["evidence"], "families": families})
        cases.append(Case(row["teacher"], found.features, row["agreement"]))
    again = calibrate(cases, list(shipped.weights), shipped.about)
    for name in ("intercept", "margin", "error"):
        assert getattr(shipped, name) == pytest.approx(getattr(again, name)), name
    assert shipped.weights == pytest.approx(again.weights)
    assert (shipped.students, shipped.level) == (len(rows), again.level)
    assert set(shipped.about["teachers"]) == {row["teacher"] for row in rows}


def test_no_test_teacher_took_part():
    named = json.loads((ROWS.parents[1] / "recovery-teachers.json").read_text(encoding="utf-8"))
    tested = {f"{name}-{seed}" for name, seeds in named["test"].items() for seed in seeds}
    assert not tested & set(read_calibration().about["teachers"])


def test_better_evidence_promises_more():
    calibration = read_calibration()
    good, poor = (calibration.expect(evidence(share)) for share in (0.95, 0.5))
    for found in (good, poor):
        assert 0 <= found.low < found.value < found.high <= 1
        assert found.level == calibration.level
    assert good.value > poor.value
    new = calibration.expect(replace(evidence(0.5), is_new=True))
    assert new.value < poor.value  # new nets follow less far beyond what they learned from
    assert calibration.expect(evidence(1e-9)).is_beyond
    assert "may not hold for other domains" in good.basis
    assert all(teacher in good.basis for teacher in calibration.about["teachers"])
    json.dumps(good.evidence)


@pytest.mark.parametrize("name", read_calibration().ranges)
def test_what_is_unlike_the_calibration_at_either_end_is_said_to_be(name):
    calibration, shown = read_calibration(), evidence(0.8)
    value = shown.features[name]
    for low, high, beyond in ((-1, 1, False), (0, 0, False), (-2, -1, True), (1, 2, True)):
        ranges = {name: (value + low, value + high)}
        assert replace(calibration, ranges=ranges).expect(shown).is_beyond is beyond
