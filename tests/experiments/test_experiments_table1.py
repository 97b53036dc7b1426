"""Table 1: every row, on made-up data in SVHN's format."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.io import savemat

from freia_kd.comparing import planning
from freia_kd.compression import load_classifier, load_teacher
from freia_kd.config import DistillationOptions, Preset, get_preset
from freia_kd.data.datasets import LabelledData, load_dataset
from freia_kd.domain import DOMAINS
from freia_kd.errors import CheckpointError, ConfigError, UsageError
from freia_kd.evaluation import accuracy
from freia_kd.experiments import opening, recipes
from freia_kd.experiments import table1 as module
from freia_kd.experiments.opening import OUR_ROWS, Table, check_teacher, make_trial, one_of_each
from freia_kd.experiments.published import PAPER_ROWS, STUDENTS, TABLE1, TRAINED, TUCKER
from freia_kd.experiments.table1 import plan_table1, recoveries, table1
from freia_kd.experiments.trial import PublishedTrial
from freia_kd.files import write_text
from freia_kd.job import Plan
from freia_kd.job.job import fingerprint
from freia_kd.report.schema import Proportion, Spread, TableResult
from freia_kd.report.storage import read_result
from freia_kd.runs import Run
from freia_kd.runs.lock import locked
from freia_kd.synthesizers import IMAGE_DEFAULT
from freia_kd.synthesizers.bdnf import BDNF
from freia_kd.synthesizers.noise import Noise
from freia_kd.teachers import Classifier, build_net, save_classifier, train_new
from freia_kd.training import Progress
from pace import slow_but

TINY = Preset("quick", 8, 4, DistillationOptions(steps=1, batch_size=4))
TINY_RECIPE = {
    "width": 8, "steps": 1, "batch_size": 4, "kegnet_steps": 1, "kegnet_batch": 8, "set_size": 8,
    "student_rate": 1e-2, "epochs": 2, "check_every": 1,
}  # fmt: skip
NAMES = STUDENTS["paper"]


UNPLANNED = Plan("", (), 0, None, 0, 0, 0)


def make_svhn(folder):
    """Made-up files of SVHN."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 40)):
        images = generator.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels})
    return folder


def train(arch, data, domain, epochs, *, seed=0, **options):
    """A teacher of a moment, which does not always say the same."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build_net(arch, domain)
    net.fc2.weight.data *= 20
    return Classifier(net, domain, arch)


@pytest.fixture(scope="module")
def tiny_table():
    """Makes the part on SVHN a matter of seconds; torchvision's checksums are not asked for."""
    import torchvision.datasets.svhn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.datasets.svhn, "check_integrity", lambda *a, **k: True)
        patch.setitem(opening.QUICK, "lenet5", TINY)
        patch.setattr(recipes, "QUICK", TINY_RECIPE)
        patch.setattr(BDNF, "presets", {"quick": {"steps": 1, "batch_size": 4}})
        patch.setattr(Noise, "presets", {"quick": {"tries": 1}})
        patch.setitem(TABLE1, "svhn", replace(TABLE1["svhn"], arch="lenet5"))
        patch.setattr(module, "train_new", train)
        # What a plan says has tests of its own, and takes most of the time of tables as small.
        patch.setattr(module, "plan_trials", lambda folder, *a: replace(UNPLANNED, folder=folder))
        yield


def call(folder, **options):
    common = {"data_root": folder, "device": "cpu", "workers": 1, "out": folder / "out"}
    return table1(["svhn"], **{"seeds": 1, **common, **options})


@pytest.fixture(scope="module")
def made(tiny_table, tmp_path_factory):
    """The result of a whole run, and the folder that it left."""
    folder = make_svhn(tmp_path_factory.mktemp("table1"))
    return call(folder), folder / "out"


def stem(row):
    return "".join(c if c.isalnum() else "-" for c in row)


def options_of(out, row, seed=0):
    return json.loads((out / f"svhn/{stem(row)}-{seed}/run.json").read_text())["config"]


@pytest.mark.slow
def test_every_row_beside_the_papers(made):
    result, out = made
    assert read_result(out, TableResult) == result
    assert result.failed == {}
    part = result.parts["svhn"]
    assert list(part.rows) == ["original", TUCKER, *PAPER_ROWS, *OUR_ROWS, TRAINED]
    # Table 1 of the paper, section 5.2
    assert part.published["T+BDNF"] == [72.1, 78.0, 66.5]
    assert part.published["T+Normal"] == [70.57, 63.8, 22.9]
    test = load_dataset("svhn", DOMAINS["svhn"], "test", out.parent)
    for name, row in ((NAMES[1], "our default"), (NAMES[2], TUCKER), (NAMES[0], TRAINED)):
        kind = "compressed" if row == TUCKER else "student"
        student = load_classifier(out / f"svhn/{stem(row)}-0/{kind}-{name}.safetensors")
        assert part.rows[row][name] == Spread(accuracy(student, test), None, 1)
    assert "| T\\+BDNF | 72.1 | " in (out / "table1.md").read_text().replace("| T+", "| T\\+")


@pytest.mark.slow
def test_two_columns_and_only_the_papers_rows_have_the_leak(made):
    result, out = made
    part = result.parts["svhn"]
    assert list(part.best_on_test) == list(PAPER_ROWS)
    for row in PAPER_ROWS:
        curves = json.loads((out / f"svhn/{stem(row)}-0/trial.json").read_text())["curve"]
        for name in NAMES:
            assert part.rows[row][name].mean == curves[name][-1]
            assert part.best_on_test[row][name].mean == max(curves[name])
    text = (out / "table1.md").read_text()
    assert "best on test (a leak)" in text
    assert "compare it with the paper's figure and with nothing else" in text


@pytest.mark.slow
def test_rows_are_the_papers_methods(made):
    few = {row: options_of(made[1], row)["samples"] for row in PAPER_ROWS}
    assert {row for row, samples in few.items() if samples} == {"T+Sample", "T+BDNF(Sample)"}
    assert all("one of each" in samples for samples in few.values() if samples)
    kinds = {row: options_of(made[1], row)["row"] for row in PAPER_ROWS}
    assert kinds == {row: kind for row, (kind, _) in PAPER_ROWS.items()}
    ours = options_of(made[1], "our default")
    assert ours["synthesizer"] == IMAGE_DEFAULT  # of a teacher without batch normalisation
    assert ours["samples"] is None
    assert "one of each" in options_of(made[1], "our default, 10 images")["samples"]
    assert options_of(made[1], TRAINED)["samples"] == "svhn"
    modes = {row: students(made[1], row) for row in (TUCKER, *OUR_ROWS, TRAINED)}
    assert modes.pop(TUCKER) == {"freeze"}
    assert set(map(frozenset, modes.values())) == {frozenset({"match"})}


def students(out, row):
    record = json.loads((out / f"svhn/{stem(row)}-0/run.json").read_text())
    assert set(record["students"]) == set(NAMES)
    return {spec["bn"] for spec in record["students"].values()}


@pytest.mark.parametrize("preset", ["quick", "code", "paper"])
def test_the_presets_of_a_trial(preset, tmp_path):
    run = Run.create(tmp_path / "out", "table1", {})
    table = Table(run, preset, "kegnet", tmp_path / "teacher.pt", "cpu")
    data = LabelledData(torch.rand(20, 1, 32, 32), torch.arange(20) % 10, "data")
    trial = make_trial(table, "fashion-mnist", "T+KegNet", 3, data, data)
    assert trial.recipe == recipes.get_recipe(preset, "fashion-mnist")
    assert (trial.kegnet.beta, trial.kegnet.learning_rate) == (10.0, 1e-2)  # KegNet's code
    assert (trial.seed, trial.students) == (3, STUDENTS["kegnet"])
    ours = make_trial(table, "fashion-mnist", "our default", 3, data, data)
    standard = get_preset("standard")
    assert ours.options.preset == (opening.QUICK["resnet14"] if preset == "quick" else standard)


@pytest.mark.slow
def test_it_is_resumed_and_rows_may_be_added(tiny_table, tmp_path, monkeypatch):
    folder = make_svhn(tmp_path)
    first = call(folder, rows=[TUCKER, "T+Normal"])
    assert list(first.parts["svhn"].rows) == ["original", TUCKER, "T+Normal"]
    monkeypatch.setattr(module, "train_new", None)  # must not be called again
    monkeypatch.setattr(PublishedTrial, "_make", None)
    again = call(folder, resume=True, rows=["T+Normal", TUCKER])
    assert again.parts == first.parts
    monkeypatch.undo()
    more = call(folder, resume=True, rows=[TUCKER, "T+Normal", "T+Uniform"])
    assert more.parts["svhn"].rows["T+Normal"] == first.parts["svhn"].rows["T+Normal"]
    assert "T+Uniform" in more.parts["svhn"].rows
    with pytest.raises(UsageError, match="preset was 'quick', is 'paper'"):
        call(folder, resume=True, preset="paper")
    with pytest.raises(UsageError, match="students was 'paper', is 'kegnet'"):
        call(folder, resume=True, students="kegnet")
    with pytest.raises(UsageError, match="already holds a run"):
        call(folder)


SOME = (TUCKER, "T+Uniform", "T+Sample", TRAINED)


@pytest.fixture(scope="module")
def two_seeds(tiny_table, tmp_path_factory):
    """Some rows with two seeds, in the first of which noise fails."""
    folder = make_svhn(tmp_path_factory.mktemp("seeds"))
    make = PublishedTrial._make

    def failing(self, run, teacher):
        if self.folder.name == "T-Uniform-0":
            raise ValueError("no noise today")
        return make(self, run, teacher)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PublishedTrial, "_make", failing)
        return call(folder, seeds=2, rows=SOME), folder


def test_each_seed_has_its_teacher_and_its_samples(two_seeds):
    out = two_seeds[1] / "out"
    paths = [out / f"teachers/svhn-{seed}.pt" for seed in (0, 1)]
    prints = [fingerprint(load_teacher(path).state_dict()) for path in paths]
    assert prints[0] != prints[1]
    for seed in (0, 1):
        assert options_of(out, TRAINED, seed)["seed"] == seed
        assert options_of(out, TRAINED, seed)["teacher_sha256"] == prints[seed]
    trained = json.loads((out / "svhn/T-training-data-1/trial.json").read_text())
    assert trained["images"] == 60  # made-up training images; there are 40 to test by


def test_means_are_over_the_seeds_that_did_not_fail(two_seeds):
    result, folder = two_seeds
    part, name = result.parts["svhn"], NAMES[1]
    assert result.failed == {"svhn, T+Uniform, seed 0": "ValueError: no noise today"}
    test = load_dataset("svhn", DOMAINS["svhn"], "test", folder)
    paths = [folder / f"out/teachers/svhn-{seed}.pt" for seed in (0, 1)]
    teachers = [accuracy(load_classifier(path), test) for path in paths]
    assert part.rows["original"][name].mean == pytest.approx(sum(teachers) / 2)

    def last(row, seed):
        return json.loads((folder / f"out/svhn/{row}-{seed}/trial.json").read_text())["last"][name]

    assert part.rows["T+Uniform"][name] == Spread(pytest.approx(last("T-Uniform", 1)), None, 1)
    few = [last("T-Sample", seed) for seed in (0, 1)]
    assert part.rows["T+Sample"][name].mean == pytest.approx(sum(few) / 2)
    assert part.rows["T+Sample"][name].std == pytest.approx(abs(few[0] - few[1]) / 2**0.5)


def save(path, arch, name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_net(arch, DOMAINS[name])
    save_classifier(path, Classifier(net, DOMAINS[name], arch))
    return path


def test_a_teacher_of_ones_own(tiny_table, tmp_path):
    folder = make_svhn(tmp_path)
    path = save(tmp_path / "mine.pt", "lenet5", "svhn")
    result = call(folder, teacher=path, rows=[TUCKER], seeds=2)
    assert result.teacher == "mine.pt"
    assert not (folder / "out/teachers").exists()
    data = load_dataset("svhn", DOMAINS["svhn"], "train", folder)
    sha256 = check_teacher(path, "svhn", data)
    assert options_of(folder / "out", TUCKER, 1)["teacher_sha256"] == sha256
    other = save(tmp_path / "other.pt", "lenet5", "svhn")
    load = torch.load(other, weights_only=True)
    load["model_state"]["fc2.bias"] += 1
    torch.save(load, other)
    with pytest.raises(UsageError, match="teacher_sha256 was"):
        call(folder, teacher=other, rows=[TUCKER], resume=True)


def test_other_teachers_are_refused_before_any_work(tmp_path):
    lenet = save(tmp_path / "lenet.pt", "lenet5", "mnist")
    resnet = save(tmp_path / "resnet.pt", "resnet14", "svhn")
    fashion = save(tmp_path / "fashion.pt", "lenet5", "fashion-mnist")
    assert len(check_teacher(lenet, "mnist", None)) == 64  # which says what it is: no data needed
    with pytest.raises(UsageError, match=r"Expected a resnet14 of fashion-mnist.*a net of mnist"):
        check_teacher(lenet, "fashion-mnist", None)
    with pytest.raises(UsageError, match=r"Expected a resnet14 of fashion-mnist.*holds a lenet5"):
        check_teacher(fashion, "fashion-mnist", None)
    with pytest.raises(UsageError, match="Expected a resnet14 of fashion-mnist"):
        check_teacher(resnet, "fashion-mnist", None)
    with pytest.raises(UsageError, match=r"Expected a lenet5 of mnist.*a net of fashion-mnist"):
        check_teacher(fashion, "mnist", None)
    with pytest.raises(CheckpointError, match="There is no file"):
        check_teacher(tmp_path / "none.pt", "mnist", None)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "odd.pt")
    with pytest.raises(UsageError, match="Expected a lenet5 of mnist"):
        check_teacher(tmp_path / "odd.pt", "mnist", None)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_released_teacher_says_neither_architecture_nor_domain(tmp_path, zipped):
    net = train("lenet5", None, DOMAINS["mnist"], 0).net
    path = tmp_path / "released.pth.tar"
    torch.save({"model_state": net.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    inputs = torch.rand(1_200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = net(DOMAINS["mnist"].normalize(inputs)).argmax(1)
    labels[1_000:] = (labels[1_000:] + 1) % 10  # beyond those that are shown
    assert len(check_teacher(path, "mnist", LabelledData(inputs, labels, "its own"))) == 64
    others = LabelledData(inputs, (labels + 1) % 10, "others")
    with pytest.raises(UsageError, match=r"a lenet5 of mnist.* 0 % of 1,000 training images"):
        check_teacher(path, "mnist", others)


def test_teachers_learn_as_long_as_the_preset_says(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(module, "train_new", lambda *a, **options: trained.append((a, options)))
    monkeypatch.setattr(module, "save_classifier", lambda path, net: write_text(path, "net"))
    table = Table(Run.create(tmp_path / "out", "table1", {}), "code", "paper", None, "cpu")
    for _ in range(2):
        module._train_teacher(table, "fashion-mnist", 1, "data", "cpu")
    ((arguments, options),) = trained  # once
    assert arguments == ("resnet14", "data", DOMAINS["fashion-mnist"], 30)
    assert options["seed"] == 1


class Notes(Progress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


# --- The plan ---


@pytest.fixture
def planned(tiny_table, monkeypatch):
    """Plans as they are, of noise with two seeds."""
    monkeypatch.setattr(module, "plan_trials", planning.plan_trials)
    return {"rows": [TUCKER, "T+Normal"], "seeds": 2, "device": "cpu", "workers": 1}


def test_a_plan_counts_teachers_and_trials_and_writes_nothing(planned, tmp_path):
    folder = make_svhn(tmp_path)
    common = {**planned, "data_root": folder, "out": folder / "out"}
    found = plan_table1(["svhn"], **{**common, "rows": [TUCKER, "T+Normal", TRAINED]})
    assert {s.name: s.steps for s in found.stages} == {
        "teachers of svhn": 2, "svhn, T+Normal": 2, f"svhn, {TRAINED}": 2,
    }  # fmt: skip
    assert all(s.seconds for s in found.stages)
    assert found.disk > 8 * (3 * 32 * 32 + 10) * 4  # of the inputs that are made once
    assert not (folder / "out").exists()
    one = plan_table1(["svhn"], **{**common, "seeds": 1})
    assert one.stages[1].steps == 1
    assert one.stages[0].name == "teachers of svhn"


def test_the_time_of_a_teacher_and_of_a_flow_is_measured(planned, tmp_path, monkeypatch):
    folder, done = make_svhn(tmp_path), []
    recipe = {**TINY_RECIPE, "steps": 40_000, "kegnet_steps": 40_000}
    monkeypatch.setattr(recipes, "QUICK", recipe)
    monkeypatch.setattr(module, "save_classifier", lambda *a: done.append(a))
    found = plan_table1(
        ["svhn"], **{**planned, "rows": ["T+KegNet", "T+BDNF"]}, data_root=folder, out=folder / "o"
    )
    seconds = {s.name: s.seconds for s in found.stages}
    assert seconds["teachers of svhn"] > 0
    assert seconds["svhn, T+KegNet"] > 2 * 40_000 * 1e-4  # no step is faster than 0.1 ms
    assert seconds["svhn, T+BDNF"] > 2 * 40_000 * 1e-4
    assert done == []


def test_it_begins_with_its_folder_and_its_plan_of_what_is_left(planned, tmp_path):
    folder, notes = make_svhn(tmp_path), Notes()
    call(folder, **{**planned, "seeds": 1}, progress=notes)
    assert notes.notes[0] == f"Run: {folder / 'out'}"
    assert notes.notes[1].startswith("Plan: about ")
    assert re.search(r": teachers of svhn .* s \(1\), svhn, T\+Normal .* s \(1\)", notes.notes[1])
    again = Notes()
    call(folder, **{**planned, "seeds": 1}, resume=True, progress=again)
    assert not any(note.startswith("Plan") for note in again.notes)
    more = {**planned, "resume": True, "data_root": folder, "out": folder / "out"}
    left = plan_table1(["svhn"], **more)
    assert {s.name: s.steps for s in left.stages} == {"teachers of svhn": 1, "svhn, T+Normal": 1}


def test_what_the_disk_cannot_hold_is_refused_before_there_is_a_folder(
    planned, tmp_path, monkeypatch
):
    folder, usage = make_svhn(tmp_path), shutil.disk_usage
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda p: usage(p)._replace(free=1_000))
    with pytest.raises(UsageError, match=r"would write .* 1,000 are free.*fewer --data, --row"):
        call(folder, **planned)
    assert not (folder / "out").exists()


# --- Damages ---


@pytest.fixture(scope="module")
def little(tiny_table, tmp_path_factory):
    """A finished table of two rows, which tests only copy."""
    folder = make_svhn(tmp_path_factory.mktemp("little"))
    call(folder, rows=[TUCKER, "T+Normal"])
    return folder


PARTS = {
    "svhn/T-Normal-0/trial.json": "svhn, T+Normal, seed 0, stage trial",
    "svhn/T-Normal-0/run.json": "svhn, T+Normal, seed 0, stage all",
    "svhn/Tucker--T--0/trial.json": f"svhn, {TUCKER}, seed 0, stage trial",
    "teachers/svhn-0.pt": "stage teacher svhn 0",
}


@pytest.mark.parametrize("part", slow_but("teachers/svhn-0.pt", PARTS))
def test_what_is_damaged_is_named_and_made_again(part, little, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(little, folder)
    path = folder / "out" / part
    path.write_bytes(path.read_bytes()[:30])
    again = {"rows": [TUCKER, "T+Normal"], "resume": True}
    with pytest.raises(CheckpointError) as caught:
        call(folder, **again)
    assert f"{path} ({PARTS[part]}): " in str(caught.value)
    assert "add --repair" in str(caught.value)
    assert len(path.read_bytes()) == 30
    mended, notes = call(folder, **again, repair=True), Notes()
    assert mended.parts == read_result(little / "out", TableResult).parts
    assert call(folder, **again, progress=notes).parts == mended.parts
    assert not any("made again" in note for note in notes.notes)


def test_a_trial_that_was_stopped_says_what_of_it_is_damaged(little, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(little, folder)
    again = {"rows": ["T+Uniform"], "resume": True}

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("freia_kd.experiments.trial.train_on", stopped)
        with pytest.raises(KeyboardInterrupt):
            call(folder, **again)
    inputs = folder / "out/svhn/T-Uniform-0/checkpoints/inputs.safetensors"
    inputs.write_bytes(inputs.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"inputs\.safetensors \(.*Uniform.*stage inputs"):
        call(folder, **again)
    mended = call(folder, **again, repair=True)
    straight = tmp_path / "straight"
    shutil.copytree(little, straight)
    assert mended.parts == call(straight, **again).parts


def test_a_teacher_that_was_stopped_goes_on(tiny_table, tmp_path, monkeypatch):
    folder, steps = make_svhn(tmp_path), []
    monkeypatch.setattr(module, "train_new", partial(train_new, batch_size=20))
    monkeypatch.setattr("freia_kd.training.checkpoints.SAVE_EVERY", 0.0)
    step = torch.optim.Adam.step

    def counted(optimizer, *arguments):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(optimizer, *arguments)

    total = 3 * TABLE1["svhn"].epochs["quick"]
    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        call(folder, rows=[TUCKER])
    call(folder, rows=[TUCKER], resume=True)
    assert len(steps) == total + 1  # the fifth was begun twice
    assert not list((folder / "out/checkpoints").glob("teacher-*"))


def test_one_process_at_a_time_works_on_a_trial(tiny_table, little, tmp_path):
    data = LabelledData(torch.rand(20, 3, 32, 32), torch.arange(20) % 10, "data")
    table = Table(Run.create(tmp_path / "out", "table1", {}), "quick", "paper", None, "cpu")
    table = replace(table, teacher=little / "out/teachers/svhn-0.pt")
    trial = make_trial(table, "svhn", "T+Normal", 0, data, data)
    with locked(trial.folder), pytest.raises(UsageError, match="Another process works on"):
        trial.run()


def test_by_default_all_parts_whose_data_are_there(tiny_table, tmp_path):
    folder, notes = make_svhn(tmp_path), Notes()
    found = opening._load([], folder, False, notes)
    assert list(found) == ["svhn"]
    assert [note.split(":")[0] for note in notes.notes] == [
        "mnist is left out of the table", "fashion-mnist is left out of the table",
    ]  # fmt: skip
    assert all("--download" in note and "\n" not in note for note in notes.notes)
    with pytest.raises(UsageError, match=r"--data-root.*--download"):
        opening._load([], tmp_path / "nothing", False, notes)


def test_samples_are_one_of_each_class():
    data = LabelledData(torch.rand(50, 1, 4, 4), torch.arange(50) % 10, "data")
    few = one_of_each(data, 0)
    assert few.labels.tolist() == list(range(10))
    assert not torch.equal(few.inputs, one_of_each(data, 1).inputs)
    assert torch.equal(few.inputs, one_of_each(data, 0).inputs)


def shares(value):
    return {name: Proportion.of(value, 1000) for name in "123"}


def gains(right, seeds):
    return recoveries(right, "T+BDNF", seeds, "123")["2"]


def test_recovery_is_relative_to_training_data():
    right = {(TUCKER, 0): shares(0.5), ("T+BDNF", 0): shares(0.7), (TRAINED, 0): shares(0.9)}
    assert gains(right, 1).mean == pytest.approx(0.5)
    # A trial that failed leaves its seed out.
    right |= {(TUCKER, 1): shares(0.5), ("T+BDNF", 1): shares(0.6)}
    assert gains(right, 2) == Spread(pytest.approx(0.5), None, 1)
    right |= {(TRAINED, 1): shares(0.9)}
    del right["T+BDNF", 1]
    assert gains(right, 2).mean == pytest.approx(0.5)
    right[TRAINED, 0] = shares(0.505)
    assert gains(right, 2) is None


def test_mistakes(tmp_path):
    faults = r"part of the table 'cifar10'.*row of the table 'T\+Photos'.*family.*preset.*seeds"
    with pytest.raises(ConfigError, match=faults) as e:
        table1(
            ["cifar10"], rows=["T+Photos"], students="mine", preset="best", seeds=0,
            out=tmp_path / "o",
        )  # fmt: skip
    assert len(e.value.faults) == 5
    with pytest.raises(ConfigError, match=r"teacher: .*none.*--data"):
        table1(teacher=tmp_path / "t.pt", out=tmp_path / "o")
    with pytest.raises(UsageError, match="pass --data-root"):
        table1(["mnist"], data_root=tmp_path, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()
