"""Trials on executors: any of them, and processes that are killed or end with the comparison."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from freia_kd.comparing import runner
from freia_kd.comparing.methods import Method
from freia_kd.comparing.runner import KILLED, count_workers, run_all, run_trials
from freia_kd.comparing.trials import Trial, TrialOptions
from freia_kd.errors import UsageError
from freia_kd.runs import Run
from freia_kd.training import Progress


@dataclass(frozen=True)
class Scripted(Trial):
    """Does what its method says, and leaves a line in its file for each time that it begins."""

    def run(self, progress=None):
        with self.folder.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.method.name == "slow":
            time.sleep(600)
        if self.method.name == "deadly" or (self.method.name == "once" and self.begins == 1):
            time.sleep(0.2)  # so that its neighbour runs
            os.kill(os.getpid(), signal.SIGKILL)
        if self.method.name == "broken":
            raise AttributeError("no such\nthing")
        if self.method.name == "refused":
            raise UsageError("Expected better.")

    @property
    def begins(self):
        return len(self.folder.read_text().splitlines())

    @property
    def result(self):
        return None


def trials(folder, *names):
    return [
        Scripted(Method(n), i, (), folder / str(i), TrialOptions("")) for i, n in enumerate(names)
    ]


def errors(ended):
    return {trial.seed: error for trial, error in ended}


EXPECTED = {0: None, 1: "AttributeError: no such thing", 2: "Expected better.", 3: None}


class Recording(Executor):
    """Runs nothing before it is asked for, and remembers what it was given."""

    def __init__(self, raising=None):
        self.given, self.raising = [], raising

    def submit(self, function, /, *arguments):
        future = Future()
        self.given.append(arguments[0].method.name)
        if self.raising:
            future.set_exception(self.raising)
        else:
            future.set_result(function(*arguments))
        return future


def test_any_executor_runs_them(tmp_path):
    names = ("fine", "broken", "refused", "fine")
    executor = Recording()
    assert errors(run_trials(trials(tmp_path, *names), Progress(), executor=executor)) == EXPECTED
    assert executor.given == list(names)
    with ThreadPoolExecutor(2) as threads:
        ended = run_trials(trials(tmp_path, *names), Progress(), executor=threads)
        assert errors(ended) == EXPECTED
        assert threads.submit(int).result() == 0  # it is left open
    assert errors(run_trials(trials(tmp_path, *names), Progress())) == EXPECTED  # in this process


def test_what_an_executor_raises_is_the_trial_s_error(tmp_path):
    for error, said in ((BrokenExecutor("gone"), KILLED), (TypeError("what"), "TypeError: what")):
        ended = run_trials(trials(tmp_path, "fine"), Progress(), executor=Recording(error))
        assert errors(ended) == {0: said}


def test_an_early_end_cancels_what_has_not_begun(tmp_path):
    with ThreadPoolExecutor(1) as threads:
        running = run_trials(trials(tmp_path, *["fine"] * 200), Progress(), executor=threads)
        next(running)
        running.close()
    assert len(list(tmp_path.iterdir())) < 200


def test_one_that_leaves_no_result_has_failed(tmp_path):
    run = Run.create(tmp_path / "out", "compare", {})
    (tmp_path / "out").mkdir()
    failed = run_all(run, trials(tmp_path / "out", "fine", "refused"), "trials", workers=1)
    assert [error for _, error in failed] == ["it left no result", "Expected better."]
    assert run.done("trials")


def test_one_trial_at_a_time_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert count_workers("auto") == count_workers("cuda") == 1
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert count_workers("cpu") == 8


@pytest.mark.slow
def test_a_process_that_is_killed_stops_no_other(tmp_path):
    given = trials(tmp_path, "deadly", "fine", "once", "broken", "fine")
    ended = errors(run_trials(given, Progress(), workers=2))
    assert ended == {0: KILLED, 1: None, 2: None, 3: EXPECTED[1], 4: None}
    assert given[0].begins == 2  # once beside another, once alone
    assert given[2].begins >= 2
    assert given[4].begins == 1


SCRIPT = """
import signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_comparing_runner import Progress, run_trials, trials
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells in the background ignore it
    list(run_trials(trials(Path(sys.argv[2]), "slow", "slow"), Progress(), workers=2))
"""


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="asks Linux which processes are there")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_a_parent_that_is_interrupted_or_killed(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [sys.executable, tmp_path / "script.py", Path(__file__).parent, tmp_path]
    parent = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    files = [tmp_path / "0", tmp_path / "1"]
    try:
        for _ in range(6000):  # libraries take long to load on a busy machine
            if all(file.exists() and file.read_text() for file in files):
                break
            assert parent.poll() is None
            time.sleep(0.1)
        pids = [int(file.read_text()) for file in files]
        assert all(map(is_alive, pids))
        parent.send_signal(how)
        parent.communicate(timeout=60)
    finally:
        parent.kill()
        parent.wait()
    for _ in range(100):
        if not any(map(is_alive, pids)):
            break
        time.sleep(0.1)
    assert not any(map(is_alive, pids))
