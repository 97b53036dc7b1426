"""The main job: data-free, resumable bit for bit, with honest reports."""

import copy
import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch

import freia_kd
from freia_kd.compression import Recipe
from freia_kd.data.datasets import LabelledData
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter
from freia_kd.errors import UsageError
from freia_kd.job import Job
from freia_kd.pipeline import distill, open_job
from freia_kd.runs.loop import TrainingLoop
from freia_kd.runs.run import Run

FINAL = ("student-1.safetensors", "student-1.pt", "student-3.safetensors")


def run(teacher, out, **options):
    return distill(teacher, students=("1", "3"), preset="quick", device="cpu", out=out, **options)


def finals(folder):
    return [(folder / name).read_bytes() for name in FINAL]


def test_report_and_files(finished):
    data = json.loads((finished.folder / "report.json").read_text())
    assert data == json.loads(json.dumps(finished.data))
    assert {"path", "arch", "parameters", "macs", "accuracy"} <= set(data["teacher"])
    for student in data["students"]:
        assert {
            "name",
            "parameters",
            "macs",
            "compression",
            "latency_ms",
            "teacher_latency_ms",
            "ranks",
            "accuracy_before",
            "accuracy",
            "agreement_before",
            "agreement",
        } <= set(student)
        assert 0 <= student["agreement"] <= 1
        assert student["parameters"] < data["teacher"]["parameters"]
    assert data["real_data"]["training"] == "none"
    assert data["real_data"]["evaluation"] == "real (50 test images)"
    assert set(data["seconds"]) == {
        "bdnf",
        "spectral",
        "train set",
        "heldout set",
        "student-1",
        "student-3",
        "measure",
    }
    assert data["seed"] == 0
    assert data["versions"]["torch"]
    assert data["options"]["synthesizers"]["bdnf"]["steps"] == 4
    names = {p.name for p in finished.folder.iterdir()}
    assert {
        "run.json",
        "metrics.jsonl",
        "report.md",
        "report.html",
        "synthetic.png",
        "curves.png",
        *FINAL,
    } <= names
    assert not [n for n in names if n.startswith(".")]
    html = (finished.folder / "report.html").read_text()
    assert "data:image/png;base64," in html
    assert 'src="http' not in html


def test_accuracy_and_agreement_are_what_they_say(teacher, finished, evaluation):
    student = freia_kd.load_student(finished.folder / "student-1.pt")
    x = evaluation.inputs.float() / 255
    with torch.no_grad():
        said, taught = student(x).argmax(1), teacher(x).argmax(1)
        heldout = SyntheticSet(finished.folder / "synthetic/heldout")
        x, logits, _ = heldout.batch(torch.arange(1, len(heldout), 2))
        same = (student(x).argmax(1) == teacher(x).argmax(1)).double().mean().item()
        assert torch.allclose(teacher(x), logits, atol=1e-5)
    row = finished.students[0]
    assert row["accuracy"] == pytest.approx((said == evaluation.labels).double().mean().item())
    assert row["real_agreement"] == pytest.approx((said == taught).double().mean().item())
    assert row["agreement"] == pytest.approx(same)


def test_without_evaluation_data_accuracies_are_null(teacher, tmp_path, tiny):
    report = run(teacher, tmp_path / "run")
    assert report.data["teacher"]["accuracy"] is None
    assert report.students[0]["accuracy"] is None
    assert report.students[0]["agreement"] is not None
    assert any("all the evidence" in remark for remark in report.remarks())


class Bomb(LabelledData):
    """Evaluation data that must not be touched before the last weight is fixed."""

    armed = True

    def __init__(self, data):
        self.__dict__.update(inputs=data.inputs, labels=data.labels, name="bomb")

    def __getattribute__(self, name):
        if name in ("inputs", "labels", "batches", "take", "__getitem__") and Bomb.armed:
            raise AssertionError(f"evaluation data was touched ({name}) while training")
        return super().__getattribute__(name)


@pytest.fixture
def bomb(evaluation, monkeypatch):
    """Armed until the last student is written."""
    monkeypatch.setattr(Bomb, "armed", False)
    bomb = Bomb(evaluation)
    monkeypatch.setattr(Bomb, "armed", True)
    save = Job.save_student

    def save_and_disarm(self, stem, *arguments):
        save(self, stem, *arguments)
        Bomb.armed = stem != "student-3"

    monkeypatch.setattr(Job, "save_student", save_and_disarm)
    return bomb


def test_no_training_reads_evaluation_data(teacher, tmp_path, tiny, bomb):
    report = run(teacher, tmp_path / "run", eval_data=bomb)
    assert report.students[1]["accuracy"] is not None


def test_the_bomb_goes_off(teacher, tmp_path, tiny, bomb, monkeypatch):
    extract = Job.extract

    def peek(self, student=None):
        bomb.labels  # noqa: B018
        return extract(self, student)

    monkeypatch.setattr(Job, "extract", peek)
    with pytest.raises(AssertionError, match="touched"):
        run(teacher, tmp_path / "run", eval_data=bomb)


def test_evaluation_by_name_is_loaded_after_the_last_weight(
    teacher, tmp_path, tiny, evaluation, monkeypatch
):
    def load(*arguments, **options):
        assert (tmp_path / "run/student-3.safetensors").exists()
        return evaluation

    monkeypatch.setattr("freia_kd.pipeline.load_dataset", load)
    assert run(teacher, tmp_path / "run", eval_data="digits").students[0]["accuracy"] is not None


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_students(teacher, tmp_path, finished, seed):
    run(teacher, tmp_path / "run", seed=seed)
    assert (finals(tmp_path / "run") == finals(finished.folder)) is (seed == 0)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def killing_accept(name, step):
    accept = TrainingLoop.accept

    def patched(self, *arguments):
        if self.name == name and self.step == step:
            kill_self()
        return accept(self, *arguments)

    return TrainingLoop, "accept", patched


def killing_append(shard):
    append = SyntheticWriter.append

    def patched(self, inputs, logits, conditions):
        if self.shards == shard:
            # The first of a shard's files is there, the others are not.
            np.save(self.folder / f"shard-000-{shard:05d}.inputs.npy", inputs[:3].numpy())
            kill_self()
        append(self, inputs, logits, conditions)

    return SyntheticWriter, "append", patched


def killing_save(stem):
    save = Job.save_student

    def patched(self, name, *arguments):
        save(self, name, *arguments)
        if name == stem:
            kill_self()

    return Job, "save_student", patched


KILLS = {
    "in the flow": lambda: killing_accept("bdnf", 2),
    "in the set": lambda: killing_append(1),
    "before a student counts as done": lambda: killing_save("student-1"),
    "in a student": lambda: killing_accept("student-3", 3),
}


def run_in_small_steps(teacher, out, preset, kill=None):
    """A run that saves its state at every step; it ends at the point named."""
    settings = {"bdnf.steps": 4, "bdnf.batch_size": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("freia_kd.job.SHARD", 16)
        patch.setattr("freia_kd.runs.loop.SAVE_EVERY", 0.0)
        if kill is not None:
            patch.setattr(*KILLS[kill]())
        students = ("1", "3")
        resume = (out / "run.json").exists()
        distill(
            teacher, students=students, preset=preset, settings=settings, out=out, resume=resume
        )


def test_killed_at_any_moment_and_resumed_is_the_same(teacher_file, tmp_path, tiny):
    run_in_small_steps(teacher_file, tmp_path / "whole", tiny)
    context = multiprocessing.get_context("spawn")  # autograd may not survive a fork
    for kill in KILLS:  # one after the other, on the same run
        arguments = (teacher_file, tmp_path / "killed", tiny, kill)
        process = context.Process(target=run_in_small_steps, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    run_in_small_steps(teacher_file, tmp_path / "killed", tiny)
    assert finals(tmp_path / "killed") == finals(tmp_path / "whole")


def test_a_finished_run_trains_no_more(teacher, tmp_path, finished, monkeypatch):
    shutil.copytree(finished.folder, tmp_path / "run")
    monkeypatch.setattr(TrainingLoop, "accept", None)
    run(teacher, tmp_path / "run", resume=True)
    with pytest.raises(TypeError):
        run(teacher, tmp_path / "other")  # the guard can fail


def test_students_can_be_added_later(teacher, tmp_path, finished):
    distill(teacher, preset="quick", device="cpu", out=tmp_path / "run")
    run(teacher, tmp_path / "run", resume=True)
    assert finals(tmp_path / "run") == finals(finished.folder)


def test_another_teacher_does_not_resume(teacher, finished):
    from freia_kd.teachers import Teacher, build_net

    torch.manual_seed(9)
    other = Teacher(build_net("lenet5", teacher.domain), teacher.domain, "lenet5")
    with pytest.raises(UsageError, match="teacher_sha256 was"):
        run(other, finished.folder, resume=True)


def test_samples_train_the_flow_in_reverse(teacher, tmp_path, finished, evaluation):
    ten = LabelledData(evaluation.inputs[:10], evaluation.labels[:10], "ten")
    report = run(teacher, tmp_path / "run", samples=ten)
    assert report.data["real_data"]["training"] == "samples"
    assert report.data["real_data"]["count"] == 10
    flow = [m for m in Run.open(tmp_path / "run").metrics() if m["stage"] == "bdnf"]
    assert "reverse" in flow[-1]
    assert finals(tmp_path / "run") != finals(finished.folder)


def test_wrong_options_fail_before_any_work(teacher, tmp_path, tiny):
    with pytest.raises(UsageError, match="no evaluation data 'nonsense'"):
        run(teacher, tmp_path / "run", eval_data="nonsense")
    with pytest.raises(UsageError, match="Unknown preset"):
        open_job(teacher, preset="slow", out=tmp_path / "run")
    with pytest.raises(UsageError, match="--out"):
        open_job(teacher, resume=True)
    with pytest.raises(UsageError, match="student 1, 2 or 3"):
        distill(teacher, students=("7",), preset="quick", device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_teacher_in_memory_is_not_touched(teacher, tmp_path, tiny):
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    run(teacher, tmp_path / "run")
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_vector_teachers_work_too(tmp_path, tiny):
    from freia_kd.teachers import Teacher, build_net

    domain = freia_kd.Domain((16,), 3, name="table")
    teacher = Teacher(build_net("mlp", domain), domain, "mlp")
    report = distill(teacher, preset="quick", device="cpu", out=tmp_path / "run")
    assert report.students[0]["agreement"] is not None
    assert not (tmp_path / "run/synthetic.png").exists()


def test_teachers_with_batch_normalisation_give_their_statistics_to_the_flow(tmp_path, tiny):
    from freia_kd.teachers import Teacher, build_net

    domain = freia_kd.Domain((3, 16, 16), 4, (0.4,), (0.2,), "colour")
    torch.manual_seed(0)
    teacher = Teacher(build_net("resnet14", domain), domain, "resnet14")
    report = run(teacher, tmp_path / "run")
    flow = [m for m in Run.open(tmp_path / "run").metrics() if m["stage"] == "bdnf"]
    assert flow[-1]["batchnorm"] > 0
    assert set(report.students[1]["ranks"]) == {
        f"layers3.{block}.conv{conv}" for block in (0, 1) for conv in (1, 2)
    }
    student = freia_kd.load_student(tmp_path / "run/student-3.safetensors")
    assert student(torch.rand(2, 3, 16, 16)).shape == (2, 4)


@pytest.fixture(scope="module")
def by_budget(teacher, tiny, tmp_path_factory):
    """A run with a student of a budget and one of rules, on noise."""
    recipes = [Recipe(target="macs", goal=0.5), Recipe(rules={"conv3": (5, 8), "fc2": 10})]
    out = tmp_path_factory.mktemp("budget") / "run"
    options = {"preset": "quick", "device": "cpu", "synthesizer": "spectral"}
    return distill(teacher, students=recipes, out=out, **options)


def test_students_by_recipe(teacher, by_budget):
    found, custom = by_budget.students
    assert found["name"] == "macs-0.5"
    assert found["macs"] <= 0.5 * by_budget.data["teacher"]["macs"]
    assert found["budget"]["reached"] == pytest.approx(
        found["macs"] / by_budget.data["teacher"]["macs"]
    )
    assert found["budget"]["inputs"] == "synthetic inputs to learn from"
    assert {row["name"] for row in found["budget"]["sensitivity"]} >= {"conv2", "conv3"}
    assert custom["ranks"] == {"conv3": [5, 8]}
    assert [s["name"] for s in custom["steps"][0]["skipped"]] == ["fc2"]
    assert custom["budget"] is None
    student = freia_kd.load_student(by_budget.folder / "student-macs-0.5.pt")
    assert student(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_a_budget_is_judged_on_inputs_to_learn_from_only(teacher, by_budget):
    from freia_kd.compression import Plan, apply_plan

    budget = json.loads((by_budget.folder / "budget-macs-0.5.json").read_text())
    student = apply_plan(teacher.net, Plan.from_dict(budget["plan"]))
    data = SyntheticSet(by_budget.folder / "synthetic/train")
    x = teacher.domain.normalize(data.batch(torch.arange(len(data)))[0])
    with torch.no_grad():  # all 64 of them are fewer than a budget would take
        same = student(x).argmax(1) == teacher.net(x).argmax(1)
    assert budget["agreement"] == pytest.approx(same.double().mean().item())


def test_the_report_shows_costs_layers_and_sensitivity(by_budget):
    markdown = (by_budget.folder / "report.md").read_text()
    html = (by_budget.folder / "report.html").read_text()
    for text in (markdown, html):
        assert "Student macs-0.5: costs" in text
        assert "Student custom: layers" in text
        assert "Student macs-0.5: sensitivity" in text
        assert "latency, batch 64" in text
        assert "peak bytes, batch 1" in text
        assert "fc2 was left alone: would not gain" in text
        assert "5 x 8" in text
    assert "sensitivity.png" in markdown
    assert html.count("data:image/png;base64,") == 3
    costs = by_budget.students[1]["costs"]
    assert costs["before"]["bytes"] > costs["after"]["bytes"] > 4 * costs["after"]["parameters"]


def test_a_resumed_run_knows_its_students_and_searches_no_more(
    teacher, by_budget, tmp_path, monkeypatch
):
    shutil.copytree(by_budget.folder, tmp_path / "run")
    monkeypatch.setattr(TrainingLoop, "accept", None)
    monkeypatch.setattr("freia_kd.compression.recipe.search_plan", None)
    options = {"preset": "quick", "device": "cpu", "synthesizer": "spectral", "resume": True}
    again = distill(teacher, out=tmp_path / "run", **options)
    assert [s["ranks"] for s in again.students] == [s["ranks"] for s in by_budget.students]
    (tmp_path / "run/budget-macs-0.5.json").unlink()
    with pytest.raises(TypeError):  # the guard can fail
        distill(teacher, out=tmp_path / "run", **options)
    other = [Recipe(rules={"conv3": (5, 9)})]
    with pytest.raises(UsageError, match="another student 'custom'"):
        distill(teacher, students=other, out=tmp_path / "run", **options)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(rules={"conv9": 0.5}), "No layer matches 'conv9'"),
        (Recipe(target="params", goal=0.001), "Cannot reach 0.1%"),
    ],
)
def test_students_that_cannot_be_fail_before_any_work(teacher, tmp_path, tiny, recipe, message):
    with pytest.raises(UsageError, match=message):
        distill(teacher, students=[recipe], preset="quick", device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_teacher_in_memory_fails_before_any_work(teacher, tmp_path, tiny):
    broken = copy.deepcopy(teacher)
    broken.net.conv2.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"conv2.weight.* NaN"):
        distill(broken, preset="quick", device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


CHAIN = Recipe(student="3", methods=("tucker", "prune", "quantize"), prune_share=0.6)
NOISE = {"preset": "quick", "device": "cpu", "synthesizer": "spectral"}


def test_methods_one_after_the_other(teacher, tmp_path, tiny, monkeypatch):
    pytest.importorskip("torch_pruning", reason="the extra freia_kd[prune] is not installed")
    report = distill(teacher, students=[CHAIN], out=tmp_path / "run", **NOISE)
    (row,) = report.students
    assert [step["method"] for step in row["steps"]] == ["tucker", "prune", "quantize"]
    assert list(row["agreements"]) == ["tucker", "prune", "quantize"]
    assert row["agreements"]["quantize"] == row["agreement"]
    assert {"student-3", "student-3-prune", "student-3-quantize"} <= set(report.data["seconds"])
    assert "Student 3: methods" in (tmp_path / "run/report.md").read_text()
    changes = {layer["name"]: layer["change"] for layer in row["costs"]["layers"]}
    assert all("int8" in change for change in changes.values())
    assert {"low rank", "fewer channels"} <= set(", ".join(changes.values()).split(", "))
    assert row["steps"][1]["macs"][1] <= 0.6 * row["steps"][1]["macs"][0]
    assert row["costs"]["after"]["bytes"] < 0.25 * row["costs"]["before"]["bytes"]
    student = freia_kd.load_student(tmp_path / "run/student-3.pt")
    assert student(torch.rand(2, 1, 32, 32)).shape == (2, 10)

    accept = TrainingLoop.accept

    def stop(self, *arguments):
        if self.name == "student-3-quantize":
            raise KeyboardInterrupt
        return accept(self, *arguments)

    monkeypatch.setattr(TrainingLoop, "accept", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, students=[CHAIN], out=tmp_path / "stopped", **NOISE)
    monkeypatch.setattr(TrainingLoop, "accept", accept)
    distill(teacher, out=tmp_path / "stopped", resume=True, **NOISE)
    for suffix in (".pt", ".safetensors"):
        whole = (tmp_path / f"run/student-3{suffix}").read_bytes()
        assert (tmp_path / f"stopped/student-3{suffix}").read_bytes() == whole


def test_a_teacher_in_memory_needs_no_architecture_by_name(tmp_path, tiny):
    from freia_kd.teachers import Teacher

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 48), torch.nn.Linear(48, 4))
    teacher = Teacher(net, freia_kd.Domain((1, 8, 8), 4), "nameless")
    report = distill(teacher, students=["1"], out=tmp_path / "run", **NOISE)
    assert list(report.students[0]["ranks"]) == ["1"]


@pytest.mark.parametrize("bn", ["freeze", "train"])
def test_batch_normalisation_of_a_student(tmp_path, tiny, bn):
    from freia_kd.teachers import Teacher, build_net

    domain = freia_kd.Domain((3, 8, 8), 4, (0.4,), (0.2,), "colour")
    torch.manual_seed(0)
    teacher = Teacher(build_net("resnet14", domain), domain, "resnet14")
    options = {"preset": "quick", "device": "cpu", "synthesizer": "spectral"}
    distill(teacher, students=[Recipe(student="3", bn=bn)], out=tmp_path / "run", **options)
    student = freia_kd.load_student(tmp_path / "run/student-3.pt")
    assert student.net.norm1.num_batches_tracked == (6 if bn == "train" else 0)


def test_batch_statistics_are_matched_to_the_net_before_each_method(tmp_path, tiny, monkeypatch):
    from freia_kd.teachers import Teacher, build_net

    pytest.importorskip("torch_pruning", reason="the extra freia_kd[prune] is not installed")
    domain = freia_kd.Domain((3, 8, 8), 4, (0.4,), (0.2,), "colour")
    torch.manual_seed(0)
    teacher = Teacher(build_net("resnet14", domain), domain, "resnet14")
    seen = []

    def prepare(net, mode, inputs, origin):
        assert net is not origin
        seen.append((mode, origin.state_dict()))

    monkeypatch.setattr("freia_kd.distillation.prepare_batchnorm", prepare)
    recipe = Recipe(student="3", methods=("tucker", "prune"))
    distill(teacher, students=[recipe], out=tmp_path / "run", **NOISE)
    first = freia_kd.load_student(Run.open(tmp_path / "run").state_path("student-3-net"))
    assert [mode for mode, _ in seen] == ["match", "match"]
    for (_, found), expected in zip(seen, (teacher.net, first.net), strict=True):
        weights = expected.state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[k], v) for k, v in weights.items())


def test_the_first_student_is_the_student(finished):
    for suffix in (".pt", ".safetensors"):
        first = (finished.folder / f"student-1{suffix}").read_bytes()
        assert (finished.folder / f"student{suffix}").read_bytes() == first
    x = torch.rand(3, 1, 32, 32)
    by_folder = freia_kd.load_student(finished.folder)
    by_file = freia_kd.load_student(finished.folder / "student.pt")
    assert torch.equal(by_folder(x), by_file(x))


def test_a_method_that_plays_has_inputs_for_each_student(teacher, tmp_path, tiny, monkeypatch):
    from freia_kd.stages import draw_samples
    from freia_kd.synthesizers.adversarial import DFAD

    monkeypatch.setattr(DFAD, "presets", {"quick": {"steps": 2, "batch_size": 4, "snapshots": 1}})
    out = tmp_path / "run"
    report = run(teacher, out, synthesizer="dfad")
    first, third = (SyntheticSet(out / f"synthetic-{k}/train") for k in ("1", "3"))
    rows = torch.arange(8)
    assert not torch.equal(first.batch(rows)[0], third.batch(rows)[0])
    assert {"dfad-1", "dfad-3", "train set 1", "train set 3"} <= set(report.data["seconds"])
    before = finals(out)
    (out / "student-3.safetensors").unlink()
    run(teacher, out, synthesizer="dfad", resume=True)
    assert finals(out) == before
    assert draw_samples(out, tmp_path / "s.npz", count=2) == 20
    job = open_job(teacher, synthesizer="dfad", preset="quick", device="cpu", out=tmp_path / "x")
    with pytest.raises(UsageError, match="dfad plays with a student"):
        job.extract()


def test_a_method_that_cannot_work_says_so_before_any_work(teacher, tmp_path, tiny):
    with pytest.raises(UsageError, match=r"'deepinversion' needs the statistics.*those that can"):
        run(teacher, tmp_path / "run", synthesizer="deepinversion")
    with pytest.raises(UsageError, match="'samples' needs real samples"):
        run(teacher, tmp_path / "run", synthesizer="spectral+samples")
    with pytest.raises(UsageError, match="Expected different synthesizers"):
        run(teacher, tmp_path / "run", synthesizer="spectral+spectral")
    with pytest.raises(UsageError, match=r"Unknown option 'boats' of bdnf; known ones are bdnf\."):
        run(teacher, tmp_path / "run", synthesizer="bdnf", settings={"boats": 1})
    with pytest.raises(UsageError, match=r"like 4 for bdnf.steps; got 'many'"):
        run(teacher, tmp_path / "run", synthesizer="bdnf", settings={"steps": "many"})
    assert not (tmp_path / "run").exists()


def test_students_learn_as_told_and_resume_so(teacher_file, tmp_path, tiny):
    from click.testing import CliRunner

    from freia_kd.cli.main import main

    def distill(*arguments):
        result = CliRunner().invoke(main, ["distill", *map(str, arguments), "--json"])
        assert result.exit_code == 0, (result.output, result.exception)
        return json.loads(result.stdout)

    def student(out):
        return (out / "student-3.safetensors").read_bytes()

    common = ("--teacher", teacher_file, "--preset", "quick", "--device", "cpu", "--student", 3)
    told = {
        "usual": (),
        "loss": ("--loss", "forward-kl", "--set", "student.temperature=4"),
        "boundaries": ("--loss", "activation-boundaries"),
        "mixup": ("--set", "student.mixup=1.0"),
        "fresh": ("--fresh",),
    }
    students = {}
    for name, arguments in told.items():
        distill(*common, "--out", tmp_path / name, *arguments)
        students[name] = student(tmp_path / name)
    assert len(set(students.values())) == len(told)
    for name in ("loss", "fresh"):
        record = json.loads((tmp_path / name / "run.json").read_text())
        record["done"].remove("student-3")
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        (tmp_path / name / "checkpoints/student-3.safetensors").unlink()
        distill("--out", tmp_path / name, "--resume")
        assert student(tmp_path / name) == students[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "boat"}, "Unknown loss 'boat'; known ones are .*activation-boundaries"),
        ({"settings": {"student.boat": 1}}, "Unknown option boat of student; known ones are"),
        ({"settings": {"student.steps": 1.5}}, "value like 6 for student.steps; got 1.5"),
        ({"settings": {"student.mixup": -1}}, "Expected 0 or a positive number for mixup"),
    ],
)
def test_ways_to_learn_that_make_no_sense_are_refused(teacher, tmp_path, tiny, options, message):
    with pytest.raises(UsageError, match=message):
        run(teacher, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
