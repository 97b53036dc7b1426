"""One process works on a run at a time; another is told who does."""

import os
import signal
import subprocess
import sys

import pytest

from freia_kd.errors import UsageError
from freia_kd.runs import Run
from freia_kd.runs.lock import holder, is_locked, locked

HOLD = (
    "import sys; from pathlib import Path; from freia_kd.runs.lock import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of the folder `run`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_holds_the_run(other, tmp_path):
    run, host = tmp_path / "run", os.uname().nodename
    message = rf"run in .*run: process {other.pid} on {host}, since 20\d\d-.*or stop it"
    for _ in range(2):  # asking takes nothing from the holder
        with pytest.raises(UsageError, match=message), locked(run):
            pass
        assert is_locked(run)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(run)["pid"] == other.pid  # left behind, and in nobody's way
    assert not is_locked(run)
    with locked(run):
        assert holder(run)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == [run]
    assert list(run.iterdir()) == []


def test_a_folder_made_for_the_lock_goes_with_it(tmp_path):
    with pytest.raises(ValueError, match="before anything"), locked(tmp_path / "runs/first"):
        raise ValueError("before anything was kept")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "run"):
        (tmp_path / "run/file").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_run_that_another_process_went_on_with_is_read_again(tmp_path):
    ours, theirs = (Run.create(tmp_path / "run", "distill", {"seed": 0}) for _ in range(2))
    with theirs.locked(), theirs.stage("first"):
        pass
    with pytest.raises(UsageError, match="has worked on the run"), ours.locked():
        pass
    with theirs.locked(), Run.open(tmp_path / "run").stage("second"):
        pass


def test_a_new_run_in_a_folder_in_use_is_told_who_uses_it(other, tmp_path):
    """Seen to fail: it was told to go on with the run."""
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=f"Another process works on .*: process {other.pid}"):
        Run.create(tmp_path / "run", "distill", {})
    other.kill()
    other.wait()
    with pytest.raises(UsageError, match="already holds a run; pass --resume"):
        Run.create(tmp_path / "run", "distill", {})
