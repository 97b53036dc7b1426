"""Table 1: every row, on made-up data in SVHN's format."""

import json

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
from freia_kd.presets import PRESETS, Preset
from freia_kd.reproduce import APPROACHES, TABLE1, one_of_each, table1
from freia_kd.synthesizers.bdnf import BDNF
from freia_kd.synthesizers.kegnet import KegNet
from freia_kd.synthesizers.noise import NoiseOptions
from freia_kd.teachers import load_classifier


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
    setting = reproduce.Setting("resnet14", {"quick": 1}, TABLE1["svhn"].published)
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
    assert [kegnet[p].set_size for p in reproduce.SIZES] == [8_192, 65_536, 6_400]
    assert kegnet["paper"].student.divergence == "forward-kl"
    assert {sizes.student.bn for sizes in kegnet.values()} == {"freeze"}
    assert ours["quick"].set_size == 8_192
    assert ours["standard"] == ours["paper"] == PRESETS["standard"]
    for name in ("mnist", "fashion-mnist"):
        assert list(TABLE1[name].epochs) == list(reproduce.SIZES)


def test_it_is_resumed(made, monkeypatch):
    out = made[1]
    first = json.loads((out / "table1.json").read_text())
    (out / "svhn/T-Normal-0/cell.json").unlink()
    monkeypatch.setattr(reproduce, "train_teacher", None)  # must not be called again
    command(out.parent, out, "--resume")
    assert json.loads((out / "table1.json").read_text())["parts"] == first["parts"]


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
    assert reproduce._recovery(right, "T+BDNF", 1)["2"]["mean"] == pytest.approx(0.5)
    # A cell that failed leaves its seed out.
    right |= {(a, 1): dict.fromkeys("123", v) for a, v in (("Tucker (T)", 0.5), ("T+BDNF", 0.6))}
    assert reproduce._recovery(right, "T+BDNF", 2)["2"] == {"mean": pytest.approx(0.5), "std": 0.0}
    right |= {("T+training data", 1): dict.fromkeys("123", 0.9)}
    del right["T+BDNF", 1]
    assert reproduce._recovery(right, "T+BDNF", 2)["2"]["mean"] == pytest.approx(0.5)
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
