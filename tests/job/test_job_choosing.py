"""`--synthesizer auto`: mixtures tried on short runs, the best of them taken if that is sure."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from job_cases import TINY, make_data, make_teacher, students_in

from freia_kd import api, distill, resume
from freia_kd.domain import Domain
from freia_kd.errors import TrainingError, UsageError
from freia_kd.files import TRIAL
from freia_kd.job import choosing, open_job
from freia_kd.job import run as job_run
from freia_kd.report.render import markdown
from freia_kd.report.run import run_document
from freia_kd.report.schema import Candidate, Difference
from freia_kd.synthesizers import proxy
from freia_kd.synthesizers.adversarial import DFAD
from freia_kd.synthesizers.knowledge_within import KWInception
from freia_kd.teachers import Teacher, build_net
from freia_kd.trust import make_judges
from freia_kd.trust.contest import Stratum

AUTO = {"synthesizer": "auto", "preset": TINY, "device": "cpu"}
TRIED = {"leaves", "figures", "leaves+figures"}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Trials of a second: no flow, few inputs."""
    monkeypatch.setattr(choosing, "AUTO_TRIES", ("leaves", "figures"))
    monkeypatch.setattr(choosing, "JUDGED", 128)


def sure_teacher():
    """One that is confident of most inputs, in several classes."""
    teacher = make_teacher()
    with torch.no_grad():
        teacher.net[-1].weight *= 30
        photographs = next(j for j in make_judges(teacher, 0, 64) if j.family == "photographs")
        teacher.net[-1].bias -= photographs.logits.mean(0)
    return teacher


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Trials keep what they made beside the run that they are for."""
    monkeypatch.chdir(tmp_path)


def choose(**options):
    job = open_job(sure_teacher(), out="nowhere", is_plan=True, **{**AUTO, **options})
    return choosing.choose_synthesizer(choosing.plan_trials(job, []))


def sure_of(name, certainty=0.95):
    """In place of a contest: one that a mixture has won."""

    def hold(students, judges, seed):
        rest = [n for n in students if n != name]
        nothing = Difference(-0.1, -0.2, 0.0)
        return [
            Candidate(
                synthesizer=n,
                agreement=0.8,
                judges={"photographs": 0.8},
                behind=nothing,
                certainty=certainty if n == name else 0.0,
            )
            for n in [name, *rest]
        ], [Stratum("photographs", 0, np.ones((len(students), 10)))]

    return hold


@pytest.mark.slow
def test_the_choice_depends_on_the_seed_alone():
    first, again, other = choose(), choose(), choose(seed=1)
    assert replace(first, seconds=0) == replace(again, seconds=0)
    assert {c.synthesizer for c in first.candidates} == TRIED
    assert first.candidates != other.candidates
    assert set(first.judged) == {"spectral noise", "photographs"}  # without a flow both are apart
    assert all(count >= choosing.MIN_STEPS / 10 for count in first.judged.values())
    assert sum(c.certainty for c in first.candidates) == pytest.approx(1)


@pytest.mark.slow
def test_an_auto_run_is_an_ordinary_one_with_what_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "hold_contest", sure_of("figures"))
    found = distill(sure_teacher(), out=tmp_path / "auto", **AUTO)
    choice = found.report.choice
    assert (choice.synthesizer, choice.default, choice.steps) == ("figures", "leaves+figures", 4)
    assert [s.name for s in found.report.synthesizers] == ["figures"]
    assert found.report.seconds["choose"] == choice.seconds > 0
    named = distill(sure_teacher(), out=tmp_path / "named", **{**AUTO, "synthesizer": "figures"})
    assert students_in(tmp_path / "auto") == students_in(tmp_path / "named")
    assert named.report.choice is None
    text = markdown(run_document(found.report), found.folder)
    assert choice.sentence in text
    assert "How the synthesizers were chosen" in text
    assert "figures (taken)" in text
    assert "10.0 (0.0 to 20.0)" in text


@pytest.mark.parametrize(("certainty", "taken"), [(0.89, "leaves+figures"), (0.9, "leaves")])
def test_only_what_is_surely_better_takes_the_place_of_the_default(monkeypatch, certainty, taken):
    monkeypatch.setattr(choosing, "hold_contest", sure_of("leaves", certainty))
    choice = choose()
    assert choice.synthesizer == taken
    assert ("does not tell" in choice.sentence) == (taken != "leaves")


def test_inputs_that_no_student_would_learn_from_are_not_tried(monkeypatch):
    """Seen to fail: a run that chose them would have left them out."""
    short = {"images": 20, "batch_size": 20, "steps": 1, "learning_rate": 1e-3}
    monkeypatch.setattr(KWInception, "presets", {"quick": short})
    monkeypatch.setattr(choosing, "AUTO_TRIES", ("leaves", "kw-inception"))
    choice = choose()
    assert {c.synthesizer for c in choice.candidates} == {"leaves+figures", "leaves"}
    assert choice.failed.keys() == {"kw-inception"}
    assert "(expected 0.90 or more)" in choice.failed["kw-inception"]


def test_an_auto_run_goes_on_with_what_it_chose(tmp_path, monkeypatch):
    whole = distill(sure_teacher(), out=tmp_path / "whole", **AUTO)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job_run, "train_student_of", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(sure_teacher(), out=tmp_path / "run", **AUTO)
    monkeypatch.setattr(choosing, "train_candidates", stop)  # nothing is tried again
    found = resume(tmp_path / "run", teacher=sure_teacher(), synthesizer="auto")
    assert students_in(tmp_path / "run") == students_in(tmp_path / "whole")
    assert found.report.choice == replace(whole.report.choice, seconds=found.report.choice.seconds)


def test_trials_that_are_stopped_go_on(tmp_path, monkeypatch):
    """Seen to fail: the same command began them all again."""
    whole = distill(sure_teacher(), out=tmp_path / "whole", **AUTO)
    made, trained = [], []
    make, train = choosing._make, choosing._train

    def stop(trials, student, own):
        if trained:
            raise KeyboardInterrupt
        trained.append(1)
        return train(trials, student, own)

    def note(into, call):
        return lambda *given: into.append(1) or call(*given)

    with monkeypatch.context() as patch:
        patch.setattr(choosing, "_make", note(made, make))
        patch.setattr(choosing, "_train", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(sure_teacher(), out=tmp_path / "run", **AUTO)
    assert (len(made), len(trained)) == (2, 1)
    left = sorted((tmp_path / "run").iterdir())
    assert len(left) == 3
    assert all(path.name.startswith(TRIAL) for path in left)
    left[0].write_bytes(left[0].read_bytes()[:100])  # made again
    monkeypatch.setattr(choosing, "_make", note(made, make))
    monkeypatch.setattr(choosing, "_train", note(trained, train))
    found = distill(sure_teacher(), out=tmp_path / "run", **AUTO)
    assert len(made) + len(trained) == 3 + 2 + 1
    assert students_in(tmp_path / "run") == students_in(tmp_path / "whole")
    assert found.report.choice == replace(whole.report.choice, seconds=found.report.choice.seconds)
    assert not list((tmp_path / "run").glob(f"{TRIAL}*"))
    other = choose(seed=1)  # nothing of another job is taken
    assert len(made) + len(trained) == 6 + 5
    assert other.candidates != found.report.choice.candidates


def test_a_run_that_chose_nothing_is_not_resumed_by_auto(tmp_path):
    named = {**AUTO, "synthesizer": "spectral"}
    distill(sure_teacher(), out=tmp_path / "run", **named)
    with pytest.raises(UsageError, match="synthesizer was 'spectral', is 'auto'"):
        resume(tmp_path / "run", teacher=sure_teacher(), synthesizer="auto")


def test_what_fails_is_told_and_left_out(monkeypatch):
    train = choosing._train

    def fail(trials, student, made):
        if len(made) == 2:
            raise TrainingError("The loss is not finite.")
        return train(trials, student, made)

    monkeypatch.setattr(choosing, "_train", fail)
    choice = choose()
    assert choice.failed == {"leaves+figures": "The loss is not finite."}
    assert {c.synthesizer for c in choice.candidates} == {"leaves", "figures"}


@pytest.mark.parametrize("teacher", ["unsure", "vectors"])
def test_without_a_judge_nothing_is_tried(monkeypatch, teacher):
    monkeypatch.setattr(choosing, "train_candidates", None)
    if teacher == "vectors":
        domain = Domain((5,), 3, (0.0,), (1.0,), "table")
        found = Teacher(build_net("mlp", domain), domain, "mlp")
    else:
        found = make_teacher()
        found.net[-1].weight.data *= 1e-3
        found.net[-1].bias.data *= 1e-3
    job = open_job(found, out="nowhere", is_plan=True, **AUTO)
    assert job.ahead == ()
    choice = choosing.choose_synthesizer(choosing.plan_trials(job, []))
    assert (
        choice.synthesizer
        == choice.default
        == ("bdnf" if teacher == "vectors" else "leaves+figures")
    )
    assert "on which the teacher is confident" in choice.sentence


@pytest.mark.slow
def test_samples_and_proxies_join_every_mixture(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "proxy.npz", x=images)
    mine = proxy.Proxy(proxy.ProxyOptions(source=str(tmp_path / "proxy.npz")))
    found = distill(
        sure_teacher(),
        out=tmp_path / "run",
        **{**AUTO, "synthesizer": ["auto", mine]},
        samples=make_data(),
    )
    names = {c.synthesizer for c in found.report.choice.candidates}
    assert names == {f"samples+{n}+proxy" for n in TRIED} | {"samples+proxy"}
    assert found.report.choice.default == "samples+leaves+figures+proxy"
    assert found.report.real_data.samples_count == 40


def test_what_learns_from_a_student_is_refused(tmp_path):
    with pytest.raises(UsageError, match="dfad learns from a student, so that auto cannot try"):
        distill(sure_teacher(), out=tmp_path / "run", **{**AUTO, "synthesizer": ["auto", DFAD()]})
    assert list(tmp_path.iterdir()) == []


def test_judges_are_of_families_that_no_mixture_has(monkeypatch):
    monkeypatch.setattr(choosing, "AUTO_TRIES", ("bdnf", "leaves"))  # a flow over spectral noise
    job = open_job(sure_teacher(), out="nowhere", is_plan=True, **AUTO)
    found = choosing._judges(job, choosing.mixtures_of(job, [])[0])
    assert [judge.family for judge in found] == ["photographs"]


def test_a_plan_says_what_will_be_tried_and_tries_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choosing, "train_candidates", None)
    plan = api.plan(sure_teacher(), out="run", **AUTO)
    first = plan.stages[0]
    assert (first.name, first.steps) == ("choose", 3)
    assert first.seconds > 0
    assert "student-1" in plan.describe()
    assert list(tmp_path.iterdir()) == []


def test_too_little_time_for_trials_leaves_the_default():
    job = open_job(sure_teacher(), out="nowhere", is_plan=True, **AUTO)
    trials = choosing.plan_trials(job, [], seconds=1e-3)
    assert (trials.steps, trials.stages) == (0, ())
    choice = choosing.choose_synthesizer(trials)
    assert "too little time" in choice.sentence
    assert choice.synthesizer == "leaves+figures"


def test_the_random_numbers_of_others_are_left_alone(monkeypatch):
    train = choosing._train

    def roll(*arguments):
        torch.rand(3)  # as a method of somebody's own may
        return train(*arguments)

    monkeypatch.setattr(choosing, "_train", roll)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    choose()
    assert torch.equal(torch.get_rng_state(), state)
