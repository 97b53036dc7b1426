import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "toy_2d.py"


@pytest.mark.slow
def test_toy_2d_draws_and_reports(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--steps", "2", "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "with_samples: energy distance to the true data" in capsys.readouterr().out
    assert (tmp_path / "moons.png").exists()
