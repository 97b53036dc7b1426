"""Disks that are full or read-only at every write."""

import errno
import itertools
import os
import shutil
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from faults_judging import Tally
from faults_miniatures import write_places

from freia_kd import files
from freia_kd.training.checkpoints import METRICS, Checkpoints, read_metrics

ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES)
TINY = ["--preset", "quick", "--set-size", "24", "--synthesizer", "bdnf+spectral", "--set"]
TINY += ["bdnf.steps=2", "--set", "bdnf.batch_size=4"]
STUDENTS = ["--set", "student.steps=3", "--layers", "layers.0", "--ranks", "0.25"]
# What is typed, and what it makes; again is how one goes on with it.
COMMANDS = {
    "distill": (["distill", "--teacher", "T", *TINY, *STUDENTS, "--out", "made"], "--resume"),
    "extract": (["extract", "--teacher", "T", *TINY, "--out", "made"], "--resume"),
    "train-teacher": (
        ["train-teacher", "D", "--arch", "mlp", "--epochs", "2", "--out", "made.pt"],
        "--resume",
    ),
    "compress": (["compress", "--teacher", "T", *STUDENTS[2:], "--out", "made.pt"], None),
    "export": (["export", "T", "--to", "safetensors", "--out", "made.safetensors"], None),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_places(tmp_path_factory.mktemp("places"))


class Disk:
    """Counts the files that are written, of which one cannot be.

    Arguments:
        fails_at: The number of that file; none if it is larger than all.
        number: What is wrong with the disk.
        late: Whether it is full only when the content goes there, not when the file is opened.
    """

    def __init__(self, fails_at, number=errno.ENOSPC, late=False):
        self.fails_at, self.number, self.late, self.count = fails_at, number, late, 0

    def fail(self, name):
        raise OSError(self.number, os.strerror(self.number), str(name))

    def mkstemp(self, **options):
        self.count += 1
        if self.count == self.fails_at and not self.late:
            self.fail(options["dir"])
        return tempfile.mkstemp(**options)

    def fsync(self, handle):
        if self.count == self.fails_at and self.late:
            self.fail("the disk")
        return os.fsync(handle)

    def stand_in(self, patch):
        """Takes the place of the disk."""
        patch.setattr(files, "tempfile", SimpleNamespace(mkstemp=self.mkstemp))
        own = {name: getattr(os, name) for name in ("PathLike", "close", "umask")}
        patch.setattr(files, "os", SimpleNamespace(**own, fsync=self.fsync))
        opened = Path.open

        def open_path(path, mode="r", *arguments, **options):
            stream = opened(path, mode, *arguments, **options)
            return self.append(path, stream) if mode == "a" else stream

        patch.setattr(Path, "open", open_path)

    @contextmanager
    def append(self, path, stream):
        """What writes at the end of a file; if the disk is full late, half of it arrives."""
        self.count += 1
        with stream:
            if self.count == self.fails_at and not self.late:
                self.fail(path)
            yield SimpleNamespace(write=partial(self._write, path, stream))

    def _write(self, path, stream, text):
        if self.count != self.fails_at:
            return stream.write(text)
        stream.write(text[: len(text) // 2])
        return self.fail(path)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def results(folder):
    """What a command has made, without what tells times."""
    wanted = (".npy", ".pt", ".safetensors", ".jsonl")
    return {k: v for k, v in contents(folder).items() if k.suffix in wanted}


@pytest.mark.parametrize("name", COMMANDS)
def test_full_disks(name, places, tmp_path, monkeypatch):
    words, again = COMMANDS[name]
    files_of = {"T": str(places / "T.pt"), "D": str(places / "D.npz")}
    words = [files_of.get(word, word) for word in words]
    tally = Tally(f"disk at every write of {name}")

    def call(here, words, disk):
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        with monkeypatch.context() as patch:
            disk.stand_in(patch)
            return tally.judge_command(words, lambda printed: None)

    whole = Disk(0)
    assert call(tmp_path / "whole", words, whole) == 0
    wanted = results(tmp_path / "whole")
    assert wanted
    sources = contents(places)
    for k in range(1, whole.count + 1):
        here = tmp_path / str(k)
        what = f"{name}, file {k} of {whole.count}"
        disk = Disk(k, ERRORS[k % 3], late=k % 2 == 0)
        replaces = again is None and k % 2 == 1
        if replaces:  # a file of another day, which is to stay
            here.mkdir()
            (here / words[-1]).write_bytes(b"mine")
        code = call(here, [*words, "--force"] if replaces else words, disk)
        if code != 1:
            tally.short.append(f"{what}: {os.strerror(disk.number)} ends with {code}")
        if replaces and (here / words[-1]).read_bytes() != b"mine":
            tally.short.append(f"{what}: what was there before is lost")
        if contents(places) != sources:
            tally.short.append(f"{what}: an input has changed")
        left = [p.name for p in here.rglob(f"{files.PART}*")]
        if left:
            tally.short.append(f"{what}: it left {left}")
        begun = any((here / run / "run.json").exists() for run in ("made", "made.pt.training"))
        words_again = [*words, "--force"] if again is None else words
        if again is not None and begun:
            words_again = [*words, again]
        if call(here, words_again, Disk(0)) != 0:
            tally.short.append(f"{what}: then it does not go on ({begun=}): {tally.said}")
        elif results(here) != wanted:
            tally.short.append(f"{what}: what it then makes is not the same ({begun=})")
        shutil.rmtree(here)
    tally.check(2 * whole.count + 1)


def test_the_guard_sees_a_line_that_is_lost(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, "stage")
    for number, (late, rest) in enumerate([(False, ""), (True, '{"stage": "stag')]):
        with monkeypatch.context() as patch:
            Disk(2, errno.ENOSPC, late).stand_in(patch)
            checkpoints.log(number, {})
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                checkpoints.log(number + 10, {})
        assert (tmp_path / METRICS).read_text().splitlines()[number + 1 :] == (
            [rest] if rest else []
        )
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]


def test_the_guard_sees_a_file_that_is_lost(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    target.write_text("mine")
    for late, number in itertools.product((False, True), ERRORS):
        with monkeypatch.context() as patch:
            Disk(1, number, late).stand_in(patch)
            with pytest.raises(OSError, match=os.strerror(number)):
                files.write_text(target, "yours")
        assert target.read_text() == "mine"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
