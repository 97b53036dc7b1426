"""The preset `quick` as a matter of a second, and runs of it."""

import pytest

from freia_kd.config import PRESETS
from freia_kd.synthesizers.bdnf import BDNF


@pytest.fixture
def quick(tiny, monkeypatch):
    monkeypatch.setitem(PRESETS, "quick", lambda: tiny)
    monkeypatch.setitem(BDNF.presets, "quick", {"steps": 4, "batch_size": 8})
    return tiny


@pytest.fixture
def distill(teacher_file, tmp_path, quick):
    """Arguments of a whole run on the small teacher, on noise, which costs least."""
    out = ["--preset", "quick", "--device", "cpu", "--out", tmp_path / "run"]
    return ["distill", "--teacher", teacher_file, "--synthesizer", "uniform", *out]


@pytest.fixture
def compress(teacher_file, tmp_path, quick):
    """Arguments that compress the small teacher."""
    return ["compress", "--teacher", teacher_file, "--out", tmp_path / "small.pt"]
