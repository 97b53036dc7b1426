"""`freiakd compare` from the command line."""

import json

import pytest
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


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (("--students", "1,4"), "Expected student 1, 2 or 3; got '4'"),
        (("--students", ""), "Expected student 1, 2 or 3; got ''"),
        (("--synthesizers", "uniform+uniform"), "Expected different synthesizers"),
        (("--set", "student.stepz=1"), "Unknown option stepz of student; known ones are"),
        (("--set", "student.steps=-1"), "Expected at least 1 for steps; got -1"),
        (("--set", "kegnet.steps=0"), "kegnet: Expected 1 or more generators, latents and steps"),
        (("--set", "kegnet.stepz=1"), "option kegnet.stepz; known ones are alpha, batch_size"),
        (("--eval-data", "mnist", "--data-root", "."), "pass --data-root FOLDER"),
    ],
)
def test_mistakes_are_found_before_any_work(teacher_file, tmp_path, monkeypatch, mistake, said):
    monkeypatch.chdir(tmp_path)
    arguments = ("compare", "--teacher", teacher_file, "--workers", 1, "--out", "out")
    output = call(*arguments, "--synthesizers", "kegnet,uniform", *mistake, code=2)
    assert said in output
    assert len(output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_students_may_have_spaces_between_and_come_once(teacher_file, tmp_path, tiny):
    arguments = ("compare", "--teacher", teacher_file, "--synthesizers", "uniform", "--workers", 1)
    arguments += ("--seeds", 1, "--out", tmp_path / "out", "--json")
    data = json.loads(call(*arguments, "--students", "1, 3,1"))
    assert data["conditions"]["students"] == ["1", "3"]


def test_one_method_alone_is_not_said_to_be_of_no_help(teacher_file, tmp_path, tiny):
    arguments = ("compare", "--teacher", teacher_file, "--synthesizers", "uniform", "--workers", 1)
    output = call(*arguments, "--seeds", 1, "--out", tmp_path / "out")
    assert "No method was judged by another" in output
    assert "No method helped" not in output
