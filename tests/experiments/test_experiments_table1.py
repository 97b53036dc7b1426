"""Table 1: every row, on made-up data in SVHN's format."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.io import savemat

from freia_kd import reproduce
from freia_kd.cli.main import main
from freia_kd.cli.reproduce import PARTS
from freia_kd.compare.cells import REFERENCE
from freia_kd.data.datasets import LabelledData
from freia_kd.distillation import DistillationOptions, predict
from freia_kd.errors import UsageError
from freia_kd.pipeline import fingerprint
from freia_kd.presets import PRESETS, Preset
from freia_kd.report.schema import Spread, TableResult
from freia_kd.report.storage import read_result
from freia_kd.reproduce import APPROACHES, TABLE1, one_of_each, table1
from freia_kd.runs.run import Run
from freia_kd.synthesizers.bdnf import BDNF
from freia_kd.synthesizers.kegnet import KegNet
from freia_kd.synthesizers.noise import NoiseOptions, Uniform
from freia_kd.teachers import (
    Classifier,
    build_net,
    load_classifier,
    load_teacher,
    save_classifier,
)


def make_svhn(folder):
    """Made-up files of SVHN."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 40)):
        images = generator.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels})
    return folder


@pytest.fixture(scope="module")
def tiny_table():
    """Makes the part on SVHN a matter of seconds; torchvision's checksums are not asked for."""
    import torchvision.datasets.svhn

    student = DistillationOptions(steps=1, batch_size=4)
    setting = reproduce.Setting("resnet14", {"quick": 1}, {}, TABLE1["svhn"].published)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.datasets.svhn, "check_integrity", lambda *a, **k: True)
        patch.setitem(reproduce.QUICK, "resnet14", Preset("quick", 8, 4, student))
        patch.setattr(BDNF, "presets", {"quick": {"steps": 1, "batch_size": 4}})
        patch.setattr(KegNet, "presets", {"quick": {"steps": 1, "batch_size": 8}})
        patch.setattr(
            NoiseOptions, "__init__", lambda self, tries=1: object.__setattr__(self, "tries", 1)
        )
        patch.setitem(TABLE1, "svhn", setting)
        yield


@pytest.fixture(scope="module")
def made(tiny_table, tmp_path_factory):
    """The output of a whole run by the command, and the folder that it left."""
    folder = tmp_path_factory.mktemp("table1")
    return command(make_svhn(folder), folder / "out").output, folder / "out"


def command(data, out, *more):
    arguments = ["reproduce", "table1", "--data", "svhn", "--data-root", str(data), "--seeds", "1"]
    arguments += ["--workers", "1", "--device", "cpu", "--out", str(out), *more]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def test_every_row_beside_the_papers(made):
    output, out = made
    result = json.loads((out / "table1.json").read_text())
    assert result["failed"] == {}
    part = result["parts"]["svhn"]
    assert list(part["rows"]) == ["original", *APPROACHES]
    # Table 1 of the paper, section 5.2
    assert part["published"]["T+BDNF"] == [72.1, 78.0, 66.5]
    assert part["published"]["T+Normal"] == [70.57, 63.8, 22.9]
    test = reproduce.load_dataset("svhn", reproduce.DOMAINS["svhn"], "test", out.parent)
    for name, row in (("2", "T+Uniform"), ("3", "Tucker (T)"), ("1", "T+training data")):
        stem = "".join(c if c.isalnum() else "-" for c in row)
        student = load_classifier(out / f"svhn/{stem}-0/student-{name}.safetensors")
        right = predict(student, test).eq(test.labels).double().mean().item()
        assert part["rows"][row][name]["mean"] == pytest.approx(right)
    assert "| T+BDNF | 72.1 | " in (out / "table1.md").read_text()
    assert set(PARTS) == set(TABLE1)
    for text in ("72.1", "T+our default", "recovery"):
        assert text in output


def test_rows_are_the_papers_methods(made):
    def options(row):
        return json.loads((made[1] / f"svhn/{row}-0/run.json").read_text())["options"]

    flow = options("T-BDNF")["synthesizers"]["bdnf"]
    assert (flow["base"], flow["prior"], flow["contrast"]) == ("gaussian", False, [1.0, 2.0])
    assert options("T-our-default")["synthesizers"]["bdnf"]["base"] == "spectral"
    assert options("T-KegNet")["synthesizers"]["kegnet"]["generators"] == 1
    assert options("T-BDNF")["samples"] is None
    assert "one of each" in options("T-BDNF-Sample-")["samples"]
    assert "one of each" in options("T-Sample")["samples"]
    assert options("T-training-data")["samples"] == "svhn"
    kept = {row.name[:-2]: options(row.name[:-2])["preset"]["student"]["bn"] for row in cells(made)}
    assert kept.pop("T-our-default") == "match"
    assert len(kept) == len(APPROACHES) - 1
    assert set(kept.values()) == {"freeze"}


def cells(made):
    return [folder for folder in (made[1] / "svhn").iterdir() if folder.is_dir()]


def test_presets():
    kegnet, ours = (
        {preset: reproduce._sizes("mnist", row, preset) for preset in reproduce.SIZES}
        for row in ("T+KegNet", "T+our default")
    )
    assert [kegnet[p].set_size for p in reproduce.SIZES] == [8_192, 6_400]
    assert kegnet["paper"].student.divergence == "forward-kl"
    assert {sizes.student.bn for sizes in kegnet.values()} == {"freeze"}
    assert ours["quick"].set_size == 8_192
    assert ours["paper"] == PRESETS["standard"]
    for name in ("mnist", "fashion-mnist"):
        assert list(TABLE1[name].epochs) == list(reproduce.SIZES)


def test_kegnet_has_its_own_options_by_data_set_with_the_papers_preset(tmp_path):
    run, data = Run(tmp_path, {}), LabelledData(torch.rand(10, 1), torch.arange(10), "data")
    for preset, expected in (("quick", {}), ("paper", {"kegnet.beta": 0.0})):
        common = {"preset": reproduce._sizes("mnist", "T+KegNet", preset)}
        cell = reproduce._cell(run, "mnist", "T+KegNet", 0, common, data)
        assert cell.options["settings"] == {**reproduce.SETTINGS, **expected}
    betas = {name: TABLE1[name].kegnet.get("beta") for name in ("mnist", "fashion-mnist")}
    assert betas == {"mnist": 0, "fashion-mnist": 10}  # KegNet's code


def test_it_is_resumed(made, monkeypatch):
    out = made[1]
    first = json.loads((out / "table1.json").read_text())
    (out / "svhn/T-Normal-0/cell.json").unlink()
    monkeypatch.setattr(reproduce, "train_teacher", None)  # must not be called again
    command(out.parent, out, "--resume")
    assert json.loads((out / "table1.json").read_text())["parts"] == first["parts"]


ROWS = ("Tucker (T)", "T+Uniform", "T+Sample", "T+training data")


@pytest.fixture(scope="module")
def two_seeds(tiny_table, tmp_path_factory):
    """Some rows with a small teacher and two seeds, in the first of which noise fails."""
    folder = tmp_path_factory.mktemp("seeds")
    student = DistillationOptions(steps=1, batch_size=4)
    fit = Uniform.fit

    def failing(self, teacher, samples, run, *more):
        if run.folder.name == "T-Uniform-0":
            raise ValueError("no noise today")
        return fit(self, teacher, samples, run, *more)

    def train(name, path, *, arch, seed, **options):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = build_net(arch, reproduce.DOMAINS[name])
        net.fc2.weight.data *= 20  # so that it does not always say the same
        save_classifier(path, Classifier(net, reproduce.DOMAINS[name], arch))

    with pytest.MonkeyPatch.context() as patch:
        setting = replace(TABLE1["svhn"], arch="lenet5")
        patch.setitem(TABLE1, "svhn", setting)
        patch.setitem(reproduce.QUICK, "lenet5", Preset("quick", 8, 4, student))
        patch.setattr(Uniform, "fit", failing)
        patch.setattr(reproduce, "train_teacher", train)
        patch.setattr(reproduce, "APPROACHES", {k: APPROACHES[k] for k in ROWS})
        place = {"data_root": make_svhn(folder), "device": "cpu", "workers": 1}
        return table1(["svhn"], seeds=2, out=folder / "out", **place), folder


def test_each_seed_has_its_teacher_its_samples_and_its_students(two_seeds):
    out = two_seeds[1] / "out"
    paths = [out / f"teachers/svhn-{seed}.pt" for seed in (0, 1)]
    prints = [fingerprint(load_teacher(path).state_dict()) for path in paths]
    assert prints[0] != prints[1]
    drawn = {0: set(), 1: set()}
    for row in ROWS:
        for seed in (0, 1):
            stem = "".join(c if c.isalnum() else "-" for c in row)
            options = json.loads((out / f"svhn/{stem}-{seed}/run.json").read_text())["options"]
            assert options["seed"] == seed
            assert options["teacher_sha256"] == prints[seed]
            drawn[seed].add((row, options["samples_sha256"]))
    assert drawn[0] ^ drawn[1] == {(r, d) for s in (0, 1) for r, d in drawn[s] if r == "T+Sample"}
    trained = json.loads((out / "svhn/T-training-data-1/cell.json").read_text())
    assert trained["images"] == 60  # made-up training images; there are 40 to test by


def test_means_are_over_the_seeds_that_did_not_fail(two_seeds):
    result, folder = two_seeds
    part = result.parts["svhn"]
    assert list(result.failed) == ["svhn T-Uniform-0"]
    assert "no noise today" in result.failed["svhn T-Uniform-0"]
    said = (folder / "out/table1.md").read_text()
    assert "Failed: svhn T-Uniform-0: ValueError: no noise today" in said
    assert read_result(folder / "out", TableResult) == result
    test = reproduce.load_dataset("svhn", reproduce.DOMAINS["svhn"], "test", folder)

    def right(path):
        classifier = load_classifier(folder / "out" / path)
        return predict(classifier, test).eq(test.labels).double().mean().item()

    teachers = [right(f"teachers/svhn-{seed}.pt") for seed in (0, 1)]
    assert teachers[0] != teachers[1]
    assert part.rows["original"]["3"].mean == pytest.approx(sum(teachers) / 2)
    noise = right("svhn/T-Uniform-1/student-2.safetensors")
    assert part.rows["T+Uniform"]["2"] == Spread(pytest.approx(noise), None, 1)
    few = [right(f"svhn/T-Sample-{seed}/student-1.safetensors") for seed in (0, 1)]
    assert part.rows["T+Sample"]["1"].mean == pytest.approx(sum(few) / 2)
    assert part.rows["T+Sample"]["1"].std == pytest.approx(abs(few[0] - few[1]) / 2**0.5)


def test_teachers_learn_as_long_as_the_preset_says(tmp_path, monkeypatch):
    trained = {}
    monkeypatch.setattr(reproduce, "train_teacher", lambda *a, **options: trained.update(options))
    reproduce._train(reproduce.Run(tmp_path / "out", {}), "fashion-mnist", 1, "paper", {})
    assert (trained["epochs"], trained["seed"], trained["arch"]) == (30, 1, "resnet14")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_results_kept_have_the_papers_figures(name):
    path = Path(__file__).parents[1] / f"benchmarks/results/table1-{name}.json"
    kept = json.loads(path.read_text())["parts"][name]["published"]
    assert kept == {row: list(figures) for row, figures in TABLE1[name].published.items()}


def test_samples_are_one_of_each_class():
    data = LabelledData(torch.rand(50, 1, 4, 4), torch.arange(50) % 10, "data")
    few = one_of_each(data, 0)
    assert few.labels.tolist() == list(range(10))
    assert not torch.equal(few.inputs, one_of_each(data, 1).inputs)
    assert torch.equal(few.inputs, one_of_each(data, 0).inputs)


def test_recovery_is_relative_to_training_data():
    right = {
        (approach, 0): dict.fromkeys("123", value)
        for approach, value in (("Tucker (T)", 0.5), ("T+BDNF", 0.7), ("T+training data", 0.9))
    }
    assert reproduce._recovery(right, "T+BDNF", 1)["2"].mean == pytest.approx(0.5)
    # A cell that failed leaves its seed out.
    right |= {(a, 1): dict.fromkeys("123", v) for a, v in (("Tucker (T)", 0.5), ("T+BDNF", 0.6))}
    assert reproduce._recovery(right, "T+BDNF", 2)["2"] == Spread(pytest.approx(0.5), None, 1)
    right |= {("T+training data", 1): dict.fromkeys("123", 0.9)}
    del right["T+BDNF", 1]
    assert reproduce._recovery(right, "T+BDNF", 2)["2"].mean == pytest.approx(0.5)
    right["T+training data", 0] = dict.fromkeys("123", 0.505)
    assert reproduce._recovery(right, "T+BDNF", 2)["2"] is None
    assert APPROACHES["T+training data"] == REFERENCE


def test_mistakes(tmp_path):
    for arguments in (["cifar10"], []):
        with pytest.raises(UsageError, match="Expected parts of the table"):
            table1(arguments, out=tmp_path / "o")
    with pytest.raises(UsageError, match="pass --data-root"):
        table1(["mnist"], data_root=tmp_path, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()
