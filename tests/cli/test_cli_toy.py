import json

from click.testing import CliRunner

from freia_kd.cli.toy import TOY_NAMES, command
from freia_kd.data.toy import TOYS


def test_names_are_the_library_s():
    assert list(TOY_NAMES) == list(TOYS.builtin)


def test_command_writes_figure_and_numbers(tmp_path):
    options = ["--data", "circles", "--steps", "2", "--out", str(tmp_path), "--json"]
    outcome = CliRunner().invoke(command, options)
    assert outcome.exit_code == 0, outcome.output
    (numbers,) = json.loads(outcome.output)
    assert numbers["figure"] == str(tmp_path / "circles.png")
    assert (tmp_path / "circles.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "circles.json").read_text())
    assert written["data_free"] == numbers["data_free"]
    assert set(numbers["with_samples"]) == {"energy_distance", "right_side", "divergence_nats"}


def test_unknown_data_are_refused(tmp_path):
    outcome = CliRunner().invoke(command, ["--data", "donuts", "--out", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "Unknown toy data set 'donuts'; known ones are moons" in outcome.output
    assert not list(tmp_path.iterdir())
