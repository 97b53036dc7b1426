"""The training of a teacher: planned, locked, and refused where it cannot be held."""

import shutil

import numpy as np
import pytest
import torch
from job_cases import make_data

from freia_kd import api
from freia_kd.errors import ConfigError, UsageError
from freia_kd.job import planning
from freia_kd.runs.lock import locked
from freia_kd.training import Progress, Rehearsal, TrainingLoop

OPTIONS = {"arch": "mlp", "epochs": 5, "batch_size": 8, "device": "cpu"}


class Notes(Progress):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


@pytest.fixture
def data(tmp_path):
    given = make_data(count=80)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/D.npz", x=given.inputs.numpy(), y=given.labels.numpy())
    return tmp_path / "data/D.npz"


def left(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir() if p.name != "data")


def test_a_plan_writes_nothing_and_changes_no_weight(data, tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = api.plan_teacher(data, tmp_path / "t.pt", **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    (stage,) = found.stages
    assert (stage.name, stage.steps) == ("train", 5 * (72 // 8))
    assert stage.seconds > 0
    assert found.disk > 3 * 4 * 64 * 64
    assert left(tmp_path) == []


def test_a_training_begins_with_its_folder_and_its_plan(data, tmp_path, monkeypatch):
    notes = Notes()
    api.train_teacher(data, tmp_path / "a.pt", progress=notes, **OPTIONS)
    assert notes.lines[0] == f"Run: {tmp_path / 'a.pt.training'}"
    assert notes.lines[1].startswith("Plan: about ")
    assert "besides measuring: train" in notes.lines[1]
    monkeypatch.setattr("freia_kd.job.teaching.Training.plan", lambda self: planning.Plan)
    monkeypatch.setattr(planning.Plan, "describe", lambda: "none")
    api.train_teacher(data, tmp_path / "b.pt", **OPTIONS)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_what_is_left_is_planned_and_other_options_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("freia_kd.training.checkpoints.SAVE_EVERY", 0.0)
    out, accept = tmp_path / "t.pt", TrainingLoop.accept

    def stop(self, *arguments):
        if self.step == 30 and not isinstance(self.checkpoints, Rehearsal):
            raise KeyboardInterrupt
        return accept(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "accept", stop)
        with pytest.raises(KeyboardInterrupt):
            api.train_teacher(data, out, **OPTIONS)
    (stage,) = api.plan_teacher(data, out, resume=True, **OPTIONS).stages
    assert 10 <= stage.steps <= 20
    with pytest.raises(UsageError, match=r"learning_rate was 0\.001, is 0\.1"):
        api.train_teacher(data, out, resume=True, learning_rate=0.1, **OPTIONS)
    with pytest.raises(UsageError, match="already holds a run; pass --resume"):
        api.train_teacher(data, out, **OPTIONS)
    api.train_teacher(data, out, resume=True, **OPTIONS)
    assert left(tmp_path) == ["t.pt"]


def test_two_processes_do_not_train_the_same_teacher(data, tmp_path):
    training = api.training_folder(tmp_path / "t.pt")
    with (
        locked(training),
        pytest.raises(UsageError, match=r"Another process works on .*: process"),
    ):
        api.train_teacher(data, tmp_path / "t.pt", **OPTIONS)
    assert left(tmp_path) == []


def test_what_the_machine_cannot_hold_is_refused(data, tmp_path, monkeypatch):
    usage = shutil.disk_usage
    with monkeypatch.context() as patch:
        patch.setattr(planning.shutil, "disk_usage", lambda p: usage(p)._replace(free=1_000))
        with pytest.raises(UsageError, match=r"about [\d,]+ bytes, and 1,000 are free where"):
            api.train_teacher(data, tmp_path / "t.pt", **OPTIONS)
    real = planning.fits_memory

    def fits_small(device, free, work):
        if getattr(work, "args", (80,))[0] > 16:
            return False
        return real(device, free, work)

    monkeypatch.setattr(planning, "fits_memory", fits_small)
    with pytest.raises(UsageError, match=r"stage train needs more memory .*--batch-size 8 would"):
        api.train_teacher(data, tmp_path / "t.pt", **{**OPTIONS, "batch_size": 64})
    assert left(tmp_path) == []


def test_options_that_make_no_sense_are_refused_at_once(data, tmp_path):
    out, wrong = tmp_path / "t.pt", {"epochs": 0, "batch_size": 0, "learning_rate": 1e300}
    with pytest.raises(ConfigError) as e:
        api.train_teacher(data, out, **{**OPTIONS, **wrong})
    assert len(e.value.faults) == 3
    for rate in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="learning_rate: expected"):
            api.train_teacher(data, out, **{**OPTIONS, "learning_rate": rate})
    assert list(tmp_path.glob("t.pt*")) == []
