"""`torchrun`: processes share a run, one of them speaks, and it resumes on another number."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from cli_calls import call
from safetensors.torch import load_file

from freia_kd.cli import sharing

SIZES = [
    "--synthesizer",
    "bdnf+leaves",
    "--preset",
    "quick",
    "--device",
    "cpu",
    "--set-size",
    "4100",
]
SETTINGS = {
    "student.learning_rate": 2e-3,  # else by a share of held-out inputs, which rounding can change
    "bdnf.batch_size": 16,
    "student.steps": 8,
    "student.batch_size": 16,
}


def command(*arguments, processes=2):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    freiakd = ["-m", "freia_kd"]
    words = [*(launcher + freiakd if processes > 1 else freiakd), *arguments]
    return [sys.executable, *map(str, words)]


def start(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*arguments, **options),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


def distill(teacher_file, out, steps, *more):
    settings = {**SETTINGS, "bdnf.steps": steps}
    changed = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
    return ["distill", "--teacher", teacher_file, *SIZES, *changed, "--out", out, *more]


def errors(text):
    """What the command itself says; torchrun adds a summary of its own."""
    return [line for line in text.splitlines() if line.startswith("Error: ")]


def child(parent, rank):
    """The process of a rank, once it is there."""
    for _ in range(1200):
        for path in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"PPid:\t{parent}\n" in (path / "status").read_text()
                if ours and f"\0RANK={rank}\0".encode() in (path / "environ").read_bytes():
                    return int(path.name)
            except OSError:
                continue
        time.sleep(0.1)
    raise AssertionError("there is no such process")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="asks Linux which processes are there")
def test_two_processes_make_the_run_of_one_and_one_goes_on_when_the_other_is_killed(
    teacher_file, tmp_path
):
    code, out, err = finish(*distill(teacher_file, tmp_path / "two", 40, "--json"))
    assert code == 0, err
    report = json.loads(out)  # of one process, and nothing else
    assert report["provenance"]["processes"] == 2
    assert len(list((tmp_path / "two/synthetic/train").glob("shard-000-0000?.json"))) == 2
    assert not (tmp_path / "two/.lock").exists()

    process = start(*distill(teacher_file, tmp_path / "one", 40))
    metrics = tmp_path / "one/metrics.jsonl"
    for _ in range(3000):
        if metrics.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    os.kill(child(process.pid, 1), signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode != 0
    (said,) = errors(err)
    assert re.search(r"What was done is kept in \S+one; go on with: freiakd distill --resume", said)
    assert "Traceback" not in err.split("Error: ")[0]

    code, out, err = finish("distill", "--resume", "--out", tmp_path / "one", "--json", processes=1)
    assert code == 0, err
    alone = json.loads(out)
    assert alone["provenance"]["processes"] == 1
    ours, theirs = (load_file(tmp_path / name / "student-1.safetensors") for name in ("one", "two"))
    for name, value in ours.items():  # of the same random numbers, but for rounding
        assert (value - theirs[name]).abs().mean() < 3e-4, name
    shares = [r["students"][0]["distilled"]["agreement"]["value"] for r in (alone, report)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


@pytest.mark.slow
def test_two_processes_train_a_teacher(tmp_path):
    given = ["train-teacher", "digits", "--epochs", "4", "--device", "cpu", "--out"]
    code, out, err = finish(*given, tmp_path / "two.pt")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    assert not (tmp_path / "two.pt.training").exists()
    code, alone, err = finish(*given, tmp_path / "one.pt", processes=1)
    assert code == 0, err
    shares = [float(re.search(r"accuracy of ([\d.]+) %", text).group(1)) for text in (out, alone)]
    assert shares[0] == pytest.approx(shares[1], abs=2)
    assert min(shares) > 50


@pytest.mark.slow
def test_faults_are_told_once(teacher_file, tmp_path):
    given = distill(teacher_file, tmp_path / "out", 2, "--set", "student.batch_size=15")
    code, out, err = finish(*given)
    assert code != 0
    assert out == ""
    (said,) = errors(err)
    assert "student.batch_size: expected batches that 2 processes share evenly; got 15" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def second(monkeypatch):
    """The environment of the second of two processes."""
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("freia_kd.ranks.joined", nullcontext)
    monkeypatch.setattr(sharing, "PAUSE", 0.0)


def test_the_second_process_is_silent_but_for_what_only_it_knows(second, tmp_path, monkeypatch):
    result = call("evaluate", tmp_path, "--eval-data", "digits", code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: process 1: torchrun shares the work of distill")
    result = call("distill", "--teacher", tmp_path / "none.pt", code=1)
    assert result.stderr.startswith("Error: process 1: ")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("freia_kd.api.distill", stop)
    assert call("distill", "--teacher", tmp_path / "none.pt", code=130).output == ""


def test_commands_that_processes_cannot_share_say_so(second, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    result = call("compare", "--teacher", tmp_path / "none.pt", code=2)
    assert "not of compare; call freiakd compare itself" in result.stderr
    assert "--dask" in result.stderr
