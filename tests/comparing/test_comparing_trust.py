"""Comparisons that are planned before they begin, and mended where they are damaged."""

import shutil

import pytest
import torch

from freia_kd.comparing import compare, plan_comparison, planning, trials
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.job import planning as job_planning
from freia_kd.report.schema import Comparison
from freia_kd.report.storage import read_result
from freia_kd.synthesizers.noise import NoiseOptions, Spectral, Uniform
from freia_kd.training import Progress
from pace import slow_but

FAST = NoiseOptions(tries=1)


class Slow(Uniform):
    """A stranger's, of which it is not known how long it takes."""

    name = "slow"


METHODS = [Spectral(FAST), Uniform(FAST)]


class Notes(Progress):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


@pytest.fixture
def options(teacher, tmp_path, tiny):
    return {
        "teacher": teacher,
        "synthesizers": METHODS,
        "seeds": 1,
        "preset": tiny,
        "device": "cpu",
        "workers": 1,
        "out": tmp_path / "out",
    }


@pytest.fixture(scope="module")
def done(teacher, tiny, tmp_path_factory):
    """A finished comparison, which tests only copy."""
    out = tmp_path_factory.mktemp("compared") / "out"
    compare(teacher, synthesizers=METHODS, seeds=1, preset=tiny, device="cpu", workers=1, out=out)
    return out


# --- The plan ---


def test_a_plan_counts_the_trials_and_writes_nothing(options, tmp_path):
    found = plan_comparison(**{**options, "seeds": 3, "synthesizers": [*METHODS, Slow(FAST)]})
    assert list(tmp_path.iterdir()) == []
    assert {s.name: s.steps for s in found.stages} == {"spectral": 3, "uniform": 3, "slow": 3}
    seconds = {s.name: s.seconds for s in found.stages}
    assert seconds["slow"] is None
    assert seconds["spectral"] > 0
    assert found.disk > 9 * 32 * 1024  # of the inputs that are held out
    assert "1 at a time" in found.describe()
    one = plan_comparison(**options)
    assert one.disk < found.disk


@pytest.mark.slow
def test_a_comparison_begins_with_its_folder_and_its_plan_of_what_is_left(options):
    notes = Notes()
    compare(**options, progress=notes)
    assert notes.lines[0] == f"Run: {options['out']}"
    assert notes.lines[1].startswith("Plan: about ")
    assert "spectral" in notes.lines[1]
    more = {**options, "seeds": 2, "resume": True}
    assert [s.steps for s in plan_comparison(**more).stages] == [1, 1]
    again = Notes()
    compare(**{**options, "resume": True}, progress=again)
    assert not any(line.startswith("Plan") for line in again.lines)


def test_what_the_machine_cannot_hold_is_refused_before_there_is_a_folder(
    options, tmp_path, monkeypatch
):
    usage = shutil.disk_usage
    with monkeypatch.context() as patch:
        patch.setattr(planning.shutil, "disk_usage", lambda p: usage(p)._replace(free=100_000))
        with pytest.raises(UsageError, match=r"spectral: The run would write .*100,000 are free"):
            compare(**options)
        patch.setattr(job_planning.Plan, "check", lambda plan, size: None)
        with pytest.raises(UsageError, match=r"trials would write .*smaller --set-size"):
            compare(**options)
    with monkeypatch.context() as patch:
        patch.setattr(planning, "peak_memory", lambda device: 10_000_000_000)
        patch.setattr(planning, "free_memory", lambda device: 15_000_000_000)
        with pytest.raises(UsageError, match=r"2 trials at a time .*--workers 1 would fit"):
            compare(**{**options, "workers": 2})
    assert list(tmp_path.iterdir()) == []


def test_threads_are_as_before_and_a_broken_method_is_left_to_its_trials(options, monkeypatch):
    before = torch.get_num_threads()

    def broken(job):
        raise RuntimeError("broken")

    monkeypatch.setattr(trials, "make_plan", broken)
    found = plan_comparison(**{**options, "workers": 2})
    assert [s.seconds for s in found.stages] == [None, None]
    assert torch.get_num_threads() == before


# --- Damages ---

PARTS = {
    "synthetic/heldout/shard-000-00000.inputs.npy": "synthetic/heldout",
    "student-1.safetensors": "student-1",
    "compressed-1.safetensors": "compress 1",
    "trial.json": "trial",
    "judged.json": "judged",
    "run.json": "all",
}


def students(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("student-*")}


@pytest.mark.parametrize("part", slow_but("trial.json", PARTS))
def test_what_is_damaged_is_named_and_made_again(part, done, options, monkeypatch):
    out = options["out"]
    shutil.copytree(done, out)
    path = out / "trials/spectral-0" / part
    path.write_bytes(path.read_bytes()[:30])
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        compare(**options, resume=True)
    named = path.with_suffix("").with_suffix(".json") if "shard" in part else path
    assert f"{named} (spectral, seed 0, stage {PARTS[part]})" in str(caught.value)
    assert "add --repair" in str(caught.value)
    assert path.read_bytes() == before
    mended = compare(**options, resume=True, repair=True)
    assert students(out) == students(done)
    assert mended.comparison.ranking == read_result(done, Comparison).ranking
    assert compare(**options, resume=True).comparison.rows == mended.comparison.rows


def test_a_student_that_is_missing_is_made_again(done, options):
    out = options["out"]
    shutil.copytree(done, out)
    for name in ("student-1.safetensors", "student-1.pt"):
        (out / "trials/uniform-0" / name).unlink()
    with pytest.raises(CheckpointError, match=r"student-1\.safetensors \(uniform, seed 0"):
        compare(**options, resume=True)
    compare(**options, resume=True, repair=True)
    assert students(out) == students(done)


def test_what_a_kill_left_beside_a_finished_trial_goes_with_the_next_write(done, options):
    out = options["out"]
    shutil.copytree(done, out)
    trial = out / "trials/spectral-0"
    (trial / "judged.json").unlink()
    (trial / ".part-judged-1.json").write_text("{")
    compare(**options, resume=True)
    assert (trial / "judged.json").exists()
    assert not (trial / ".part-judged-1.json").exists()
