"""What the report says in words."""

import copy

from freia_kd.runs.report import Report, read_report


def remarks(finished, **changes):
    data = copy.deepcopy(finished.data)
    data["students"][0] |= changes
    return Report(finished.folder, data).remarks()


def test_a_student_that_distillation_made_worse_is_named(finished):
    worse = remarks(finished, accuracy_before=0.9, accuracy=0.8)
    assert any("Student 1" in r and "worse than compression alone" in r for r in worse)
    data = copy.deepcopy(finished.data)
    for student in data["students"]:
        student |= {"accuracy_before": 0.8, "accuracy": 0.9}
    assert not any("worse" in r for r in Report(finished.folder, data).remarks())


def test_a_student_that_is_not_faster_is_named(finished):
    slow = remarks(finished, latency_ms=1.0, teacher_latency_ms=1.0)
    assert any("did not make it faster" in r and r.startswith("Student 1") for r in slow)


def test_low_agreement_is_said(finished):
    assert any("fewer than 80 %" in r for r in remarks(finished, agreement=0.5))


def test_a_report_is_read_back(finished):
    assert read_report(finished.folder).table() == finished.table()
