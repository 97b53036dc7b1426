"""`freiakd compare` from the command line."""

import json

from click.testing import CliRunner

from freia_kd.cli.main import main


def call(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_compare_prints_a_table_and_names_a_winner(teacher_file, tmp_path, tiny):
    arguments = ("compare", "--teacher", teacher_file, "--synthesizers", "spectral,uniform")
    arguments += ("--seeds", 1, "--workers", 1, "--out", tmp_path / "out")
    arguments += ("--students", "1,3", "--set", "spectral.tries=3", "--set", "student.steps=2")
    output = call(*arguments)
    for text in ("independent", "compression only", "uniform", "label-free evidence"):
        assert text in output
    assert (tmp_path / "out/compare.html").exists()
    record = json.loads((tmp_path / "out/cells/spectral-0/run.json").read_text())
    assert record["options"]["synthesizers"]["spectral"]["tries"] == 3
    assert record["options"]["preset"]["student"]["steps"] == 2
    again = call(*arguments, "--resume", "--json")
    conditions = json.loads(again)["conditions"]
    assert (conditions["seeds"], conditions["students"]) == (1, ["1", "3"])


def test_mistakes_are_one_line(teacher_file, tmp_path):
    arguments = ("compare", "--teacher", teacher_file, "--out", tmp_path / "out")
    output = call(*arguments, "--synthesizers", "boat", code=2)
    assert "Unknown synthesizer 'boat'" in output
    assert "Traceback" not in output
    assert "NAME=VALUE" in call(*arguments, "--set", "steps", code=2)
    assert "No method compared" in call(*arguments, "--set", "boat=1", code=2)
