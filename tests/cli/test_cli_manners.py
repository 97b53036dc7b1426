"""A run's plan, its options in a file, its log, the list of runs, and names in the shell."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from cli_calls import FLOW, call, fails, faults

from freia_kd.cli.inspect import next_command
from freia_kd.runs import Run
from freia_kd.runs.lock import HOLDER, LOCK, locked


def students(folder):
    return {path.name: path.read_bytes() for path in folder.glob("student-*")}


# --- The plan ---


def test_a_dry_run_says_what_a_run_takes_and_writes_nothing(distill, tmp_path):
    before = sorted(tmp_path.iterdir())
    distill = [*distill, *FLOW]
    shown = call(*distill, "--student", 3, "--dry-run")
    for expected in ("bdnf", "student-3", "synthetic/train", "Plan: about", "Memory", "disk"):
        assert expected in shown.stdout
    assert sorted(tmp_path.iterdir()) == before
    plan = json.loads(call("extract", *distill[1:], "--dry-run", "--json").stdout)
    names = [stage["name"] for stage in plan["stages"]]
    assert names == ["bdnf", "leaves", "synthetic/heldout", "synthetic/train"]
    assert plan["disk"] < plan["disk_free"]
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_begins_with_its_folder_and_its_plan(distill, tmp_path):
    lines = call(*distill, *FLOW).stderr.splitlines()
    assert lines[0] == f"Run: {tmp_path / 'run'}"
    assert re.match(r"Plan: about [\d.]+ s, .*bdnf .*\(4\).* Memory .* disk .* free\)\.", lines[1])
    assert "train the flow: 4 steps" in lines  # plain lines, since no terminal shows them
    assert not [line for line in lines if "\x1b" in line or "\r" in line]


# --- Options in a file ---


@pytest.mark.slow
def test_what_a_run_writes_can_be_given_back(distill, tmp_path):
    own = ["--student", 1, "--student", 3, "--set", "uniform.tries=3", "--set", "student.mixup=0.5"]
    call(*distill, *own, "--seed", 4)
    run, again = tmp_path / "run", tmp_path / "again"
    asked = yaml.safe_load((run / "run.yaml").read_text())
    assert asked["set"] == {"uniform.tries": 3, "student.mixup": 0.5}
    assert asked["student"] == ["1", "3"]
    assert not {"out", "resume", "json", "debug", "config"} & set(asked)
    call("distill", "--config", run / "run.yaml", "--out", again)
    assert students(again) == students(run)
    assert (again / "run.yaml").read_bytes() == (run / "run.yaml").read_bytes()
    call("distill", "--config", run / "run.yaml", "--out", run, "--resume")  # the same options
    other = fails("distill", "--config", run / "run.yaml", "--out", run, "--resume", "--seed", 5)
    assert "seed was 4, is 5" in other  # what is typed wins


def test_all_faults_of_a_file_are_named_together(tmp_path, teacher_file):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "sede: 1\npreset: slow\nstudent: [1, 7]\nset-size: many\nresume: true\n"
        "on-the-fly: sometimes\nmean: {a: 1}\n"
    )
    lines = faults("distill", "--teacher", teacher_file, "--config", file, "--seed", "x")
    text = "\n".join(lines)
    for expected in (
        "Unknown option 'sede'; did you mean 'seed'?",
        "--preset: expected one of quick",
        "--student: expected one of 1, 2, 3, kegnet-1",
        "--set-size: 'many' is not a valid",
        "Unknown option 'resume'",
        "on-the-fly: expected what --on-the-fly takes; got 'sometimes'",
        "mean: expected what --mean takes; got {'a': 1}",
        "--seed: 'x' is not a valid",
    ):
        assert expected in text, expected
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "expected options by name"),
        ("seed: [1\n", "is not YAML"),
        ("seed: !!python/object/apply:os.system ['touch was-here']\n", "is not YAML"),
    ],
)
def test_a_file_that_holds_no_options(text, message, tmp_path, teacher_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    assert message in fails("distill", "--teacher", teacher_file, "--config", "mine.yaml")
    assert [path.name for path in tmp_path.glob("*") if path != teacher_file] == ["mine.yaml"]


# --- The log ---


def test_the_log_has_what_is_shown_and_what_went_wrong(distill, tmp_path):
    log = tmp_path / "log.txt"
    call(*distill, "--log-file", log, "--json")
    lines = log.read_text().splitlines()
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines)
    assert any(line.endswith(" student-1: 6 steps") for line in lines)
    assert any("Plan: about" in line for line in lines)
    (tmp_path / "run/student-1.pt").write_bytes(b"damaged")
    shown = call("distill", "--resume", "--out", tmp_path / "run", "--log-file", log, code=1)
    after = log.read_text().splitlines()
    assert after[: len(lines)] == lines
    assert "student-1.pt (stage student-1)" in after[-1]
    assert "--repair" in shown.stderr
    call("distill", "--resume", "--repair", "--out", tmp_path / "run", "--log-file", log)
    assert "was deleted; the stage student-1 makes it again" in log.read_text()


def test_a_log_that_cannot_be_written_is_refused_before_any_work(distill, tmp_path):
    assert "no/log" in fails(*distill, "--log-file", tmp_path / "no/log", code=1)
    assert not (tmp_path / "run").exists()


def test_nothing_is_logged_into_what_is_no_log(distill, teacher_file, tmp_path):
    before = teacher_file.read_bytes()
    assert "is there and is no log; choose another" in fails(*distill, "--log-file", teacher_file)
    assert "cannot be a log" in fails(*distill, "--log-file", "a" * 300)
    assert teacher_file.read_bytes() == before


# --- The list of runs ---


def test_runs_are_listed_with_their_state(finished, tmp_path):
    for name in ("done", "stopped", "held", "broken"):
        shutil.copytree(finished.folder, tmp_path / "runs" / name)
    stopped = tmp_path / "runs/stopped/run.json"
    record = json.loads(stopped.read_text())
    record["done"] = record["done"][:3]
    stopped.write_text(json.dumps(record))
    (tmp_path / "runs/broken/run.json").write_text("{")
    (tmp_path / "runs/nothing").mkdir()
    with locked(tmp_path / "runs/held"):
        found = json.loads(call("runs", tmp_path / "runs", "--json").stdout)
    states = {run["folder"].rpartition("/")[2]: run["state"] for run in found}
    assert states.pop("broken").startswith("The file")
    assert states.pop("held").startswith("running (process ")
    assert states == {"done": "finished", "stopped": f"stopped after {record['done'][-1]}"}
    done = next(run for run in found if run["folder"].endswith("done"))
    assert done["students"] == ["1", "3"]
    measured = finished.report.students[0].distilled
    assert done["accuracy"]["1"]["value"] == measured.accuracy.value
    assert done["agreement"]["1"]["value"] == measured.agreement.value
    assert "finished" in call("runs", tmp_path / "runs").stdout
    assert "There are no runs in" in call("runs", tmp_path / "runs/nothing").stdout


def test_a_run_in_use_is_refused_with_who_uses_it(distill, tmp_path):
    with locked(tmp_path / "run"):
        result = call(*distill, code=2)
    assert "Another process works on the run in" in result.stderr
    assert "since 20" in result.stderr
    (tmp_path / "run").mkdir()  # as after kill -9 before the first stage
    for name in (LOCK, HOLDER):
        (tmp_path / "run" / name).touch()
    call(*distill, "--dry-run")
    (tmp_path / "run/mine").touch()
    assert "holds no run" in fails(*distill)


def test_repair_is_of_a_run_that_goes_on(distill):
    assert "--repair is of a run that goes on" in fails(*distill, "--repair")


# --- Names in the shell ---


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("distill --synthesizer lea", ["leaves"]),
        ("distill --synthesizer au", ["auto"]),
        ("distill --synthesizer bdnf+uni", ["bdnf+uniform"]),
        ("compare --synthesizers bdnf,ph", ["bdnf,photos"]),
        ("distill --student bd", ["bdnf-1", "bdnf-2", "bdnf-3"]),
        ("distill --preset b", ["best"]),
        ("distill --method q", ["quantize"]),
        ("distill --loss centred", ["centred-l1", "centred-mse"]),
        ("dis", ["distill"]),
    ],
)
def test_the_shell_completes_names(typed, expected):
    words = f"freiakd {typed}"
    environment = {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_FREIAKD_COMPLETE": "bash_complete",
    }
    code = "from freia_kd.cli.main import main; main(prog_name='freiakd')"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert [line.partition(",")[2] for line in shown.stdout.splitlines()] == expected


@pytest.mark.parametrize(
    ("kind", "place", "command"),
    [
        ("distill", "run", "distill --resume --out {0}/run"),
        ("compare", "run", "compare --resume --out {0}/run, with the options of before"),
        ("table1", "run", "reproduce table1 --resume --out {0}/run, with the options of before"),
        ("trial", "run/mnist/row-0", "reproduce table1 --resume --out {0}/run, with the options"),
        ("train-teacher", "t.pt.training", "train-teacher --resume --out {0}/t.pt, with the"),
    ],
)
def test_inspect_names_the_command_that_goes_on(kind, place, command, tmp_path):
    run = Run.create(tmp_path / place, kind, {})
    with run.stage("first"):
        (run / "file").write_text("kept")
    shown = call("inspect", tmp_path / place).stdout.replace("\n", "")
    assert f"Next: freiakd {command.format(tmp_path)}" in shown


def test_a_record_that_is_damaged_says_where_its_options_are(distill, tmp_path):
    run = Run.create(tmp_path / "other", "distill", {}, asked={"seed": 1})
    with run.stage("first"):
        (run / "file").write_text("kept")
    (run / "run.json").write_text("{")
    line = fails("distill", "--resume", "--repair", "--out", run.folder, code=1)
    assert f"begin another with another --out; --config {run.folder / 'run.yaml'} has" in line
    (run / "run.yaml").unlink()
    assert "--config" not in fails("distill", "--resume", "--out", run.folder, code=1)


def test_what_was_typed_is_named_where_the_default_is_not_there_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert "'none' does not exist" in fails("runs", "none")
    assert "'file' is a file" in fails("runs", "file")
    assert "'runs' does not exist" in fails("runs")


def test_a_report_has_the_command_line(distill, tmp_path):
    """Seen to fail: provenance had a place for it, which nobody filled."""
    call(*distill, "--log-file", tmp_path / "a log")
    made = json.loads((tmp_path / "run" / "report.json").read_text())["provenance"]
    assert made["command"].startswith("freiakd distill --teacher ")
    assert f"--log-file '{tmp_path / 'a log'}'" in made["command"]
    assert made["command"] in (tmp_path / "run" / "report.md").read_text()


def test_a_log_is_not_written_to_what_the_command_writes(teacher_file, tmp_path):
    """Seen to fail: the student replaced the log."""
    out = tmp_path / "small.pt"
    said = fails("compress", "--teacher", teacher_file, "--out", out, "--log-file", out)
    assert "is what --out writes; choose another file" in said
    assert not out.exists()


def test_evaluate_shows_teacher_students_and_classes(distill, teacher_file, evaluation, tmp_path):
    """Seen to fail: a run's teacher was missing, and so were the classes and the next command."""
    call(*distill, "--synthesizer", "leaves")
    data = tmp_path / "data.npz"
    np.savez(data, x=evaluation.inputs.numpy(), y=evaluation.labels.numpy())
    run = tmp_path / "run"
    first, second = json.loads(call("evaluate", run, "--eval-data", data, "--json").stdout)
    assert (first["file"], first["agreement"]) == (str(teacher_file), None)
    assert second["agreement"]["count"] == 50
    own = [c for c in first["per_class"] if c["accuracy"]]
    right = sum(c["accuracy"]["value"] * c["accuracy"]["count"] for c in own)
    assert right / 50 == pytest.approx(first["accuracy"]["value"])
    shown = call("evaluate", run, "--eval-data", data).stdout
    assert "student-1.pt, by class" in shown
    assert shown.rstrip().endswith(f"Next: freiakd export {run} --to onnx")
    teacher_file.unlink()
    assert "teacher is not where" in call("evaluate", run, "--eval-data", data).stderr


@pytest.mark.parametrize(
    ("changes", "following"),
    [
        ({}, "distill --teacher net.pt"),
        ({"domain": "not recorded"}, "distill --teacher net.pt, with --domain"),
        ({"compression": [{"method": "tucker"}]}, "export net.pt --to onnx"),
    ],
)
def test_a_checkpoint_has_a_next_command(changes, following):
    held = {"kind": "checkpoint", "arch": "lenet5", "domain": {}, "compression": [], **changes}
    assert next_command("net.pt", held) == following


def test_sample_takes_what_can_sample(distill, tmp_path):
    """Seen to fail: the first synthesizer of the default mixture cannot, and that was the end."""
    call(*distill, "--synthesizer", "leaves+bdnf", "--set", "bdnf.steps=2")
    assert (
        "20 inputs" in call("sample", tmp_path / "run", "-n", 2, "--out", tmp_path / "s.png").stdout
    )


def test_an_interruption_that_kept_nothing_says_so(monkeypatch, teacher_file, tmp_path):
    """Seen to fail: a comparison that was stopped at its plan named a folder that was not there."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("freia_kd.api.compare", interrupt)
    command = ("compare", "--teacher", teacher_file, "--out", tmp_path / "c")
    assert fails(*command, code=130).strip() == "Error: Interrupted; nothing was written."
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text("{}")
    assert "What was done is kept in" in fails(*command, code=130)


def test_no_argument_has_a_line_break():
    assert "Expected arguments without line breaks; got 'a\\nb'" in fails("inspect", "a\nb")
