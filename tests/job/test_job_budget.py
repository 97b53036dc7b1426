"""`--minutes`: all steps by one factor, so that the plan takes the time that there is."""

import json
import time
from dataclasses import replace

import pytest
from job_cases import NOISE, TINY, make_teacher, students_in

from freia_kd import api, distill, resume
from freia_kd.config import DistillationOptions, Preset
from freia_kd.errors import ConfigError, UsageError
from freia_kd.job import budget, open_job
from freia_kd.job import run as job_run
from freia_kd.job.job import PlannedStage
from freia_kd.job.planning import Plan
from freia_kd.report.render import markdown
from freia_kd.report.run import run_document
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.synthesizers.noise import Spectral, Uniform

SIZES = Preset("quick", 1_000, 100, DistillationOptions(steps=600, batch_size=16, check_every=200))
FLOW = BDNFOptions(steps=50, batch_size=8)
# Seconds in all, and of these what does not grow: 10 stay, 100 grow with steps, 40 with the set.
STAGES = (
    PlannedStage("bdnf", 50, 33.0, 3.0),
    PlannedStage("spectral", 0, 2.0, 2.0),
    PlannedStage("synthetic/heldout", 100, 4.0, 4.0),
    PlannedStage("synthetic/train", 1_000, 40.0),
    PlannedStage("student-1", 600, 71.0, 1.0),
)


@pytest.fixture
def planned(monkeypatch):
    """Gives every job the plan above; the room that its disk has can be changed."""
    room = {"disk_free": 10**9, "memory_free": 10**9}

    def plan(job):
        return Plan("run", STAGES, memory=1, disk=1, input_bytes=100, **room)

    monkeypatch.setattr(budget, "make_plan", plan)
    return room


def fitted(minutes, **options):
    options = {**NOISE, "synthesizer": [BDNF(FLOW), "spectral"], "preset": SIZES, **options}
    return open_job(make_teacher(), out="nowhere", minutes=minutes, **options)


def minutes_of(seconds):
    return seconds / (1 - budget.RESERVE) / 60


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_one_factor_multiplies_steps_checks_and_the_set(planned, factor):
    job = fitted(minutes_of(10 + factor * 140))
    training = job.config.training
    assert (training.steps, training.check_every) == (600 * factor, 200 * factor)
    assert job.config.set_size == 1_000 * factor
    assert job.synthesizers[0].options.steps == 50 * factor
    assert job.config.synthesizers["bdnf"]["steps"] == 50 * factor
    assert job.run.record.config == job.config.to_dict()
    assert job.config.heldout_size == 100


def test_the_set_grows_to_half_of_what_there_is_room_for(planned):
    planned["memory_free"] = 400_000  # half of it holds 2,000 inputs
    job = fitted(minutes_of(10 + 80 + 500))
    assert job.config.set_size == 2_000
    assert job.config.training.steps == 5 * 600  # which takes what the set leaves
    planned["disk_free"] = 1_000
    assert fitted(minutes_of(10 + 40 + 500)).config.set_size == 1_000  # as large as asked for


def test_a_size_that_was_asked_for_stays(planned):
    job = fitted(minutes_of(10 + 40 + 200), set_size=1_000)
    assert (job.config.set_size, job.config.training.steps) == (1_000, 1_200)


def test_too_little_time_is_refused_with_what_would_do(planned):
    with pytest.raises(UsageError, match=r"--minutes 0\.2 is too short: a tenth") as error:
        fitted(0.2)
    needed = float(str(error.value).partition("Pass --minutes ")[2].split()[0])
    assert 0.4 < needed < 0.6  # 24 seconds, and the reserve
    assert fitted(needed).config.training.steps >= 60


def test_less_is_never_asked_of_small_jobs(planned):
    job = fitted(minutes_of(10 + 140), preset=replace(SIZES, training=TINY.training))
    assert job.config.training.steps == 4  # already less than a tenth of quick, and still allowed
    with pytest.raises(UsageError, match="too short"):
        fitted(minutes_of(10 + 100), preset=replace(SIZES, training=TINY.training))


class Own(Uniform):
    name = "own"


def test_what_takes_an_unknown_time_is_refused():
    with pytest.raises(UsageError, match=r"How long own, .* takes is not known .* --minutes"):
        fitted(1.0, synthesizer=Own())


def test_no_minutes_are_none():
    with pytest.raises(ConfigError, match=r"run\.minutes: expected more than 0\.0; got 0"):
        fitted(0)


def test_a_run_with_minutes_goes_on_as_it_began(tmp_path, monkeypatch, planned):
    planned_steps = minutes_of(10 + 2 * 140)
    options = {**NOISE, "minutes": planned_steps}

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job_run, "train_student_of", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(make_teacher(), out=tmp_path / "run", **options)
    config = json.loads((tmp_path / "run/run.json").read_text())["config"]
    assert (config["minutes"], config["training"]["steps"]) == (planned_steps, 8)
    monkeypatch.setattr(budget, "make_plan", None)  # the factor is not sought again
    found = resume(tmp_path / "run", teacher=make_teacher(), minutes=planned_steps)
    longer = replace(TINY, training=TINY.training.changed(steps=8, check_every=400), set_size=96)
    distill(make_teacher(), out=tmp_path / "named", **{**NOISE, "preset": longer})
    assert students_in(tmp_path / "run") == students_in(tmp_path / "named")
    assert found.report.minutes == planned_steps
    assert f"Asked for were {planned_steps:g} minutes; it took" in markdown(
        run_document(found.report), tmp_path
    )
    with pytest.raises(UsageError, match=r"minutes was 5\.08\d+, is 9\.0"):
        resume(tmp_path / "run", teacher=make_teacher(), minutes=9.0)
    with pytest.raises(UsageError, match="minutes was None, is 2"):
        resume(tmp_path / "named", teacher=make_teacher(), minutes=2.0)


def test_the_plan_takes_about_what_was_asked_for(monkeypatch):
    sample = Spectral.sample

    def slowly(self, n, *arguments, **options):
        time.sleep(0.002 * n)
        return sample(self, n, *arguments, **options)

    monkeypatch.setattr(Spectral, "sample", slowly)  # steps of a moment are measured badly
    options = {**NOISE, "preset": replace(TINY, set_size=1_000), "minutes": 0.5}
    plan = api.plan(make_teacher(), out="nowhere", **options)
    assert 10 < plan.seconds < 60
    assert "of the 30.0 s asked for" in plan.describe()
    on_the_fly = api.plan(make_teacher(), out="nowhere", on_the_fly=True, **options)
    assert 10 < on_the_fly.seconds < 60
