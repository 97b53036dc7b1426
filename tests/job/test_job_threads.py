"""A run keeps the number of threads that it began with."""

import json

import pytest
import torch

import freia_kd
from freia_kd.device import keeping_threads
from freia_kd.job import threads


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "fastest_threads", lambda work: work() or 1)
    with keeping_threads():
        torch.set_num_threads(2)
        yield


def _distil(teacher_file, tiny, folder):
    options = {"preset": tiny, "synthesizer": "spectral", "out": folder}
    return freia_kd.distill(teacher_file, **options).report.provenance.threads


def test_a_run_has_the_fastest_number_and_keeps_it(
    teacher_file, tiny, tmp_path, two_threads, monkeypatch
):
    assert _distil(teacher_file, tiny, tmp_path / "run") == 1
    assert torch.get_num_threads() == 2
    record = tmp_path / "run" / "run.json"
    assert json.loads(record.read_text())["threads"] == 1
    monkeypatch.setattr(threads, "fastest_threads", None)  # a run that goes on measures nothing
    added = freia_kd.resume(tmp_path / "run", students=["2"])
    assert added.report.provenance.threads == 1
    assert torch.get_num_threads() == 2


@pytest.mark.slow
def test_who_says_a_number_is_obeyed(teacher_file, tiny, tmp_path, two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads, "fastest_threads", None)
    assert _distil(teacher_file, tiny, tmp_path / "run") == 2


def test_a_plan_leaves_the_number_alone(teacher_file, tiny, tmp_path, two_threads):
    freia_kd.api.plan(teacher_file, out=tmp_path / "run", preset=tiny, synthesizer="spectral")
    assert torch.get_num_threads() == 2
    assert not (tmp_path / "run").exists()
