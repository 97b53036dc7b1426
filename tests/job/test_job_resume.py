"""A run goes on as if it had never been stopped, and with nothing but what it was."""

import json
import multiprocessing
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from job_cases import NOISE, TINY, make_data, make_teacher, students_in

from freia_kd import StudentSpec, distill, resume
from freia_kd.comparing.opening import open_comparison
from freia_kd.compression import Tucker
from freia_kd.config import DistillationOptions, Preset
from freia_kd.data.datasets import LabelledData
from freia_kd.data.synthetic import SyntheticWriter
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.job import measure as job_measure
from freia_kd.job import student as job_student
from freia_kd.job.opening import open_job, reopen_job
from freia_kd.report.storage import read_report
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.synthesizers.noise import Uniform
from freia_kd.training import Rehearsal, TrainingLoop

MINE = StudentSpec((Tucker(layers={"5": 0.3}),), "mine")


def noise(out, teacher=None, **options):
    return distill(teacher or make_teacher(), out=out, **{**NOISE, **options})


def edit(folder, change):
    """Changes the record of a run by hand."""
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run with evaluation data in memory, which tests only copy."""
    return noise(tmp_path_factory.mktemp("done") / "run", eval_data=make_data())


@pytest.fixture
def run(done, tmp_path):
    """The folder of a finished run of one's own."""
    shutil.copytree(done.folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_training(monkeypatch):
    accept = TrainingLoop.accept

    def fail(self, *arguments):
        if isinstance(self.checkpoints, Rehearsal):  # by which a run is planned
            return accept(self, *arguments)
        raise AssertionError("something was trained again")

    monkeypatch.setattr(TrainingLoop, "accept", fail)


# --- Killed ---


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def killing_accept(stage, step):
    accept = TrainingLoop.accept

    def patched(self, *arguments):
        if self.checkpoints.stage == stage and self.step == step:
            kill_self()
        return accept(self, *arguments)

    return TrainingLoop, "accept", patched


def killing_append(shard):
    append = SyntheticWriter.append

    def patched(self, inputs, logits, conditions, **options):
        if self.shards == shard:
            # The first of a shard's files is there, the others are not.
            np.save(self.folder / f"shard-000-{shard:05d}.inputs.npy", inputs[:3].numpy())
            kill_self()
        append(self, inputs, logits, conditions, **options)

    return SyntheticWriter, "append", patched


def killing_write(name):
    write = job_student.write_student

    def patched(path, student):
        write(path, student)
        if path.name == name:
            kill_self()

    return job_student, "write_student", patched


def killing_report():
    return "freia_kd.job.run.write_report", lambda *arguments: kill_self()


def killing_measure():
    return job_measure, "_measure_student", lambda *arguments: kill_self()


KILLS = {
    "while compressing": lambda: killing_write("compressed-1.safetensors"),
    "in the flow": lambda: killing_accept("bdnf", 2),
    "in the set": lambda: killing_append(1),
    "before a student counts as done": lambda: killing_write("student-1.pt"),
    "in a student": lambda: killing_accept("student-3", 3),
    "while measuring": killing_measure,
    "before the report": killing_report,
}


def run_in_small_steps(teacher, out, preset, data, kill=None):
    """A run that saves its state at every step; it ends at the point named."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("freia_kd.job.synthesis.SHARD", 16)
        patch.setattr("freia_kd.training.checkpoints.SAVE_EVERY", 0.0)
        if kill is not None:
            patch.setattr(*KILLS[kill]())
        if (out / "run.json").exists():
            return resume(out).report
        flow = BDNF(BDNFOptions(steps=4, batch_size=8))
        options = {"synthesizer": [flow, "spectral"], "preset": preset, "device": "cpu"}
        students = ("1", "3")
        return distill(teacher, students=students, out=out, eval_data=data, **options).report


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_is_the_same(teacher_file, evaluation, tmp_path, tiny):
    data = tmp_path / "evaluation.npz"
    np.savez(data, x=evaluation.inputs.numpy(), y=evaluation.labels.numpy())
    whole = run_in_small_steps(teacher_file, tmp_path / "whole", tiny, data)
    context = multiprocessing.get_context("spawn")  # autograd may not survive a fork
    for kill in KILLS:  # one after the other, on the same run
        arguments = (teacher_file, tmp_path / "killed", tiny, data, kill)
        process = context.Process(target=run_in_small_steps, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, kill
    killed = run_in_small_steps(teacher_file, tmp_path / "killed", tiny, data)
    assert len(students_in(tmp_path / "whole")) == 4
    assert students_in(tmp_path / "killed") == students_in(tmp_path / "whole")
    for ours, theirs in zip(killed.students, whole.students, strict=True):
        assert ours.distilled == theirs.distilled
        assert ours.compressed == theirs.compressed
        assert ours.distilled.accuracy is not None


def test_inputs_on_the_fly_resume_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr("freia_kd.training.checkpoints.SAVE_EVERY", -1.0)
    noise(tmp_path / "whole", on_the_fly=True)
    accept = TrainingLoop.accept

    def stop(self, *arguments):
        if self.step == 2 and self.checkpoints.stage == "student-1":
            raise KeyboardInterrupt
        return accept(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "accept", stop)
        with pytest.raises(KeyboardInterrupt):
            noise(tmp_path / "cut", on_the_fly=True)
    resume(tmp_path / "cut", teacher=make_teacher())
    assert students_in(tmp_path / "cut") == students_in(tmp_path / "whole")


# --- Finished ---


def test_a_finished_run_loses_nothing(done, run, no_training, monkeypatch):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob("*") if p.is_file()}
    monkeypatch.setattr("freia_kd.job.run.measure", None)
    assert resume(run, teacher=make_teacher()).report == done.report == read_report(run)
    assert done.report.teacher.accuracy is not None
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob("*") if p.is_file()}
    assert before == after
    with pytest.raises(AssertionError, match="trained again"):  # the guard can fail
        noise(run.parent / "other")


def test_a_student_that_is_lost_is_written_again(done, run, no_training):
    (run / "student-1.safetensors").unlink()
    with pytest.raises(UsageError, match=r"in memory; .*eval_data="):
        resume(run, teacher=make_teacher())
    again = resume(run, teacher=make_teacher(), eval_data=make_data())
    assert students_in(run) == students_in(done.folder)
    assert again.report.students[0].distilled == done.report.students[0].distilled


def test_a_report_that_was_not_written_is_not_an_older_one(run, monkeypatch):
    data = make_data()
    monkeypatch.setattr("freia_kd.job.run.write_report", None)
    with pytest.raises(TypeError):
        resume(run, teacher=make_teacher(), students=[MINE], eval_data=data)
    monkeypatch.undo()
    again = resume(run, teacher=make_teacher(), eval_data=data)
    assert [s.name for s in again.report.students] == ["1", "mine"]


# --- More work ---


def test_students_are_added(done, run, no_training, monkeypatch):
    with pytest.raises(UsageError, match="pass them again, as eval_data="):
        resume(run, teacher=make_teacher(), students=[MINE])
    monkeypatch.undo()
    both = noise(run.parent / "both", students=["1", MINE], eval_data=make_data())
    added = resume(run, teacher=make_teacher(), students=[MINE], eval_data=make_data())
    assert students_in(run) == students_in(both.folder)
    for ours, theirs in zip(added.report.students, both.report.students, strict=True):
        assert (ours.name, ours.distilled) == (theirs.name, theirs.distilled)
    other = StudentSpec((Tucker(layers={"5": 0.4}),), "mine")
    with pytest.raises(UsageError, match=r"has another student 'mine'.*0\.3"):
        resume(run, teacher=make_teacher(), students=[other], eval_data=make_data())
    names = [s.name for s in resume(run, teacher=make_teacher(), students=[MINE]).report.students]
    assert names == ["1", "mine"]  # the same again is nothing new


def test_a_student_that_cannot_be_added_takes_nothing_away(done, run):
    for impossible in (Tucker(target="params", goal=1e-6), Tucker(target="latency", goal=1e-6)):
        spec = StudentSpec((impossible,), "impossible")
        with pytest.raises(UsageError):
            resume(run, teacher=make_teacher(), students=[spec], eval_data=make_data())
        assert resume(run, teacher=make_teacher()).report == done.report


def test_students_added_have_the_batch_normalisation_of_the_run(tmp_path):
    preset = Preset("quick", TINY.set_size, TINY.heldout_size, TINY.training, bn="freeze")
    noise(tmp_path / "run", preset=preset)
    added = resume(tmp_path / "run", teacher=make_teacher(), students=[MINE])
    assert [s.spec["bn"] for s in added.report.students] == ["freeze", "freeze"]


def test_evaluation_data_are_added_and_remembered(tmp_path, no_training, monkeypatch):
    monkeypatch.undo()
    data, teacher = make_data(), make_teacher()
    np.savez(tmp_path / "data.npz", x=data.inputs.numpy(), y=data.labels.numpy())
    run = noise(tmp_path / "run").folder
    before = students_in(run)
    monkeypatch.setattr(TrainingLoop, "accept", None)
    added = resume(run, teacher=teacher, eval_data=tmp_path / "data.npz").report
    assert added.real_data.evaluation_count == 40
    assert added.students[0].distilled.accuracy is not None
    assert students_in(run) == before
    monkeypatch.undo()
    more = resume(run, teacher=teacher, students=[MINE]).report
    assert more.students[1].distilled.accuracy is not None
    assert more.students[0].distilled == added.students[0].distilled


def test_synthetic_sets_made_before_are_used(tmp_path):
    import freia_kd.api

    folder, sizes = freia_kd.api.extract(make_teacher(), out=tmp_path / "run", **NOISE)
    assert sizes == {"synthetic/heldout": 24, "synthetic/train": 48}
    before = (folder / "synthetic/train/shard-000-00000.inputs.npy").stat().st_mtime_ns
    report = resume(folder, teacher=make_teacher(), students=["2"]).report
    assert [s.name for s in report.students] == ["2"]
    assert (folder / "synthetic/train/shard-000-00000.inputs.npy").stat().st_mtime_ns == before
    noise(tmp_path / "whole", students=["2"])
    assert students_in(folder) == students_in(tmp_path / "whole")


# --- Refused ---


TRAINING = DistillationOptions(steps=5, batch_size=16)
DIFFERENT = [
    ({"seed": 5}, "seed was 0, is 5"),
    ({"set_size": 47}, "set_size was 48, is 47"),
    ({"set_size": 0}, "run.set_size: expected at least 1; got 0"),
    ({"preset": "best"}, "preset was 'quick', is 'best'"),
    ({"preset": Preset("quick", 48, 25, TINY.training)}, "heldout_size was 24, is 25"),
    ({"preset": Preset("quick", 48, 24, TRAINING)}, r"training\.steps was 4, is 5"),
    ({"training": TRAINING}, r"training\.steps was 4, is 5"),
    ({"on_the_fly": True}, "on_the_fly was False, is True"),
    ({"synthesizer": "uniform"}, "synthesizer was 'spectral', is 'uniform'"),
    ({"synthesizer": Uniform()}, "synthesizer was 'spectral', is 'uniform'"),
    ({"samples": make_data(count=4)}, "samples_sha256 was None, is '"),
    ({"teacher": make_teacher(1)}, "teacher_sha256 was '.*', is '"),
    ({"seed": 5, "on_the_fly": True}, "on_the_fly was .*; seed was 0, is 5"),
]


@pytest.mark.parametrize(("options", "message"), DIFFERENT)
def test_what_differs_from_the_record_is_refused(run, options, message):
    before = (run / "run.json").read_bytes()
    with pytest.raises(UsageError, match=message):
        resume(run, **{"teacher": make_teacher(), **options})
    assert (run / "run.json").read_bytes() == before


def test_what_is_as_recorded_may_be_said_again(done, run):
    options = {**NOISE, "set_size": 48, "training": TINY.training, "seed": 0, "on_the_fly": False}
    assert resume(run, teacher=make_teacher(), students=["1"], **options).report == done.report


@pytest.mark.parametrize("preset", ["quick", Preset("quick", share=1 / 5)])
def test_steps_that_are_left_open_are_those_of_the_preset(tmp_path, preset):
    options = {"synthesizer": "spectral", "training": DistillationOptions(temperature=4.0)}
    new = open_job(make_teacher(), out=tmp_path / "run", preset=preset, **options)
    assert new.config.training.steps == (600 if preset == "quick" else 1200)
    new.run.write()
    again = reopen_job(tmp_path / "run", teacher=make_teacher(), preset=preset, **options)
    assert again.config == new.config
    (trial,) = open_comparison(
        make_teacher(),
        synthesizers=["spectral"],
        seeds=1,
        preset=preset,
        training=options["training"],
        out=tmp_path / "trials",
    ).trials[1:]
    for _ in range(2):  # at first, and again
        job = trial.open()
        assert job.config.training.steps == new.config.training.steps
        job.run.write()


def test_what_was_in_memory_must_be_given_again(tmp_path, run):
    with pytest.raises(UsageError, match=r"in memory; .*teacher="):
        resume(run)
    few = make_data(count=10)
    noise(tmp_path / "few", samples=few, synthesizer="samples")
    with pytest.raises(UsageError, match="samples of this run, real, are not there"):
        resume(tmp_path / "few", teacher=make_teacher())
    resume(tmp_path / "few", teacher=make_teacher(), samples=few)
    other = LabelledData(few.inputs, (few.labels + 1) % 4, "real")
    with pytest.raises(UsageError, match="samples_sha256 was"):
        resume(tmp_path / "few", teacher=make_teacher(), samples=other)


def test_samples_of_a_file_are_remembered(tmp_path):
    few = make_data(count=10)
    np.savez(tmp_path / "few.npz", x=few.inputs.numpy(), y=few.labels.numpy())
    noise(tmp_path / "run", samples=tmp_path / "few.npz", synthesizer="samples")
    assert resume(tmp_path / "run", teacher=make_teacher()).report.real_data.samples_count == 10


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"folder of a run; .*nothing has no run\.json"):
        resume(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no run.json"):
        resume(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_run_is_not_begun_twice(run):
    with pytest.raises(UsageError, match="already holds a run; pass --resume"):
        noise(run)


def test_code_that_only_the_record_names_is_not_run(run, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a stranger was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for option in ("arch", "synthesizer"):
        edit(run, lambda record, o=option: record["config"].update({o: "evil:Class"}))
        teacher = None if option == "arch" else make_teacher()
        if option == "arch":
            edit(run, lambda record: record["config"].update(teacher="lenet5.pt"))
        with pytest.raises(UsageError, match=f"--{option} evil:Class; if you trust that code"):
            resume(run, teacher=teacher)
        edit(run, lambda record: record["config"].update(arch="nameless", teacher="in memory"))
    spec = {"methods": [{"method": "evil:Class"}], "name": "2", "bn": None}
    edit(run, lambda record: record["config"].update(synthesizer="spectral"))
    edit(run, lambda record: record["students"].update({"2": spec}))
    with pytest.raises(UsageError, match="evil:Class"):
        resume(run, teacher=make_teacher())
    assert "evil" not in sys.modules


def test_a_teacher_that_is_not_there_any_more_is_asked_for(run):
    edit(run, lambda record: record["config"].update(teacher="elsewhere/t.pt"))
    with pytest.raises(CheckpointError, match=r"run, elsewhere/t\.pt, is not there; .*--teacher"):
        resume(run)
