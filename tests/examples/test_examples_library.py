"""The main job as a library."""

import runpy
from pathlib import Path

import pytest

from freia_kd.config import PRESETS
from freia_kd.synthesizers.bdnf import BDNFOptions

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "library.py")


@pytest.mark.slow
def test_it_runs_as_it_stands_but_for_its_numbers_of_steps(
    teacher_file, tmp_path, tiny, monkeypatch, capsys
):
    assert teacher_file == tmp_path / "lenet5.pt"
    flow = BDNFOptions(steps=4, batch_size=8)
    monkeypatch.setattr("freia_kd.synthesizers.bdnf.BDNFOptions", lambda **options: flow)
    monkeypatch.setattr("freia_kd.config.DistillationOptions", lambda **options: tiny.training)
    monkeypatch.setitem(PRESETS, "quick", lambda: tiny)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(EXAMPLE)
    assert "count=16" in capsys.readouterr().out  # of 32 held-out inputs
    assert (tmp_path / "runs/library/report.md").exists()
