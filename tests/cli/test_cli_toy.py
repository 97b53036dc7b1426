import json

import pytest
from cli_calls import call, fails


@pytest.mark.slow
def test_command_writes_figure_and_numbers(tmp_path):
    options = ["toy", "--data", "circles", "--steps", 2, "--out", tmp_path]
    (numbers,) = json.loads(call(*options, "--json").stdout)
    assert numbers["figure"] == str(tmp_path / "circles.png")
    assert (tmp_path / "circles.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "circles.json").read_text())
    assert written["data_free"] == numbers["data_free"]
    assert set(numbers["with_samples"]) == {"energy_distance", "right_side", "divergence_nats"}
    again = call(*options, "--force")
    plan = again.stderr.splitlines()[0]
    assert plan.startswith("Plan: circles, each a teacher and two flows of 2 steps; about ")
    assert plan.endswith(f"Folder: {tmp_path}")
    assert "circles.png exists; pass --force to replace it" in fails(*options)


def test_unknown_data_are_refused(tmp_path):
    line = fails("toy", "--data", "donuts", "--out", tmp_path)
    assert "Unknown toy data set 'donuts'; known ones are moons" in line
    assert not list(tmp_path.iterdir())
