"""`freiakd compare` from the command line."""

import json

import pytest
from cli_calls import call, fails


@pytest.fixture
def compare(teacher_file, tmp_path, quick):
    return ["compare", "--teacher", teacher_file, "--workers", 1, "--out", tmp_path / "out"]


def test_compare_prints_a_table(compare, tmp_path):
    arguments = [*compare, "--synthesizers", "uniform", "--seeds", 1, "--student", 3]
    arguments += ["--set", "uniform.tries=3", "--set", "student.steps=2"]
    output = call(*arguments).stdout
    for text in ("independent", "compression only", "uniform"):
        assert text in output
    assert (tmp_path / "out/compare.html").exists()
    data = json.loads(call(*arguments, "--resume", "--json").stdout)
    config = data["provenance"]["config"]
    assert config["methods"]["uniform"]["uniform"]["tries"] == 3
    assert config["training"]["steps"] == 2
    assert list(config["students"]) == ["3"]


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (("--student", "4"), "--student: expected one of 1, 2, 3, kegnet-1"),
        (("--synthesizers", "boat"), "Unknown synthesizer 'boat'"),
        (("--synthesizers", "uniform+uniform"), "Expected different synthesizers"),
        (("--set", "student.stepz=1"), "Unknown option 'student.stepz'; did you mean"),
        (("--set", "student.steps=-1"), "--set student.steps: expected at least 1; got -1"),
        (("--set", "kegnet.steps=0"), "--set kegnet.steps: expected at least 1; got 0"),
        (("--set", "kegnet.stepz=1"), "kegnet.stepz"),
        (("--eval-data", "mnist", "--data-root", "."), "pass --data-root FOLDER"),
        (("--reference",), "--reference is of --eval-data, which is not given"),
    ],
)
def test_mistakes_are_found_before_any_work(compare, tmp_path, monkeypatch, mistake, said):
    monkeypatch.chdir(tmp_path)
    assert said in fails(*compare, "--synthesizers", "kegnet,uniform", *mistake)
    assert not (tmp_path / "out").exists()
