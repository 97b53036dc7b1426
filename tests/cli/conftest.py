"""The preset `quick` as a matter of a second, and runs of it."""

import pytest

from freia_kd.config import get_preset
from freia_kd.synthesizers.bdnf import BDNF


@pytest.fixture
def quick(tiny, monkeypatch):
    def get(name):
        return tiny if name == "quick" else get_preset(name)

    for place in ("freia_kd.job.opening", "freia_kd.cli.job", "freia_kd.cli.compare"):
        monkeypatch.setattr(f"{place}.get_preset", get)
    monkeypatch.setattr(BDNF, "presets", {**BDNF.presets, "quick": {"steps": 4, "batch_size": 8}})
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
