"""Trials on Dask's workers: as alone, repeated when a worker is killed, faults named."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor
from dataclasses import replace

import pytest

from freia_kd.comparing import cluster, compare
from freia_kd.comparing.cluster import connect
from freia_kd.config import DistillationOptions, Preset
from freia_kd.errors import UsageError
from freia_kd.synthesizers.noise import NoiseOptions, Spectral, Uniform
from freia_kd.training import Progress

FAST = NoiseOptions(tries=1)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def start(tmp_path):
    """Starts a scheduler and workers, each a process with a working folder of its own."""
    pytest.importorskip("distributed")
    running, file = [], tmp_path / "scheduler.json"

    def begin(name, *arguments):
        (tmp_path / name).mkdir()
        module = "scheduler" if name == "scheduler" else "worker"
        command = [sys.executable, "-m", f"distributed.cli.dask_{module}"]
        command += ["--scheduler-file", str(file), "--no-dashboard", *arguments]
        with (tmp_path / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=tmp_path / name, env=ENVIRONMENT, stdout=log, stderr=log
            )
        running.append(process)
        return process

    def start(workers, threads=1):
        import json

        begin("scheduler", "--port", "0", "--host", "127.0.0.1")
        for _ in range(1200):
            if file.exists():
                break
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        nthreads = ("--nthreads", str(threads))
        names = [f"worker-{i}" for i in range(workers)]
        processes = [begin(name, "--no-nanny", *nthreads) for name in names]
        return address, {process.pid: process for process in processes}

    yield start
    for process in running[::-1]:
        process.kill()
        process.wait()


class Killer(Progress):
    """Kills a worker in the middle of a trial, once another trial has ended."""

    def __init__(self, client, processes):
        self.client, self.processes, self.killed = client, processes, None

    def note(self, message):
        if self.killed or ": done" not in message:
            return
        for _ in range(600):
            busy = [worker for worker, keys in self.client.processing().items() if keys]
            if busy:
                break
            time.sleep(0.05)
        time.sleep(0.5)  # so that it has begun
        self.killed = self.client.run(os.getpid)[busy[0]]
        self.processes[self.killed].send_signal(signal.SIGKILL)
        self.processes[self.killed].wait()


def contents(result):
    """What a comparison says, but for times."""
    comparison = result.comparison
    trials = [replace(trial, stages={}) for trial in comparison.trials]
    agreements = {row.method: (row.own, row.independent) for row in comparison.rows}
    return trials, agreements, comparison.ranking, comparison.failed


@pytest.mark.slow
def test_a_cluster_gives_the_table_of_one_process_though_a_worker_is_killed(
    start, teacher_file, tmp_path
):
    from distributed import Client

    training = DistillationOptions(steps=30, batch_size=32)
    options = {
        "synthesizers": [Spectral(FAST), Uniform(FAST)],
        "preset": Preset("quick", set_size=128, heldout_size=64, training=training),
        "seeds": 2,
        "device": "cpu",
    }
    alone = compare(teacher_file, workers=1, out=tmp_path / "alone", **options)
    address, processes = start(2)
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=300)
        killer = Killer(client, processes)
        with connect(address, tmp_path / "both") as executor:
            both = compare(
                teacher_file, executor=executor, out=tmp_path / "both", progress=killer, **options
            )
    assert killer.killed
    assert both.comparison.failed == {}
    assert contents(both) == contents(alone)


@pytest.mark.slow
def test_workers_that_would_mix_trials_are_refused_and_so_is_a_folder_they_do_not_see(
    start, tmp_path, monkeypatch
):
    from distributed import Client

    address, _ = start(1, threads=2)
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=300)
    with pytest.raises(UsageError, match=r"one trial at a time.*--nthreads 1"):
        connect(address, tmp_path).__enter__()
    monkeypatch.setattr(Client, "nthreads", lambda self: {"tcp://there": 1})
    with connect(address, tmp_path / "new" / "out") as executor:
        assert isinstance(executor, Executor)
        assert executor.submit(os.getcwd).result() == str(tmp_path / "worker-0")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(Client, "run", lambda self, *arguments: {"tcp://there": False})
    with pytest.raises(UsageError, match=r"tcp://there do not see .*share"):
        connect(address, tmp_path).__enter__()
    monkeypatch.setattr(Client, "nthreads", lambda self: {})
    with pytest.raises(UsageError, match="has no workers"):
        connect(address, tmp_path).__enter__()


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch, tmp_path):
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "WAIT", 0.2)
    with pytest.raises(UsageError, match=r"scheduler at tcp://127.0.0.1:9.*dask worker"):
        connect("tcp://127.0.0.1:9", tmp_path).__enter__()


def test_without_dask_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'freia_kd\[dask\]'"):
        connect("tcp://127.0.0.1:8786", tmp_path).__enter__()
