"""Processes that are killed at every boundary of a stage and at random moments, and called again.

Each leaves what a process leaves that was never killed, byte for byte.
"""

import multiprocessing
import os
import random
import signal
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faults_judging import Tally, many
from faults_miniatures import write_places

from freia_kd import files
from freia_kd.runs import Run
from freia_kd.training import Rehearsal, TrainingLoop

TINY = ["--preset", "quick", "--set-size", "24", "--layers", "layers.0", "--ranks", "0.25"]
TINY += ["--set", "bdnf.steps=3", "--set", "bdnf.batch_size=4", "--set", "student.steps=4"]
DISTILL = ["distill", "--teacher", "T", *TINY, "--synthesizer", "bdnf+spectral", "--eval-data", "D"]
COMPARE = ["compare", "--teacher", "T", *TINY, "--synthesizers", "bdnf", "--seeds", "1"]
COMMANDS = {
    "distill": [*DISTILL, "--out", "made"],
    "compare": [*COMPARE, "--workers", "1", "--eval-data", "D", "--out", "made"],
    "train-teacher": ["train-teacher", "D", "--arch", "mlp", "--epochs", "2", "--batch-size", "8",
                      "--out", "made.pt"],
}  # fmt: skip
RECORDS = ("made/run.json", "made.pt.training/run.json")  # by which it is known that there is a run
MOST = 80  # kills of one run, before it is said that it never ends
UNPLANNED = SimpleNamespace(describe=lambda: "")
EVENTS = {"compare": 150}  # after how many writes, steps and stages at most it is killed; else 40
CHAINS = 2  # runs of each command that are killed at random again and again


class Killer:
    """Counts what a process does, and kills it there.

    Arguments:
        at: The number of what it does that is its last.
        boundaries: A file with the beginnings and ends of stages at which a process has been
            killed; it is killed at the first other one. `None` if it does not matter.
    """

    def __init__(self, at, boundaries):
        self.at, self.boundaries, self.count = at, boundaries, 0

    def step(self):
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def pass_boundary(self, name):
        self.step()
        if self.boundaries is None or name in self.boundaries.read_text().splitlines():
            return
        with self.boundaries.open("a") as file:
            file.write(f"{name}\n")
            file.flush()
            os.fsync(file.fileno())
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, patch):
        """Counts every write, step of training and stage."""
        accept, stage = TrainingLoop.accept, Run.stage

        def mkstemp(**options):
            made = tempfile.mkstemp(**options)
            self.step()
            return made

        def fsync(handle):
            os.fsync(handle)
            self.step()

        def counted(loop, *arguments):
            if not isinstance(loop.checkpoints, Rehearsal):
                self.step()
            return accept(loop, *arguments)

        @contextmanager
        def bounded(run, name):
            self.pass_boundary(f"begin {run.folder.name} {name}")
            with stage(run, name):
                yield
            self.pass_boundary(f"end {run.folder.name} {name}")

        patch.setattr(files, "tempfile", SimpleNamespace(mkstemp=mkstemp))
        own = {name: getattr(os, name) for name in ("PathLike", "close", "umask")}
        patch.setattr(files, "os", SimpleNamespace(**own, fsync=fsync))
        patch.setattr(TrainingLoop, "accept", counted)
        patch.setattr(Run, "stage", bounded)


def work(words, here, at, boundaries, saves):
    """Calls a command in a process of its own; what it prints goes to a file."""
    from freia_kd.cli.main import main
    from freia_kd.compression import compare_costs

    torch.set_num_threads(1)
    os.chdir(here)
    again = any(Path(record).exists() for record in RECORDS)
    with open("../said.txt", "w") as said, pytest.MonkeyPatch.context() as patch:
        sys.stdout = sys.stderr = said
        for place in ("freia_kd.api", "freia_kd.job.measure"):
            patch.setattr(f"{place}.compare_costs", partial(compare_costs, seconds=0.005))
        # Plans write nothing, and take most of the time of runs as small as these.
        patch.setattr("freia_kd.job.run.announce", lambda job: None)
        patch.setattr("freia_kd.job.teaching.Training.plan", lambda training: UNPLANNED)
        patch.setattr(
            "freia_kd.comparing.main.plan_trials", lambda *arguments, **options: UNPLANNED
        )
        if saves:
            patch.setattr("freia_kd.training.checkpoints.SAVE_EVERY", 0.0)
        Killer(at, boundaries).watch(patch)
        if again and words[0] == "distill":
            words = ["distill", "--resume", "--out", "made"]
        elif again:
            words = [*words, "--resume"]
        main(words)


@pytest.fixture(scope="module")
def processes():
    """Processes that have imported everything, and have used nothing of it yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["freia_kd.cli.main", "freia_kd.api", __name__])
    return context


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_places(tmp_path_factory.mktemp("places"))


def results(folder):
    """What a command has made, without what tells times."""
    wanted = (".npy", ".pt", ".safetensors")
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.suffix in wanted}
    found |= {p.relative_to(folder): p.read_bytes() for p in folder.rglob("judged.json")}
    return {path: content for path, content in found.items() if "checkpoints" not in path.parts}


def call_until_done(processes, words, here, chance, boundaries, saves):
    """Calls a command until it is not killed; how often it was, and what it ended with."""
    here.mkdir(parents=True)
    if boundaries is not None:
        boundaries.write_text("")
    for kills in range(MOST):
        at = chance.randint(1, EVENTS.get(words[0], 40)) if chance is not None else 0
        process = processes.Process(target=work, args=(words, here, at, boundaries, saves))
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            return kills, process.exitcode
    return MOST, None


@pytest.mark.parametrize("how", ["boundaries", "at random", "at random, few states"])
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_and_called_again(name, how, places, processes, tmp_path):
    files_of = {"T": str(places / "T.pt"), "D": str(places / "D.npz")}
    words = [files_of.get(word, word) for word in COMMANDS[name]]
    tally = Tally(f"kills of {name}, {how}")
    whole = tmp_path / "whole/here"
    assert call_until_done(processes, words, whole, None, None, False) == (0, 0)
    wanted = results(whole)
    assert wanted
    is_random = how != "boundaries"
    for chain in range(max(1, many(10 * CHAINS) // 10) if is_random else 1):
        here = tmp_path / f"{chain}/here"
        chance = random.Random(f"{name} {how} {chain}") if is_random else None
        boundaries = None if is_random else tmp_path / "boundaries.txt"
        kills, code = call_until_done(
            processes, words, here, chance, boundaries, not how.endswith("few states")
        )
        tally.sound += kills
        what = f"{name}, chain {chain}, after {kills} kills"
        if code != 0:
            tally.short.append(f"{what}: {code}: {(here / '../said.txt').read_text()[-300:]}")
        elif results(here) != wanted:
            other = {k for k, v in wanted.items() if results(here).get(k) != v}
            tally.short.append(f"{what}: not the same: {sorted(map(str, other))}")
        elif left := [p.name for p in here.rglob(f"{files.PART}*") if p.parent != here]:
            tally.short.append(f"{what}: it left {left}")
    if not is_random:
        assert len(boundaries.read_text().splitlines()) == tally.sound
    tally.check(1)  # a short command may be killed once and then come to its end
