"""The student that is run without torch."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples/deploy.py"


@pytest.mark.slow
@pytest.mark.parametrize("with_run", [False, True])
def test_deploy(with_run, finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deploy.py", *([str(finished.folder)] if with_run else [])])
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert "from torch" in lines[0]
    assert len(lines[1].split("[")[1].strip("]").split()) == 8


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"freia_kd\[onnx\]"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
