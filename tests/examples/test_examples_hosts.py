"""Flows of other libraries, trained by the paper's objectives in the examples."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "host",
    ["freia", *(pytest.param(x, marks=pytest.mark.slow) for x in ("normflows", "zuko", "nflows"))],
)
def test_a_flow_of_another_library_learns_from_a_teacher(host, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [f"{host}_flow.py", "--steps", "40"])
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLES / f"{host}_flow.py"), run_name="__main__")
    found = re.findall(r"(\d+)% on the right side, energy distance (\S+)", capsys.readouterr().out)
    (right, distance), (right_with_samples, distance_with_samples) = found
    assert int(right) > 85  # 50 at first
    assert int(right_with_samples) > 85
    assert float(distance_with_samples) < 0.5 * float(distance)
