"""The main job: data-free, honest, and with all that it leaves behind."""

import copy
import json

import pytest
import torch
from job_cases import NOISE, SMALL, TINY, make_data, make_teacher, students_in

import freia_kd
from freia_kd import StudentSpec, distill
from freia_kd.compression import Tucker
from freia_kd.config import DistillationOptions
from freia_kd.data.datasets import LabelledData
from freia_kd.data.synthetic import SyntheticSet
from freia_kd.domain import Domain
from freia_kd.errors import ConfigError, UsageError
from freia_kd.job import open_job, synthesis
from freia_kd.job import run as job_run
from freia_kd.job import student as job_student
from freia_kd.report.storage import read_report
from freia_kd.synthesizers.adversarial import DFAD, DFADOptions
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.teachers import Teacher, build_net
from freia_kd.training.checkpoints import read_metrics


def noise(teacher, out, **options):
    return distill(teacher, out=out, **{**NOISE, **options})


def test_report_and_files(finished):
    report = finished.report
    assert read_report(finished.folder) == report
    assert report.teacher.path == "in memory"
    assert [s.name for s in report.students] == ["1", "3"]
    for student in report.students:
        assert 0 <= student.distilled.agreement.value <= 1
        assert student.distilled.agreement.count == 16  # of 32 held-out inputs, those of odd index
        assert student.distilled.accuracy.count == 50
        assert student.compressed.accuracy is not None
        assert student.change is not None
        assert student.costs.after.parameters < student.costs.before.parameters
    assert report.real_data.samples is None
    assert report.real_data.evaluation == "real"
    assert report.real_data.evaluation_count == 50
    assert list(report.seconds) == [
        *("compress 1", "compress 3", "bdnf", "leaves"),
        *("synthetic/heldout", "synthetic/train", "student-1", "student-3", "measure"),
    ]
    assert report.provenance.seed == 0
    assert report.provenance.versions["torch"]
    assert report.provenance.config["synthesizers"]["bdnf"]["steps"] == 4
    bdnf, leaves = report.synthesizers
    assert bdnf.chosen.startswith("Of the flows, bdnf chose nice, as for all images of up to 32")
    assert "; it has " in bdnf.chosen
    assert bdnf.chosen in (finished.folder / "report.md").read_text()
    assert leaves.chosen is None
    names = {p.name for p in finished.folder.iterdir()}
    assert {
        *("run.json", "metrics.jsonl", "report.md", "report.html", "curves.png"),
        *("compressed-1.safetensors", "compressed-3.safetensors"),
        *(f"student{k}{s}" for k in ("", "-1", "-3") for s in (".pt", ".safetensors")),
        *("inputs-bdnf.png", "inputs-leaves.png"),
    } <= names
    assert not [n for n in names if n.startswith(".")]


def test_accuracy_and_agreement_are_what_they_say(teacher, finished, evaluation):
    student = freia_kd.load_student(finished.folder / "student-1.pt")
    x = evaluation.inputs.float() / 255
    with torch.no_grad():
        said, taught = student(x).argmax(1), teacher(x).argmax(1)
        heldout = SyntheticSet(finished.folder / "synthetic/heldout")
        x, logits, _ = heldout.batch(torch.arange(1, len(heldout), 2))
        same = (student(x).argmax(1) == teacher(x).argmax(1)).double().mean().item()
        assert torch.allclose(teacher(x), logits, atol=1e-5)
    scores = finished.report.students[0].distilled
    right = (said == evaluation.labels).double().mean().item()
    assert scores.accuracy.value == pytest.approx(right)
    assert scores.real_agreement.value == pytest.approx((said == taught).double().mean().item())
    assert scores.agreement.value == pytest.approx(same)
    before = (taught == evaluation.labels).double().mean().item()
    assert finished.report.teacher.accuracy.value == pytest.approx(before)
    assert finished.report.students[0].change.value == pytest.approx(right - before)


def test_the_first_student_is_the_student(finished):
    for suffix in (".pt", ".safetensors"):
        first = (finished.folder / f"student-1{suffix}").read_bytes()
        assert (finished.folder / f"student{suffix}").read_bytes() == first
    x = torch.rand(3, 1, 32, 32)
    student = finished.student()
    assert torch.equal(student(x), freia_kd.load_student(finished.folder)(x))
    assert torch.equal(student(x), finished.student("1")(x))
    assert not torch.equal(student(x), finished.student("3")(x))


# --- No real data ---


class Bomb(LabelledData):
    """Evaluation data that must not be touched before the last weight is fixed."""

    armed = False

    def __getattribute__(self, name):
        if name in ("inputs", "labels", "batches", "take", "shape") and Bomb.armed:
            raise AssertionError(f"evaluation data were touched ({name}) while training")
        return super().__getattribute__(name)

    def __getitem__(self, index):
        return self.inputs[index], int(self.labels[index])


@pytest.fixture
def bomb(monkeypatch):
    """Armed until the last student is written."""
    data = make_data()
    monkeypatch.setattr(Bomb, "armed", False)
    bomb = Bomb(data.inputs, data.labels, "bomb")
    monkeypatch.setattr(Bomb, "armed", True)
    write = job_student.write_student

    def write_and_disarm(path, student):
        write(path, student)
        if path.name == "student-3.safetensors":
            Bomb.armed = False

    monkeypatch.setattr(job_student, "write_student", write_and_disarm)
    return bomb


def test_no_training_reads_evaluation_data(tmp_path, bomb):
    specs = ["2", StudentSpec((Tucker(layers={"5": 0.3}),), "3")]
    report = noise(make_teacher(), tmp_path / "run", students=specs, eval_data=bomb).report
    assert report.students[1].distilled.accuracy is not None
    assert not Bomb.armed


@pytest.mark.parametrize("stage", ["compress_student", "synthesize", "train_student_of"])
def test_the_bomb_goes_off(tmp_path, bomb, monkeypatch, stage):
    original = getattr(job_run, stage)

    def peek(*arguments):
        bomb.labels  # noqa: B018
        return original(*arguments)

    monkeypatch.setattr(job_run, stage, peek)
    with pytest.raises(AssertionError, match="touched"):
        noise(make_teacher(), tmp_path / "run", students=["2", "3"], eval_data=bomb)


def test_evaluation_by_name_is_read_after_the_last_weight(tmp_path, monkeypatch):
    def load(source, *arguments):
        assert source == "digits"
        assert (tmp_path / "run/student-1.safetensors").exists()
        return make_data()

    monkeypatch.setattr("freia_kd.data.sources.load_dataset", load)
    monkeypatch.setattr("freia_kd.data.sources.check_data", lambda *_: None)  # of ten classes
    report = noise(make_teacher(), tmp_path / "run", eval_data="digits").report
    assert report.students[0].distilled.accuracy is not None


def test_without_evaluation_data_there_are_no_accuracies(tmp_path):
    report = noise(make_teacher(), tmp_path / "run").report
    assert report.teacher.accuracy is None
    scores = report.students[0].distilled
    assert (scores.accuracy, scores.real_agreement) == (None, None)
    assert scores.agreement is not None
    assert "No real data was given" in (tmp_path / "run/report.md").read_text()


# --- Seeds and teachers ---


def test_the_same_seed_gives_the_same_students(tmp_path):
    found = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # plays no part
        noise(make_teacher(), tmp_path / str(number), seed=seed)
        found.append(students_in(tmp_path / str(number)))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_teacher_in_memory_is_not_touched(tmp_path):
    teacher = make_teacher()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    noise(teacher, tmp_path / "run")
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_vector_teachers_work_too(tmp_path):
    domain = Domain((16,), 3, name="table")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Teacher(build_net("mlp", domain), domain, "mlp")
    flow = BDNF(BDNFOptions(steps=2, batch_size=8))
    report = noise(teacher, tmp_path / "run", synthesizer=flow).report
    assert report.students[0].distilled.agreement is not None
    assert not list((tmp_path / "run").glob("inputs-*.png"))


def test_samples_train_the_flow_in_reverse(tmp_path):
    ten, flow = make_data(count=10), BDNF(BDNFOptions(steps=2, batch_size=4))
    teacher = make_teacher()
    report = noise(teacher, tmp_path / "with", synthesizer=flow, samples=ten).report
    assert (report.real_data.samples, report.real_data.samples_count) == ("real", 10)
    last = [m for m in read_metrics(tmp_path / "with") if m["stage"] == "bdnf"][-1]
    assert "reverse" in last
    noise(teacher, tmp_path / "without", synthesizer=flow)
    assert students_in(tmp_path / "with") != students_in(tmp_path / "without")


def test_a_method_that_learns_from_a_student_has_inputs_for_each(tmp_path):
    game = DFAD(DFADOptions(steps=2, batch_size=4, student_steps=1, channels=(4, 3), snapshots=1))
    out, specs = tmp_path / "run", ["1", StudentSpec((Tucker(layers={"5": 0.3}),), "mine")]
    report = noise(make_teacher(), out, synthesizer=game, students=specs).report
    first, other = (SyntheticSet(out / f"synthetic-{k}/train") for k in ("1", "mine"))
    rows = torch.arange(8)
    assert not torch.equal(first.batch(rows)[0], other.batch(rows)[0])
    assert {"dfad-1", "dfad-mine", "synthetic-1/train", "synthetic-mine/train"} <= set(
        report.seconds
    )
    assert set(report.synthesizers[0].diagnostics) == {"dfad-1", "dfad-mine"}
    assert freia_kd.api.sample(out, tmp_path / "s.npz", count=2) == 8
    with pytest.raises(UsageError, match=r"dfad .*student"):
        freia_kd.api.extract(make_teacher(), out=tmp_path / "x", synthesizer=game, preset=TINY)
    assert not (tmp_path / "x").exists()


def test_inputs_on_the_fly_are_another_way_to_learn(tmp_path):
    teacher = make_teacher()
    for name, on_the_fly in (("fly", True), ("again", True), ("stored", False)):
        noise(teacher, tmp_path / name, on_the_fly=on_the_fly)
    fly, again, stored = (students_in(tmp_path / name) for name in ("fly", "again", "stored"))
    assert fly == again
    assert fly != stored
    assert not (tmp_path / "fly/synthetic/train").exists()
    assert (tmp_path / "fly/synthetic/heldout").exists()


# --- What cannot be is refused before any work ---


def refused(tmp_path, message, teacher=None, error=UsageError, **options):
    with pytest.raises(error, match=message):
        noise(teacher or make_teacher(), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


LOW = StudentSpec((Tucker(layers={"9": 0.5}),))
REFUSED = [
    ({"eval_data": "nonsense"}, "There are no data 'nonsense'"),
    ({"preset": "slow"}, "Unknown preset 'slow'.*quick, standard, best, paper"),
    ({"students": ["7"]}, "tucker.student: expected '1', '2', '3', 'kegnet-1'"),
    ({"students": [LOW]}, "No layer matches '9'"),
    ({"students": [StudentSpec((Tucker(target="params", goal=0.001),))]}, "Cannot reach 0.1%"),
    ({"students": ["1", StudentSpec((Tucker(layers={"5": 0.5}),), "1")]}, "Two students are named"),
    ({"synthesizer": "deepinversion"}, "'deepinversion' needs the statistics.*those that can"),
    ({"synthesizer": "spectral+samples"}, "'samples' needs real samples"),
    ({"synthesizer": "spectral+spectral"}, "Expected different synthesizers"),
    ({"synthesizer": "spectrl"}, "Unknown synthesizer 'spectrl'; did you mean 'spectral'"),
    ({"samples": "nowhere"}, "There are no data 'nowhere'"),
    ({"samples": make_data(count=4)}, r"learn from the samples.*samples\+spectral"),
    ({"set_size": 0}, "run.set_size: expected at least 1; got 0"),
    ({"device": "gpu"}, "device: expected 'auto', 'cpu' or 'cuda'; got 'gpu'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, options, message):
    refused(tmp_path, message, **options)


def test_faults_are_reported_together(tmp_path):
    with pytest.raises(ConfigError) as error:
        noise(make_teacher(), tmp_path / "run", preset="slow", students=["7"])
    assert len(error.value.faults) == 2
    assert not (tmp_path / "run").exists()


def test_a_damaged_teacher_in_memory_is_refused(tmp_path):
    broken = copy.deepcopy(make_teacher())
    broken.net[5].weight.data[0] = float("nan")
    refused(tmp_path, r"5\.weight.* NaN", broken, ValueError)


def test_a_run_that_fails_in_its_first_stage_blocks_nothing(tmp_path):
    impossible = StudentSpec((Tucker(target="latency", goal=1e-6),))
    refused(tmp_path, "(?i)cannot reach|latency", students=[impossible])
    noise(make_teacher(), tmp_path / "run", students=["1"])


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        noise(make_teacher(), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="is a file"):
        noise(make_teacher(), tmp_path / "run/thesis.tex")


def test_without_a_folder_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = {**NOISE, "training": DistillationOptions(steps=1, batch_size=4)}
    folders = [distill(make_teacher(), **quick).folder for _ in range(2)]
    assert [folder.name for folder in folders] == ["teacher-1", "teacher-2"]
    record = json.loads((tmp_path / folders[0] / "run.json").read_text())
    assert record["config"]["training"]["steps"] == 1
    assert record["config"]["domain"] == SMALL.to_dict()


def test_a_picture_of_noise_is_not_sorted_where_that_takes_too_long(tmp_path, monkeypatch):
    teacher, shown, asked = make_teacher(), [], []
    monkeypatch.setattr(synthesis, "write_png", lambda *_: None)
    monkeypatch.setattr(synthesis, "plot_grid", lambda images, rows: shown.append(list(rows)))
    teacher.net.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    job = open_job(teacher, out=tmp_path / "run", **NOISE)
    (noise,) = job.synthesizers
    noise.fit(job.teacher)
    for macs in (1e12, 1.0):
        monkeypatch.setattr(synthesis, "PICTURE_MACS", macs)
        asked.clear()
        synthesis._plot(job, noise)
    assert shown == [[0, 1, 2, 3], ["", ""]]
    assert sum(asked) <= 2  # to count what a pass costs


def test_classes_and_confusions_are_counted_without_real_data_too(tmp_path):
    """Seen to fail: a run without evaluation data said nothing of single classes."""
    (student,) = noise(make_teacher(), tmp_path / "run").report.students
    assert student.confusion.data == "held-out"
    counts = torch.tensor(student.confusion.counts)
    agreement = student.distilled.agreement
    assert counts.sum() == agreement.count
    assert counts.diagonal().sum() / agreement.count == pytest.approx(agreement.value)
    for scores, row in zip(student.per_class, counts, strict=True):
        assert scores.accuracy is None
        assert (scores.agreement.count if scores.agreement else 0) == row.sum()


def test_evaluation_data_that_turn_out_wrong_leave_the_students(tmp_path):
    """Seen to fail: nothing was said of the students that were trained."""
    import numpy as np

    shape = make_teacher().domain.shape
    for name, scale in (("wrong", 255), ("right", 1)):
        x = scale * np.random.default_rng(0).random((10, *shape), np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(10) % 2)
    with pytest.raises(UsageError, match=r"Divide by 255.* trained and kept in .*with --resume"):
        noise(make_teacher(), tmp_path / "run", eval_data=tmp_path / "wrong.npz")
    again = freia_kd.resume(
        tmp_path / "run", teacher=make_teacher(), eval_data=tmp_path / "right.npz"
    )
    assert again.report.real_data.evaluation_count == 10


@pytest.mark.parametrize("spoilt", [True, False])
def test_training_that_other_families_show_to_harm_is_undone(tmp_path, monkeypatch, spoilt):
    """However well a student agrees with its teacher on held-out inputs of its own kind."""
    teacher = make_teacher()
    with torch.no_grad():
        for parameter in teacher.net[-1].parameters():
            parameter *= 20  # confident, since only such answers count

    def train(student, *arguments, **options):
        *_, weight, bias = student.parameters()
        with torch.no_grad():
            weight *= not spoilt
            bias[0] += 100 * spoilt + 1e-3  # a class that the teacher never names

    monkeypatch.setattr(job_student, "train_student", train)
    monkeypatch.setattr(job_student, "agreement", lambda *arguments: 1.0)
    result = noise(teacher, tmp_path / "run", students=["1"])
    (student,) = result.report.students
    assert student.gained == (not spoilt)
    said = "on others from which it did not learn" in (tmp_path / "run/report.md").read_text()
    assert said == spoilt
