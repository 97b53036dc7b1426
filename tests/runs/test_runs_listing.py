"""The list of runs: of every kind, wherever they lie."""

import json

import pytest

from freia_kd.runs import Run
from freia_kd.runs.listing import list_runs
from freia_kd.runs.store import RESULT


def make(folder, kind, config=None):
    """A run of which one stage is done."""
    run = Run.create(folder, kind, config or {})
    with run.stage("first"):
        (folder / "file").write_text("kept")
    return run


@pytest.mark.parametrize("kind", ["distill", "compare", "table1", "trial", "train-teacher"])
def test_a_run_of_any_kind_is_listed(kind, tmp_path):
    make(tmp_path / "run", kind)
    (found,) = list_runs(tmp_path)
    assert (found.kind, found.state) == (kind, "stopped after first")


def test_a_trial_ends_with_its_result(tmp_path):
    (make(tmp_path / "run", "trial") / RESULT).write_text("{}")
    assert [run.state for run in list_runs(tmp_path)] == ["finished"]


def test_the_students_of_a_table_have_one_name(tmp_path):
    make(tmp_path / "run", "table1", {"students": "paper"})
    assert list_runs(tmp_path)[0].students == ["paper"]


def test_a_run_is_listed_once_however_often_it_is_linked(tmp_path):
    make(tmp_path / "run", "distill")
    (tmp_path / "again").symlink_to(tmp_path / "run")
    (tmp_path / "around").symlink_to(tmp_path)
    assert [run.folder for run in list_runs(tmp_path)] == [str(tmp_path / "run")]


def test_one_that_cannot_be_read_hides_no_other(tmp_path):
    make(tmp_path / "a", "distill")
    broken = make(tmp_path / "b", "distill")
    (broken / "run.json").write_text(json.dumps({"version": 1}))
    make(tmp_path / "c", "distill", {"teacher": ["x"], "students": 7})
    make(tmp_path / "d", "distill", {"teacher": None, "students": None})
    sound, other, *_ = list_runs(tmp_path)
    assert sound.state == "stopped after first"
    assert "this version cannot go on with" in other.state
