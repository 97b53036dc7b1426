"""The verbs: what they take, what they return, and what they refuse."""

import copy
import dataclasses
import inspect

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import freia_kd
from freia_kd import StudentSpec, api, compress, evaluate, load_student, train_teacher
from freia_kd.api import extract, sample
from freia_kd.api import inspect as look_inside
from freia_kd.compression import Prune, Quantize, Tucker
from freia_kd.errors import CheckpointError, ConfigError, UsageError
from freia_kd.evaluation import accuracy
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions

VERBS = [
    *("train_teacher", "distill", "resume", "compress"),
    *("evaluate", "export", "compare", "load_student"),
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_takes(verb):
    function = getattr(freia_kd, verb)
    signature = inspect.signature(function)
    for name, parameter in signature.parameters.items():
        assert parameter.kind is not parameter.VAR_KEYWORD, f"{verb} takes anything as {name}"
        assert parameter.annotation is not parameter.empty
    assert signature.return_annotation not in (signature.empty, "Any")
    assert function.__doc__


def test_nothing_else_leaks():
    public = [name for name in dir(freia_kd) if not name.startswith("_")]
    assert set(VERBS) <= set(public) == set(freia_kd.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        freia_kd.distil  # noqa: B018
    with pytest.raises(TypeError, match="set_sise"):
        freia_kd.distill("lenet5.pt", set_sise=3)


# --- Teachers ---


def test_a_teacher_is_trained_measured_and_written(tmp_path):
    x = torch.rand(60, 3, generator=torch.Generator().manual_seed(0)).numpy()
    y = (x[:, 0] > x[:, 1]).astype(int)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    made = [
        train_teacher(tmp_path / "data.npz", tmp_path / f"{k}.pt", epochs=30, seed=k // 2)
        for k in range(3)
    ]
    assert (made[0].arch, made[0].domain.shape, made[0].domain.classes) == ("mlp", (3,), 2)
    assert made[0].accuracy.value > 0.7
    assert not made[0].has_test_split
    teacher = load_student(tmp_path / "0.pt")
    assert made[0].parameters == sum(p.numel() for p in teacher.parameters())
    weights = [load_student(tmp_path / f"{k}.pt").state_dict() for k in range(3)]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    assert any(not torch.equal(v, weights[2][k]) for k, v in weights[0].items())
    with pytest.raises(UsageError, match="lenet5"):
        train_teacher(tmp_path / "data.npz", tmp_path / "x.pt", arch="lenet6")
    assert not (tmp_path / "x.pt").exists()


# --- Compression ---


def test_a_student_without_training(teacher, teacher_file, tmp_path):
    spec = StudentSpec((Tucker(layers={"conv3": 0.5, "fc1": 0.3}),))
    made = compress(teacher_file, tmp_path / "small.safetensors", student=spec)
    assert made.file == str(tmp_path / "small.safetensors")
    assert made.steps[0]["method"] == "tucker"
    assert made.searches == [None]
    assert made.costs.after.parameters < made.costs.before.parameters
    student = load_student(made.file)
    assert sum(p.numel() for p in student.parameters()) == made.costs.after.parameters
    compress(teacher, tmp_path / "again.safetensors", student=spec)
    first = (tmp_path / "small.safetensors").read_bytes()
    assert (tmp_path / "again.safetensors").read_bytes() == first
    compress(teacher, tmp_path / "small.pt", student=spec)
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(load_student(tmp_path / "small.pt")(x), student(x))


def test_the_sensitivity_is_shown_where_it_was_measured(teacher, tmp_path):
    with pytest.raises(UsageError, match="sensitivity"):
        compress(teacher, tmp_path / "x.pt", plot=tmp_path / "x.png")
    spec = StudentSpec((Tucker(target="macs", goal=0.7),))
    made = compress(teacher, tmp_path / "x.pt", student=spec, plot=tmp_path / "x.png")
    assert made.searches[0]["reached"] <= 0.7
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("9", "tucker.student: expected '1', '2', '3', 'kegnet-1'"),
        (StudentSpec((Tucker(layers={"conv9": 0.5}),)), "No layer matches 'conv9'"),
        (StudentSpec((Tucker(target="params", goal=0.001),)), "(?i)cannot reach"),
    ],
)
def test_a_student_that_cannot_be_is_not_written(teacher, tmp_path, student, message):
    with pytest.raises(UsageError, match=message):
        compress(teacher, tmp_path / "x.pt", student=student)
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_method_are_checked_when_they_are_given():
    with pytest.raises(ConfigError, match=r"prune.keep_ratio: expected less than 1.0; got 1.5"):
        Prune(keep_ratio=1.5)
    with pytest.raises(ConfigError, match=r"quantize.observer: .*Did you mean 'minmax'"):
        Quantize(observer="minmx")


# --- Evaluation ---


def test_a_checkpoint_is_evaluated(teacher, teacher_file, evaluation):
    (found,) = evaluate(teacher_file, evaluation)
    assert found.accuracy.value == pytest.approx(accuracy(teacher, evaluation))
    assert (found.data, found.accuracy.count, found.agreement) == ("real", 50, None)


def test_all_students_of_a_run_are_evaluated(finished, evaluation, teacher_file, tmp_path):
    found = evaluate(finished.folder, evaluation)
    assert [e.file.rpartition("/")[2] for e in found] == ["student-1.pt", "student-3.pt"]
    for ours, theirs in zip(found, finished.report.students, strict=True):
        assert ours.accuracy == theirs.distilled.accuracy
        assert ours.agreement is None  # its teacher was in memory
    with pytest.raises(CheckpointError, match="There are no students in"):
        evaluate(tmp_path / "..", evaluation)
    with pytest.raises(UsageError, match="There are no data 'nonsense'"):
        evaluate(teacher_file, "nonsense")


# --- What a run has learned ---


@pytest.mark.slow
def test_synthetic_sets_alone(teacher, tmp_path, tiny, tiny_bdnf):
    options = {"preset": tiny, "synthesizer": [tiny_bdnf, "spectral"], "device": "cpu"}
    folder, sizes = extract(teacher, out=tmp_path / "run", **options)
    assert sizes == {"synthetic/heldout": 32, "synthetic/train": 64}
    assert extract(teacher, out=folder, again=True) == (folder, sizes)
    with pytest.raises(CheckpointError, match=r"run.json"):
        extract(out=tmp_path / "nothing", again=True)
    inputs = {}
    for name, options in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        count = sample(folder, tmp_path / f"{name}.npz", count=2, labels=[3, 5], **options)
        with np.load(tmp_path / f"{name}.npz") as file:
            inputs[name] = file["x"]
            assert file["y"].tolist() == [3, 3, 5, 5]
        assert (count, inputs[name].dtype, inputs[name].shape) == (4, np.uint8, (4, 1, 32, 32))
    assert np.array_equal(inputs["a"], inputs["b"])
    assert not np.array_equal(inputs["a"], inputs["c"])
    assert sample(folder, tmp_path / "all.png", count=1) == 10
    for arguments, message in (
        ({"labels": [10]}, r"labels from 0 to 9; got \[10\]"),
        ({"synthesizer": "uniform"}, "a synthesizer of this run, bdnf, spectral; got 'uniform'"),
        ({"synthesizer": "spectral"}, "cannot sample without its teacher"),
    ):
        with pytest.raises(UsageError, match=message):
            sample(folder, tmp_path / "x.npz", **arguments)
    with pytest.raises(UsageError, match=r"Expected a .npz file"):
        sample(folder, tmp_path / "x.jpg")


def test_what_a_file_or_folder_holds(finished, teacher_file):
    found = look_inside(teacher_file)
    assert (found["kind"], found["arch"], found["compression"]) == ("checkpoint", "lenet5", [])
    file = finished.folder / "student-3.safetensors"
    found = look_inside(file)
    assert found["compression"] == finished.report.students[1].steps
    assert found["parameters"] == sum(v.numel() for v in load_file(file).values())
    found = look_inside(finished.folder)
    assert (found["kind"], found["made_by"]) == ("run", "distill")
    assert "report.json" in found["files"]
    with pytest.raises(CheckpointError):
        look_inside(finished.folder / "nothing")


def test_results_are_plain_values(finished):
    assert dataclasses.is_dataclass(finished)
    with pytest.raises(dataclasses.FrozenInstanceError):
        finished.folder = None
    assert isinstance(BDNF(BDNFOptions(steps=3)), freia_kd.Synthesizer)


@pytest.mark.parametrize("verb", ["distill", "extract", "compress", "compare", "plan"])
def test_a_teacher_that_says_the_same_to_everything_is_refused(verb, teacher, tmp_path):
    dead = copy.deepcopy(teacher)
    dead.net.fc2.weight.data.zero_()
    where = {"out": tmp_path / "out.pt"} if verb == "compress" else {"out": tmp_path / "out"}
    with pytest.raises(UsageError, match="nearly the same logits to 256 inputs"):
        getattr(api, verb)(dead, **where)
    assert list(tmp_path.iterdir()) == []
