"""Cells in processes of their own: so many at a time, ended with the comparison."""

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from freia_kd.compare import running
from freia_kd.compare.cells import Cell
from freia_kd.compare.running import count_workers, run_cells
from freia_kd.runs.progress import Progress


class Beating(Cell):
    """Runs for a minute, and leaves a sign of life every tenth of a second."""

    def run(self, progress=None):
        for beat in range(600):
            self.folder.write_text(str(beat))
            time.sleep(0.1)


class Raising(Cell):
    """Fails as a method of somebody else's may."""

    def run(self, progress=None):
        raise {"attribute": AttributeError, "import": ImportError}[self.method]("no such thing")


class Fake:
    """A worker without a process, which answers at once; the cell named `deadly` ends it."""

    made: list["Fake"]

    def __init__(self):
        self.connection, self.theirs = multiprocessing.Pipe()
        self.process, self.alive, self.ended, self.ran = self, True, False, []
        self.made.append(self)

    def begin(self, cell):
        assert self.alive
        self.ran.append(cell.method)
        self.alive = cell.method != "deadly"
        self.theirs.send((cell, None if self.alive else "died"))

    def answer(self):
        return self.connection.recv()

    def is_alive(self):
        return self.alive

    def end(self):
        self.ended = True


@pytest.fixture
def fakes(monkeypatch):
    Fake.made = []
    monkeypatch.setattr(running, "_Worker", Fake)
    return Fake.made


def cells(*methods):
    return [Cell(method, 0, (), Path()) for method in methods]


def test_no_more_at_a_time_than_asked_for_and_none_is_left(fakes):
    ended = [cell.method for cell, _ in run_cells(cells(*"abcde"), 2, Progress())]
    assert sorted(ended) == list("abcde")
    assert len(fakes) == 2
    assert all(worker.ended for worker in fakes)


def test_a_dead_process_gets_no_other_cell(fakes):
    ended = {c.method: e for c, e in run_cells(cells("deadly", *"abc"), 2, Progress())}
    assert ended == {"deadly": "died", "a": None, "b": None, "c": None}
    assert next(worker for worker in fakes if not worker.alive).ran == ["deadly"]


def test_an_early_end_ends_the_processes(fakes):
    running_cells = run_cells(cells(*"abcde"), 3, Progress())
    next(running_cells)
    running_cells.close()
    assert len(fakes) == 3
    assert all(worker.ended for worker in fakes)


@pytest.mark.parametrize("kind", ["attribute", "import"])
def test_whatever_a_method_raises_stops_no_other(kind, tmp_path):
    failing = [Raising(kind, seed, (), tmp_path) for seed in (0, 1)]
    errors = [error for _, error in run_cells(failing, 1, Progress())]
    assert errors == [f"{kind.title()}Error: no such thing"] * 2


def test_one_cell_at_a_time_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert count_workers("auto") == count_workers("cuda") == 1
    monkeypatch.setattr(running.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert count_workers("cpu") == 8


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_compare_running import Beating, running
if __name__ == "__main__":
    worker = running._Worker()
    worker.begin(Beating("any", 0, (), Path(sys.argv[2])))
    worker.process.join()
"""


@pytest.mark.slow
def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    life = tmp_path / "life"
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    arguments = [sys.executable, str(script), str(Path(__file__).parent), str(life)]
    parent = subprocess.Popen(arguments)
    try:
        for _ in range(600):
            if life.exists():
                break
            assert parent.poll() is None
            time.sleep(0.1)
        assert life.exists()
    finally:
        parent.kill()
        parent.wait()
    time.sleep(1)
    last = life.read_text()
    time.sleep(1)
    assert life.read_text() == last
