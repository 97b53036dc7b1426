"""The commands: what they print, how they fail, and what they import."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from cli_calls import FLOW, call, fails
from click.testing import CliRunner

from freia_kd.cli.main import COMMANDS, main
from freia_kd.teachers import Classifier, save_classifier
from freia_kd.training import Checkpoints


def test_every_command_has_help():
    assert list(COMMANDS) == main.list_commands(None)
    listing = call("--help").output
    for name, summary in COMMANDS.items():
        command = main.get_command(None, name)
        assert command.name == name
        assert name in listing
        assert summary.split()[0] in listing
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        for part, one in inner.items():
            text = call(*filter(None, (name, part)), "--help").output
            assert "--debug" in text
            options = [p for p in one.params if isinstance(p, click.Option)]
            assert all(o.help.endswith(".") for o in options), (name, part)


HEAVY = ("torch", "pydantic", "FrEIA", "normflows", "numpy", "matplotlib", "rich", "sklearn")


def test_help_and_version_load_nothing_heavy():
    calls = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    code = (
        "import sys; from freia_kd.cli.main import main\n"
        f"for c in {calls!r}: main(c, standalone_mode=False)\n"
        f"print('loaded', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.endswith("loaded []\n")


def test_the_main_job(distill, tmp_path, finished, evaluation):
    np.savez(tmp_path / "real.npz", x=evaluation.inputs.numpy(), y=evaluation.labels.numpy())
    distill = [*distill, *FLOW, "--student", 1, "--student", 3]
    result = call(*distill, "--eval-data", tmp_path / "real.npz")
    for expected in ("teacher", "Student 3: ", "report.html", "none of the teacher's data"):
        assert expected in result.stdout
    ours, theirs = (
        (folder / "student-3.safetensors").read_bytes()
        for folder in (tmp_path / "run", finished.folder)
    )
    assert ours == theirs  # freia_kd.distill does the same, with synthesizers as objects


def test_json_is_all_there_is_on_both_streams(distill):
    result = call(*distill, "--json")
    assert json.loads(result.stdout)["students"][0]["name"] == "1"
    assert result.stderr == ""


@pytest.mark.slow
def test_resume_needs_nothing_but_the_folder(distill, tmp_path):
    call(*distill)
    report = call("distill", "--out", tmp_path / "run", "--resume", "--student", 3)
    assert "Student 3" in report.stdout
    assert (tmp_path / "run/student-1.pt").exists()


@pytest.mark.slow
def test_stages_one_by_one_on_the_same_folder(distill, teacher_file, tmp_path, finished):
    run = tmp_path / "run"
    assert "64 synthetic inputs" in call("extract", *distill[1:], *FLOW).stdout
    assert f"Next: freiakd distill --resume --out {run}" in call("inspect", run).stdout
    assert "train: 64" in call("extract", "--resume", "--out", run).stdout
    call("distill", "--out", run, "--resume", "--student", 1, "--student", 3)
    whole = finished.folder / "student-1.safetensors"
    assert (run / "student-1.safetensors").read_bytes() == whole.read_bytes()
    call("sample", run, "--out", tmp_path / "s.npz", "-n", 2, "-l", 3, "-l", 4)
    with np.load(tmp_path / "s.npz") as file:
        assert file["x"].shape == (4, 1, 32, 32)
        assert file["x"].dtype == np.uint8
        assert file["y"].tolist() == [3, 3, 4, 4]
    call("sample", run, "--out", tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "c.safetensors"
    assert "conv3" in call("compress", "--teacher", teacher_file, "--out", out).stdout
    assert "lenet5" in call("inspect", out).stdout
    assert json.loads(call("inspect", run, "--json").stdout)["kind"] == "run"


def test_train_teacher_and_evaluate(tmp_path):
    out = tmp_path / "t.pt"
    trained = json.loads(
        call("train-teacher", "digits", "--epochs", 1, "--out", out, "--json").stdout
    )
    assert trained["accuracy"]["count"] == 360
    assert trained["has_test_split"]
    rows = json.loads(call("evaluate", out, "--eval-data", "digits", "--json").stdout)
    assert rows[0]["accuracy"] == trained["accuracy"]
    again = tmp_path / "again.pt"
    assert "(95 % interval)" in call("evaluate", out, "--eval-data", "digits").stdout
    call("train-teacher", "digits", "--epochs", 1, "--out", again)
    assert again.read_bytes() == out.read_bytes()


def test_train_teacher_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.pt", tmp_path / "t.pt"
    arguments = ["train-teacher", "iris", "--epochs", 8, "--batch-size", 20]
    call(*arguments, "--out", whole)
    save, monkeypatched = Checkpoints.save, []
    monkeypatch.setattr("freia_kd.training.checkpoints.SAVE_EVERY", 0)

    def save_and_stop(self, state):
        save(self, state)
        monkeypatched.append(state["step"])
        if len(monkeypatched) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        said = call(*arguments, "--out", out, code=130).stderr
    assert said.strip().endswith(f"kept in {out}.training; to go on, add --resume to the command.")
    assert not out.exists()
    assert "pass --resume" in fails(*arguments, "--out", out)
    assert "seed was 0, is 1" in fails(*arguments, "--out", out, "--resume", "--seed", 1)
    call(*arguments, "--out", out, "--resume")
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "t.pt.training").exists()
    assert "no run.json" in fails(*arguments, "--out", out, "--resume", "--force", code=1)


# --- What can go wrong: one line, the right exit code, nothing half-written ---


def bare(teacher, path):
    torch.save({"model_state": teacher.net.state_dict()}, path)
    return path


def poisoned(teacher, path):
    state = {k: v.clone() for k, v in teacher.net.state_dict().items()}
    state["conv2.weight"][0] = float("nan")
    torch.save({"state_dict": state}, path)
    return path


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/freiakd-was-here",)


def hostile(teacher, path):
    torch.save({"model_state": teacher.net.state_dict(), "epoch": Payload()}, path)
    return path


def truncated(teacher, path):
    bare(teacher, path)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def empty(teacher, path):
    path.touch()
    return path


def a_text(teacher, path):
    path.write_text("These are not the weights you are looking for.")
    return path


def another_net(teacher, path):
    torch.save(torch.nn.Linear(3, 3).state_dict(), path)
    return path


BAD_TEACHERS = {
    "missing": (lambda teacher, path: path, [], 1, "There is no file"),
    "empty": (empty, [], 1, "is empty"),
    "truncated": (truncated, [], 1, "truncated"),
    "not a checkpoint": (a_text, [], 1, "not a checkpoint"),
    "hostile": (hostile, [], 1, "wants to run code"),
    "unknown net": (another_net, ["--domain", "mnist"], 2, "lenet5, resnet14, mlp"),
    "state of another net": (
        another_net,
        ["--domain", "mnist", "--arch", "lenet5"],
        1,
        "another net",
    ),
    "NaN weights": (poisoned, ["--domain", "mnist"], 1, "conv2.weight"),
    "unknown domain": (bare, [], 2, "--domain mnist"),
    "wrong channels": (bare, ["--domain", "svhn"], 2, "channels"),
    "wrong classes": (
        bare,
        ["--input-shape", "1,32,32", "--mean", ".1", "--std", ".3", "--classes", "7"],
        2,
        "classes",
    ),
    "rejected shape": (
        bare,
        ["--input-shape", "1,28,28", "--mean", ".1", "--std", ".3", "--classes", "10"],
        2,
        "Expected inputs of shape (C, 32, 32)",
    ),
    "half a domain": (bare, ["--mean", ".1"], 2, "--input-shape, --std, --classes"),
    "no numbers": (bare, ["--mean", "a,b"], 2, "expected numbers"),
    "unknown architecture": (bare, ["--domain", "mnist", "--arch", "vgg"], 2, "Unknown arch"),
}


@pytest.mark.parametrize("name", list(BAD_TEACHERS))
def test_bad_teachers(name, teacher, tmp_path, quick):
    make, options, code, message = BAD_TEACHERS[name]
    file, out = make(teacher, tmp_path / "t.pt"), tmp_path / "run"
    line = fails(
        "distill", "--teacher", file, "--out", out, "--preset", "quick", *options, code=code
    )
    assert message in line
    assert not out.exists()
    assert not os.path.exists("/tmp/freiakd-was-here")


def test_logits_of_another_number_of_classes(tmp_path, monkeypatch):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 7))
    torch.save(net.state_dict(), tmp_path / "t.pt")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sevennet.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 7))\n"
    )
    line = fails(
        "distill",
        "--teacher",
        tmp_path / "t.pt",
        "--arch",
        "sevennet:make",
        "--domain",
        "mnist",
        "--out",
        tmp_path / "run",
        code=1,
    )
    assert "(2, 10)" in line
    assert "(2, 7)" in line


def test_an_own_architecture_by_path(teacher, tmp_path, quick, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(1, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2),\n"
        "                         nn.ReLU(), nn.Flatten(), nn.Linear(800, 10))\n"
    )
    import mynet

    torch.manual_seed(0)
    torch.save(mynet.Net().state_dict(), tmp_path / "t.pt")
    out = tmp_path / "run"
    options = ["--arch", "mynet:Net", "--preset", "quick", "--device", "cpu", "--student", 3]
    call("distill", "--teacher", tmp_path / "t.pt", "--domain", "mnist", "--out", out, *options)
    # What a file names is not imported unless the user names it too.
    assert "if you trust that code" in fails("distill", "--out", out, "--resume", code=2)
    call("distill", "--out", out, "--resume", "--arch", "mynet:Net", "--student", 3)


def test_an_output_folder_of_another_run(distill, tmp_path):
    call(*distill)
    before = (tmp_path / "run/student-1.pt").read_bytes()
    assert "pass --resume" in fails(*distill, code=2)
    assert "seed was 0, is 1" in fails(*distill, "--resume", "--seed", 1)
    assert (tmp_path / "run/student-1.pt").read_bytes() == before


def test_an_output_folder_of_something_else(distill, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").touch()
    assert "holds no run" in fails(*distill, code=2)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_written(distill):
    line = fails(*distill[:-1], "/proc/freiakd/run", code=1)
    assert "/proc/freiakd" in line


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("student-1.pt", marks=pytest.mark.slow),
        pytest.param("checkpoints/bdnf.safetensors", marks=pytest.mark.slow),
        pytest.param("report.json", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_leaves_whole_files_and_a_run_to_resume(
    name, distill, tmp_path, finished, monkeypatch
):
    import freia_kd.files

    distill = [*distill, *FLOW]
    run, fsync = tmp_path / "run", os.fsync

    def full(descriptor):
        if name.split("/")[-1].split(".")[0] in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device", name)
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(freia_kd.files.os, "fsync", full)
        assert f"No space left on device: {name}" in fails_after_progress(*distill, code=1)
    assert not (run / name).exists()
    assert not list(run.rglob(".*"))
    call(*distill, "--resume")
    whole = finished.folder / "student-1.safetensors"
    assert (run / "student-1.safetensors").read_bytes() == whole.read_bytes()


def fails_after_progress(*arguments, code):
    result = call(*arguments, code=code)
    assert "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


def test_a_loss_that_stays_nan(distill, monkeypatch):
    from freia_kd.objectives import divergences

    def broken(student, teacher, temperature=1.0):
        return student.sum() * float("nan")

    monkeypatch.setattr(divergences, "forward_kl", broken)
    result = call(*distill, code=1)
    assert "student-1" in result.stderr.splitlines()[-1]
    assert "after 3 rollbacks" in result.stderr.splitlines()[-1]
    assert result.stderr.count("half the learning rate") == 3


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(main, ["distill", "--teacher", str(tmp_path / "no.pt"), "--debug"])
    assert type(result.exception).__name__ == "CheckpointError"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_control_c_and_sigterm_keep_what_was_done(number, code, teacher_file, tmp_path):
    out = tmp_path / "run"
    program = (
        # A shell that runs the tests in the background lets them ignore SIGINT.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from freia_kd.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "distill",
         "--teacher", str(teacher_file), "--preset", "quick", "--out", str(out)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (out / "compressed-1.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    assert last.endswith(f"kept in {out}; go on with: freiakd distill --resume --out {out}")
    assert f"Run: {out}" in stderr.splitlines()
    assert json.loads((out / "run.json").read_text())["kind"] == "distill"
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_samples_that_are_faulty_are_listed_together(distill, tmp_path):
    from PIL import Image

    folder = tmp_path / "few"
    folder.mkdir()
    Image.new("L", (28, 28)).save(folder / "3_small.png")
    (folder / "4_broken.png").write_bytes(b"\x89PNG nothing")
    distill = [*distill, "--synthesizer", "bdnf"]
    result = call(*distill, "--samples", folder, code=2)
    assert "3_small.png" in result.stderr
    assert "4_broken.png" in result.stderr
    (folder / "4_broken.png").unlink()
    call(*distill, "--samples", folder, "--resize", "--gamma", 0.1)
    call("distill", "--out", tmp_path / "run", "--resume")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["synthesizers"][0]["options"]["gamma"] == 0.1
    assert report["real_data"]["samples_count"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "RUN", "--out", "x.txt"], ".npz"),
        (["sample", "RUN", "--out", "x.png", "-l", "11"], "labels from 0 to 9"),
        (["sample", "RUN", "--out", "x.npz", "-n", "99999999999"], " would fit."),
        (["distill", "--resume"], "--resume needs --out FOLDER"),
        (["distill"], "--teacher FILE is missing"),
        (["distill", "--teacher", "T", "--fresh"], "It is now --on-the-fly"),
        (["compress", "--teacher", "T", "--prune-share=0.3"], "It is now --keep-ratio"),
        (["compress", "--teacher", "T", "--synthetic", "RUN"], "leave the option out"),
        (["compare", "--teacher", "T", "--students", "1,2"], "It is now --student"),
        (["distill", "--teacher", "T", "--eval-data", "nonsense"], "nonsense"),
        (["distill", "--teacher", "T", "--eval-data", "mnist"], "no folder data with mnist"),
        (["distill", "--teacher", "T", "--flow", "boat"], "nice, glow, realnvp, spline"),
        (["train-teacher", "mnist", "--data-root", "EMPTY", "--out", "x.pt"], "--data-root"),
        (["evaluate", "T", "--eval-data", "nonsense"], "nonsense"),
    ],
)
def test_usage_errors(arguments, message, finished, teacher_file, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    names = {"RUN": finished.folder, "T": teacher_file, "EMPTY": tmp_path / "empty"}
    assert message in fails(*[names.get(a, a) for a in arguments], code=2)


def test_inspect_of_a_folder_without_a_run(tmp_path):
    assert "no run.json" in fails("inspect", tmp_path, code=1)


def test_evaluate_shows_every_student(finished, tmp_path, evaluation):
    shutil.copytree(finished.folder, tmp_path / "run")
    np.savez(tmp_path / "real.npz", x=evaluation.inputs.numpy(), y=evaluation.labels.numpy())
    rows = json.loads(
        call("evaluate", tmp_path / "run", "--eval-data", tmp_path / "real.npz", "--json").stdout
    )
    measured = [s.distilled.accuracy.value for s in finished.report.students]
    assert [r["accuracy"]["value"] for r in rows] == measured


def test_evaluate_says_when_all_answers_are_the_same(teacher, tmp_path, evaluation):
    data = tmp_path / "data.npz"
    np.savez(data, x=evaluation.inputs.numpy(), y=evaluation.labels.numpy())
    for name, scale in (("sound", 1.0), ("dead", 0.0)):
        net = copy.deepcopy(teacher.net)
        net.fc2.weight.data *= scale
        save_classifier(tmp_path / f"{name}.pt", Classifier(net, teacher.domain, "lenet5"))
        said = call("evaluate", tmp_path / f"{name}.pt", "--eval-data", data).stderr
        assert ("gives the same class to 100.0 % of all inputs" in said) == (name == "dead")


def test_saved_students_need_no_teacher(finished, tmp_path):
    import freia_kd

    path = shutil.copy(finished.folder / "student-3.pt", tmp_path / "alone.pt")
    student = freia_kd.load_student(path)
    assert student(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    assert isinstance(student, Classifier)
    save_classifier(tmp_path / "x.pt", student)  # another round trip, without a plan


@pytest.mark.slow
def test_a_flow_from_a_file_is_the_same_when_the_run_goes_on(distill, tmp_path):
    flow = shutil.copy(Path(__file__).parents[2] / "examples/my_flow.yaml", tmp_path / "f.yaml")
    call(*distill, "--synthesizer", "bdnf", "--flow", flow)
    call("distill", "--out", tmp_path / "run", "--resume")
    with open(flow, "a") as file:
        file.write("# changed\n")
    assert "flow_sha256 was" in fails("distill", "--out", tmp_path / "run", "--resume", code=2)
