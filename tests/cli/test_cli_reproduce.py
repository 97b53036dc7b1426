"""`freiakd reproduce`: the table and the figures, by command."""

import json
import re

import pytest
from cli_calls import call, fails

from freia_kd.experiments import figures
from freia_kd.experiments import table1 as module
from freia_kd.job import Plan
from freia_kd.job.planning import PlannedStage


@pytest.mark.parametrize("what", ["table1", "figure2", "figure3", "figure4"])
def test_each_says_what_it_does(what):
    assert (
        f"freiakd reproduce {what}" in call("reproduce", what, "--help").stdout or what == "figure2"
    )


def test_table1_gets_what_is_typed(monkeypatch, tmp_path):
    seen = {}

    def table1(data, **given):
        seen.update(given, data=data)
        raise ValueError("seen")

    monkeypatch.setattr(module, "table1", table1)
    fails(
        "reproduce", "table1", "--data", "mnist", "--teacher", "t.pt", "--students", "kegnet",
        "--preset", "code", "--row", "T+BDNF", "--out", tmp_path / "out", code=1,
    )  # fmt: skip
    assert seen["data"] == ("mnist",)
    assert (seen["teacher"], seen["students"], seen["preset"]) == ("t.pt", "kegnet", "code")
    assert seen["rows"] == ("T+BDNF",)


def test_table1_says_what_it_takes_and_is_repaired(monkeypatch, tmp_path):
    seen = []
    stages = (PlannedStage("teachers of mnist", 2, 61.0),)
    plan = Plan("out", stages, 1000, 2000, 3000, 4000, 0)
    monkeypatch.setattr(module, "plan_table1", lambda data, **given: seen.append(given) or plan)
    monkeypatch.setattr(module, "table1", lambda data, **given: fail(given))

    def fail(given):
        seen.append(given)
        raise ValueError("seen")

    words = ["reproduce", "table1", "--out", tmp_path / "out"]
    printed = call(*words, "--dry-run", "--seeds", 2).stdout
    assert seen[0]["seeds"] == 2
    assert re.search("teachers of mnist │ +2 │ 1 min 1 s", printed)
    assert "Nothing was written." in printed
    assert json.loads(call(*words, "--dry-run", "--json").stdout)["seconds"] == 61.0
    fails(*words, "--repair", "--resume", code=1)
    assert (seen[-1]["repair"], seen[-1]["resume"]) == (True, True)
    assert "pass --resume as well" in fails(*words, "--repair")
    assert "--dry-run measures this" in fails(*words, "--dry-run", "--dask", "localhost:1")


def test_a_missing_data_set_names_the_options(tmp_path):
    line = fails(
        "reproduce", "table1", "--data", "svhn", "--data-root", tmp_path, "--out", tmp_path / "o"
    )
    assert "--data-root" in line
    assert "--download" in line


def test_a_figure_is_not_replaced_without_force(monkeypatch, tmp_path):
    made = figures.Painted(str(tmp_path / "figure3-digits.png"), "t.pt")
    monkeypatch.setitem(figures.FIGURES, "figure3", lambda **given: made)
    options = ["reproduce", "figure3", "--data", "digits", "--out", tmp_path]
    assert json.loads(call(*options, "--json").stdout)["picture"] == made.picture
    (tmp_path / "figure3-digits.png").touch()
    assert "pass --force" in fails(*options)
    call(*options, "--force")


@pytest.mark.slow
def test_figure_2_is_the_toys(tmp_path):
    options = ["--data", "moons", "--steps", 2, "--as-published", "--out", tmp_path]
    printed = call("reproduce", "figure2", *options)
    assert "moons" in printed.stdout
    assert (tmp_path / "moons-as-published.png").exists()
    assert json.loads((tmp_path / "moons-as-published.json").read_text())["as_published"] is True


def test_an_interruption_says_where_what_was_trained_is(monkeypatch, tmp_path):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setitem(figures.FIGURES, "figure3", stopped)
    monkeypatch.setattr("freia_kd.experiments.figure2.figure2", stopped)
    out = str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "teacher.pt").touch()  # which is kept
    for words in (["reproduce", "figure3", "--data", "digits"], ["toy", "--data", "moons"]):
        result = call(*words, "--out", out, code=130)
        assert f"Interrupted. What was done is kept in {out}; " in result.stderr
