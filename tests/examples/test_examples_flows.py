"""The examples of composing flows run, and do what they say."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from freia_kd.domain import Domain
from freia_kd.flows import build_flow

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_compose_flow_learns(capsys):
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLES / "compose_flow.py"), run_name="__main__")
    out = capsys.readouterr().out
    first, last = map(float, re.search(r"likelihood: (\S+) nats at first, (\S+)", out).groups())
    assert last < first - 20
    assert float(re.search(r"round trip off by (\S+)", out)[1]) < 1e-3


def test_custom_flow_is_found_by_its_path(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / "custom_flow.py"), run_name="__main__")
    assert "ClassShear" in capsys.readouterr().out
    flow = build_flow("custom_flow:make_flow", Domain((1, 4, 4), 3))
    torch.nn.init.normal_(flow.weight, generator=torch.Generator().manual_seed(0))
    c = torch.tensor([0, 2])
    x = flow.sample(c, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.decode(flow.encode(x, c)[0], c)[0], x)


@pytest.mark.slow
def test_an_entry_point_names_a_flow(tmp_path):
    """As another package would register it, in a fresh process."""
    folder = tmp_path / "custom_flow-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: custom-flow\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[freia_kd.flows]\nshear = custom_flow:make_flow\n")
    code = (
        "from freia_kd.domain import Domain; from freia_kd.flows import FLOWS, build_flow;"
        "print(list(FLOWS), type(build_flow('shear', Domain((2,), 3))).__name__)"
    )
    path = os.pathsep.join([str(tmp_path), str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "'shear'] ClassShear" in done.stdout, done.stderr


def test_my_flow_fits_images_of_any_even_size():
    for shape in ((1, 32, 32), (3, 8, 8)):
        flow = build_flow(str(EXAMPLES / "my_flow.yaml"), Domain(shape, 10))
        assert flow.sample(torch.tensor([0, 9])).shape == (2, *shape)
