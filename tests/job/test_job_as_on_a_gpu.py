"""Whole jobs on a CPU that is told to do as a GPU does."""

import pytest
from job_cases import NOISE, students_in

from freia_kd import StudentSpec, device, distill
from freia_kd.compression import Prune, Quantize, Tucker
from freia_kd.data import feed
from freia_kd.training import loop

pytestmark = pytest.mark.slow


@pytest.fixture
def told(monkeypatch):
    """Losses wait, and what students learn from is held or read ahead."""
    monkeypatch.setattr(loop, "DEFERRED", ("cpu",))
    monkeypatch.setattr(feed, "AHEAD", ("cpu",))


@pytest.mark.parametrize("holds", [True, False])
def test_the_students_are_the_same_bit_for_bit(holds, teacher, tiny_bdnf, tmp_path, monkeypatch):
    options = {**NOISE, "synthesizer": [tiny_bdnf, "leaves"], "students": ["3"], "device": "cpu"}
    distill(teacher, out=tmp_path / "a", **options)
    monkeypatch.setattr(loop, "DEFERRED", ("cpu",))
    monkeypatch.setattr(feed, "AHEAD", ("cpu",))
    monkeypatch.setattr("freia_kd.data.synthetic.HELD", 0.25 if holds else 0.0)
    distill(teacher, out=tmp_path / "b", **options)
    assert students_in(tmp_path / "b") == students_in(tmp_path / "a")


def test_every_method_takes_a_teacher_with_its_channels_last(teacher, told, tmp_path, monkeypatch):
    pytest.importorskip("torch_pruning", reason="the extra freia_kd[prune] is not installed")
    monkeypatch.setattr(device, "CHANNELS_LAST", ("cpu",))
    specs = [
        StudentSpec((Tucker(student="3"), Prune(keep_ratio=0.6), Quantize()), "chain"),
        StudentSpec((Tucker(target="macs", goal=0.7),), "searched"),
        StudentSpec((Prune(keep_ratio=0.6, importance="taylor"),), "pruned"),
    ]
    options = {**NOISE, "students": specs, "device": "cpu", "precision": "bf16"}
    report = distill(teacher, out=tmp_path / "run", **options).report
    assert [student.name for student in report.students] == ["chain", "searched", "pruned"]
