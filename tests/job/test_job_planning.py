"""The plan: what a run would take, and that it is refused where memory or disk cannot hold it."""

import time
from contextlib import contextmanager

import pytest
import torch
from job_cases import NOISE, make_teacher, students_in

from freia_kd import api, distill, resume
from freia_kd.config import DistillationOptions, Preset
from freia_kd.device import free_memory, memory_limit
from freia_kd.errors import UsageError
from freia_kd.job import planning
from freia_kd.synthesizers.adversarial import DFAD, DFADOptions
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.synthesizers.noise import Uniform
from freia_kd.training import Progress

LONG = Preset("quick", 40_000, 2_000, DistillationOptions(steps=500, batch_size=16))


def plan(**options):
    return api.plan(make_teacher(), out="nowhere", **{**NOISE, "preset": LONG, **options})


def test_a_plan_of_nothing_has_no_empty_list():
    said = planning.Plan("runs", (), 0, None, 0, 0, 0, besides="reports").describe()
    assert said.startswith("Plan: about 0.0 s, besides reports. Memory")


def test_a_plan_has_every_stage_with_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = Uniform.sample

    def slowly(self, n, *arguments, **options):
        time.sleep(0.002 * n)
        return sample(self, n, *arguments, **options)

    monkeypatch.setattr(Uniform, "sample", slowly)
    flow = BDNF(BDNFOptions(steps=300, batch_size=8))
    found = plan(synthesizer=[flow, "uniform"], students=["1", "3"])
    assert list(tmp_path.iterdir()) == []
    stages = {stage.name: stage for stage in found.stages}
    sets = {"synthetic/heldout": 2_000, "synthetic/train": 40_000}
    wanted = {"bdnf": 300, "uniform": 0, **sets, "student-1": 500, "student-3": 500}
    assert {name: stage.steps for name, stage in stages.items()} == wanted
    # Half of the inputs are of 2 ms each; the flow's take far less.
    assert 40 <= stages["synthetic/train"].seconds < 120
    assert found.seconds == sum(stage.seconds for stage in found.stages)
    assert found.disk > 42_000 * (64 + 16 + 8)
    assert 50e6 < found.memory < found.memory_free
    assert "about " in found.describe()
    assert "student-3" in found.describe()


class Own(Uniform):
    """A stranger's, which would take its time."""

    name = "own"
    fits = 0

    def fit(self, *arguments):
        Own.fits += 1
        super().fit(*arguments)


@pytest.mark.parametrize("others", [[], ["uniform"]])
def test_a_method_of_ones_own_is_not_run_for_the_plan(others):
    found = plan(synthesizer=[Own(), *others])
    assert Own.fits == 0
    seconds = {stage.name: stage.seconds for stage in found.stages}
    assert seconds["own"] is seconds["synthetic/train"] is None
    assert seconds["student-1"] > 0
    assert "own (time not known)" in found.describe()


@pytest.mark.slow
def test_the_time_of_training_is_about_what_it_takes():
    teacher = make_teacher()
    sizes = Preset("quick", 64, 16, DistillationOptions(steps=400, batch_size=64, check_every=400))
    found = api.plan(teacher, out="nowhere", **{**NOISE, "preset": sizes})
    (stage,) = [stage for stage in found.stages if stage.name == "student-1"]
    student = planning._stand_in(teacher)
    data = planning._Repeated(
        (torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, 4), torch.zeros(64).long()),
        teacher,
    )
    start = time.perf_counter()
    planning.train_student(student, data, sizes.training, torch.Generator())
    taken = time.perf_counter() - start
    assert 0.3 * taken < stage.seconds < 3 * taken


def test_a_plan_is_of_what_is_left(tmp_path):
    run = api.extract(make_teacher(), out=tmp_path / "run", **NOISE)[0]
    found = api.plan(make_teacher(), out=run, again=True, students=["1"])
    assert [stage.name for stage in found.stages] == ["student-1"]
    resume(run, teacher=make_teacher(), students=["1"])
    assert api.plan(make_teacher(), out=run, again=True).stages == ()


def test_methods_that_learn_from_students_have_a_stage_for_each():
    options = DFADOptions(steps=5, batch_size=4, student_steps=1, channels=(4, 3), snapshots=1)
    found = plan(synthesizer=DFAD(options), students=["1", "3"])
    assert {"dfad-1", "dfad-3", "synthetic-3/train"} <= {stage.name for stage in found.stages}


def test_a_plan_changes_nothing(tmp_path, monkeypatch):
    flow = BDNF(BDNFOptions(steps=3, batch_size=8))
    options = {**NOISE, "synthesizer": [flow, "spectral"]}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    api.plan(make_teacher(), out="nowhere", **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(flow, "flow")
    distill(make_teacher(), out=tmp_path / "with", **options)
    monkeypatch.setattr("freia_kd.job.run.announce", lambda job: None)
    distill(make_teacher(), out=tmp_path / "without", **options)
    assert students_in(tmp_path / "with") == students_in(tmp_path / "without")


def test_a_loss_that_is_not_finite_is_left_to_its_stage(monkeypatch):
    def broken(student, teacher, temperature=1.0):
        return student.sum() * float("nan")

    monkeypatch.setattr("freia_kd.objectives.divergences.forward_kl", broken)
    seconds = {stage.name: stage.seconds for stage in plan().stages}
    assert seconds["student-1"] is None
    assert seconds["synthetic/train"] > 0


class Notes(Progress):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


def test_a_run_begins_with_its_folder_and_its_plan(tmp_path):
    notes = Notes()
    distill(make_teacher(), out=tmp_path / "run", progress=notes, **NOISE)
    assert notes.lines[0] == f"Run: {tmp_path / 'run'}"
    assert notes.lines[1].startswith("Plan: about ")


# --- What cannot be held ---


def test_a_run_that_the_disk_cannot_hold_is_refused(tmp_path, monkeypatch):
    usage = planning.shutil.disk_usage
    monkeypatch.setattr(
        planning.shutil, "disk_usage", lambda path: usage(path)._replace(free=3_000_000)
    )
    with pytest.raises(UsageError, match=r"would write about [\d,]+ bytes, and 3,000,000") as error:
        distill(make_teacher(), out=tmp_path / "a/run", **{**NOISE, "preset": LONG})
    assert list(tmp_path.iterdir()) == []
    fits = int(str(error.value).partition("--set-size ")[2].split()[0])
    assert 10_000 < fits < 40_000
    assert plan(set_size=fits).disk <= 3_000_000
    with pytest.raises(UsageError, match="are free where"):
        plan(set_size=fits + 2_000)
    plan(on_the_fly=True)


def test_a_set_that_nothing_can_hold_is_refused_at_once(tmp_path):
    start = time.process_time()
    with pytest.raises(UsageError, match="are free where"):
        distill(make_teacher(), out=tmp_path / "run", **{**NOISE, "set_size": 10**15})
    assert time.process_time() - start < 30  # whatever its size, and not that of its shards
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_stage_that_memory_cannot_hold_is_refused_with_what_would_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "free_memory", lambda device: 300_000_000)
    huge = BDNF(BDNFOptions(steps=300, batch_size=20_000))
    with pytest.raises(UsageError, match=r"stage bdnf needs more memory.*300,000,000") as error:
        distill(make_teacher(), out=tmp_path / "run", **{**NOISE, "synthesizer": huge})
    assert list(tmp_path.iterdir()) == []
    fits = int(str(error.value).partition("--set bdnf.batch_size=")[2].split()[0])
    plan(synthesizer=BDNF(BDNFOptions(steps=300, batch_size=fits)))
    training = DistillationOptions(steps=5, batch_size=200_000)
    with pytest.raises(UsageError, match=r"stage student-1 .* --set student\.batch_size=\d+ would"):
        plan(training=training)


def test_a_flow_that_memory_cannot_hold_is_refused(monkeypatch, tmp_path):
    def check(self, teacher):
        torch.zeros(10**15)

    monkeypatch.setattr(BDNF, "check", check)
    with pytest.raises(UsageError, match=r"bdnf needs more memory .*, or another --synthesizer"):
        distill(make_teacher(), out=tmp_path / "run", **{**NOISE, "synthesizer": "bdnf"})
    assert list(tmp_path.iterdir()) == []


def test_the_limit_of_memory_ends_with_its_block():
    with pytest.raises(MemoryError, match="100,000,000 bytes"), memory_limit(100_000_000):
        torch.zeros(100_000_000)
    torch.zeros(100_000_000)
    with pytest.raises(RuntimeError, match="another fault"), memory_limit(100_000_000):
        raise RuntimeError("another fault")
    assert 1e8 < free_memory(torch.device("cpu")) < 1e14


@pytest.mark.parametrize("given", [
    {"training": DistillationOptions(steps=5, batch_size=10**8)},
    {"synthesizer": BDNF(BDNFOptions(steps=5, batch_size=10**8))},
])  # fmt: skip
def test_a_hopeless_batch_is_refused_before_it_is_tried(given, monkeypatch):
    monkeypatch.setattr(planning, "free_memory", lambda device: 300_000_000)
    monkeypatch.setattr(planning, "_fewer", lambda *asked: [])
    monkeypatch.setattr(planning, "train_student", pytest.fail)
    monkeypatch.setattr(BDNF, "fit", pytest.fail)
    with pytest.raises(UsageError, match="needs more memory than the 300,000,000 bytes"):
        plan(**given)


def test_some_memory_is_spared(monkeypatch):
    """Else what other processes want meanwhile would end the run that was said to fit."""
    limits = []

    @contextmanager
    def remember(limit):
        limits.append(limit)
        yield

    monkeypatch.setattr("freia_kd.job.planning.memory_limit", remember)
    assert planning.fits_memory(torch.device("cpu"), 1_000, lambda: None)
    assert limits == [850]
    assert not planning.fits_memory(torch.device("cpu"), 1_000, pytest.fail, inputs=1_001)
