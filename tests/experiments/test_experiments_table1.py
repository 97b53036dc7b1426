"""Table 1: every row, on made-up data in SVHN's format."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from freia_kd.compression import load_classifier, load_teacher
from freia_kd.config import DistillationOptions, Preset, get_preset
from freia_kd.data.datasets import LabelledData
from freia_kd.errors import ConfigError, UsageError
from freia_kd.evaluation import accuracy
from freia_kd.experiments import table1 as module
from freia_kd.experiments.table1 import (
    APPROACHES,
    TABLE1,
    TRAINED,
    TUCKER,
    choose_preset,
    make_method,
    one_of_each,
    recoveries,
    table1,
)
from freia_kd.job.opening import fingerprint
from freia_kd.report.schema import Proportion, Spread, TableResult
from freia_kd.report.storage import read_result
from freia_kd.runs import Run
from freia_kd.synthesizers.bdnf import BDNF
from freia_kd.synthesizers.kegnet import KegNet
from freia_kd.synthesizers.noise import Noise, Uniform
from freia_kd.teachers import Classifier, build_net

TINY = Preset("quick", 8, 4, DistillationOptions(steps=1, batch_size=4))


def make_svhn(folder):
    """Made-up files of SVHN."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 40)):
        images = generator.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels})
    return folder


def train(arch, data, domain, epochs, *, seed, **options):
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
        patch.setitem(module.QUICK, "lenet5", TINY)
        patch.setattr(BDNF, "presets", {"quick": {"steps": 1, "batch_size": 4}})
        patch.setattr(KegNet, "presets", {"quick": {"steps": 1, "batch_size": 8}})
        patch.setattr(Noise, "presets", {"quick": {"tries": 1}})
        patch.setitem(TABLE1, "svhn", replace(TABLE1["svhn"], arch="lenet5"))
        patch.setattr(module, "train_new", train)
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


def test_every_row_beside_the_papers(made):
    result, out = made
    assert read_result(out, TableResult) == result
    assert result.failed == {}
    part = result.parts["svhn"]
    assert list(part.rows) == ["original", *APPROACHES]
    # Table 1 of the paper, section 5.2
    assert part.published["T+BDNF"] == [72.1, 78.0, 66.5]
    assert part.published["T+Normal"] == [70.57, 63.8, 22.9]
    test = module.load_dataset("svhn", module.DOMAINS["svhn"], "test", out.parent)
    for name, row in (("2", "T+Uniform"), ("3", TUCKER), ("1", TRAINED)):
        kind = "compressed" if row == TUCKER else "student"
        student = load_classifier(out / f"svhn/{stem(row)}-0/{kind}-{name}.safetensors")
        assert part.rows[row][name] == Spread(accuracy(student, test), None, 1)
    assert "| T\\+BDNF | 72.1 | " in (out / "table1.md").read_text().replace("| T+", "| T\\+")


def test_rows_are_the_papers_methods(made):
    def options(row):
        return options_of(made[1], row)

    flow = options("T+BDNF")["synthesizers"]["bdnf"]
    assert (flow["base"], flow["prior"], flow["contrast"]) == ("gaussian", False, [1.0, 2.0])
    assert options("T+BDNF(Sample)")["synthesizers"]["bdnf"] == flow
    assert options("T+our default")["synthesizers"]["bdnf"]["base"] == "spectral"
    assert options("T+KegNet")["synthesizers"]["kegnet"]["generators"] == 1
    assert options("T+BDNF")["samples"] is None
    assert "one of each" in options("T+BDNF(Sample)")["samples"]
    assert "one of each" in options("T+Sample")["samples"]
    for row in ("T+Sample", TRAINED):  # as they are
        assert options(row)["synthesizers"]["samples"]["augment"] == "never"
    assert flow["augment"] is False
    assert options(TRAINED)["samples"] == "svhn"
    kept = {row: students(made[1], row) for row in APPROACHES}
    assert kept.pop("T+our default") == {"match"}
    assert len(kept) == len(APPROACHES) - 1
    assert all(modes == {"freeze"} for modes in kept.values())


def students(out, row):
    record = json.loads((out / f"svhn/{stem(row)}-0/run.json").read_text())
    return {spec["bn"] for spec in record["students"].values()}


def test_presets():
    kegnet, ours = (
        {preset: choose_preset("fashion-mnist", row, preset) for preset in ("quick", "paper")}
        for row in ("T+KegNet", "T+our default")
    )
    assert [sizes.set_size for sizes in kegnet.values()] == [4_096, 6_400]
    assert kegnet["paper"].training.divergence == "forward-kl"
    assert {sizes.bn for sizes in kegnet.values()} == {"freeze"}
    assert (ours["quick"].set_size, ours["quick"].bn) == (4_096, "match")
    assert ours["paper"] == get_preset("standard")
    for name in ("mnist", "fashion-mnist"):
        assert list(TABLE1[name].epochs) == ["quick", "paper"]


def test_kegnet_has_its_own_options_by_data_set_with_the_papers_preset():
    quick, paper = (make_method("mnist", "T+KegNet", p).synthesizers[0] for p in ("quick", "paper"))
    assert (quick.options.generators, paper.options.generators) == (1, 1)
    assert quick.options.beta != 0
    assert paper.options.beta == 0
    betas = {name: TABLE1[name].kegnet.get("beta") for name in ("mnist", "fashion-mnist")}
    assert betas == {"mnist": 0, "fashion-mnist": 10}  # KegNet's code


def test_it_is_resumed(made, monkeypatch):
    first, out = made
    (out / "svhn/T-Normal-0/accuracy.json").unlink()
    monkeypatch.setattr(module, "train_new", None)  # must not be called again
    assert call(out.parent, resume=True).parts == first.parts
    with pytest.raises(UsageError, match="preset was 'quick', is 'paper'"):
        call(out.parent, resume=True, preset="paper")
    with pytest.raises(UsageError, match="already holds a run"):
        call(out.parent)


ROWS = (TUCKER, "T+Uniform", "T+Sample", TRAINED)


@pytest.fixture(scope="module")
def two_seeds(tiny_table, tmp_path_factory):
    """Some rows with two seeds, in the first of which noise fails."""
    folder = make_svhn(tmp_path_factory.mktemp("seeds"))
    fit = Uniform.fit

    def failing(self, teacher, samples, checkpoints, *more):
        if checkpoints.folder.name == "T-Uniform-0":
            raise ValueError("no noise today")
        return fit(self, teacher, samples, checkpoints, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Uniform, "fit", failing)
        patch.setattr(module, "APPROACHES", {k: APPROACHES[k] for k in ROWS})
        return call(folder, seeds=2), folder


def test_each_seed_has_its_teacher_its_samples_and_its_students(two_seeds):
    out = two_seeds[1] / "out"
    paths = [out / f"teachers/svhn-{seed}.pt" for seed in (0, 1)]
    prints = [fingerprint(load_teacher(path).state_dict()) for path in paths]
    assert prints[0] != prints[1]
    taken = {0: set(), 1: set()}
    for row in ROWS:
        for seed in (0, 1):
            options = options_of(out, row, seed)
            assert options["seed"] == seed
            assert options["teacher_sha256"] == prints[seed]
            taken[seed].add((row, options["samples_sha256"]))
    assert taken[0] ^ taken[1] == {(r, d) for s in (0, 1) for r, d in taken[s] if r == "T+Sample"}
    trained = json.loads((out / "svhn/T-training-data-1/trial.json").read_text())
    assert trained["images"] == 60  # made-up training images; there are 40 to test by


def test_means_are_over_the_seeds_that_did_not_fail(two_seeds):
    result, folder = two_seeds
    part = result.parts["svhn"]
    assert result.failed == {"svhn, T+Uniform, seed 0": "ValueError: no noise today"}
    test = module.load_dataset("svhn", module.DOMAINS["svhn"], "test", folder)

    def right(path):
        return accuracy(load_classifier(folder / "out" / path), test)

    teachers = [right(f"teachers/svhn-{seed}.pt") for seed in (0, 1)]
    assert teachers[0] != teachers[1]
    assert part.rows["original"]["3"].mean == pytest.approx(sum(teachers) / 2)
    noise = right("svhn/T-Uniform-1/student-2.safetensors")
    assert part.rows["T+Uniform"]["2"] == Spread(pytest.approx(noise), None, 1)
    few = [right(f"svhn/T-Sample-{seed}/student-1.safetensors") for seed in (0, 1)]
    row = part.rows["T+Sample"]["1"]
    assert row.mean == pytest.approx(sum(few) / 2)
    assert row.std == pytest.approx(abs(few[0] - few[1]) / 2**0.5)


def test_teachers_learn_as_long_as_the_preset_says(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(module, "train_new", lambda *a, **options: trained.append((a, options)))
    monkeypatch.setattr(module, "save_classifier", lambda path, net: path.touch())
    run = Run.create(tmp_path / "out", "table1", {})
    for _ in range(2):
        module._train_teacher(run, "fashion-mnist", 1, "paper", "data", "cpu")
    ((arguments, options),) = trained  # once
    assert arguments == ("resnet14", "data", module.DOMAINS["fashion-mnist"], 30)
    assert options["seed"] == 1


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_results_kept_have_the_papers_figures(name):
    path = Path(__file__).parents[2] / f"benchmarks/results/table1-{name}.json"
    kept = json.loads(path.read_text())["parts"][name]["published"]
    assert kept == {row: list(figures) for row, figures in TABLE1[name].published.items()}


def test_samples_are_one_of_each_class():
    data = LabelledData(torch.rand(50, 1, 4, 4), torch.arange(50) % 10, "data")
    few = one_of_each(data, 0)
    assert few.labels.tolist() == list(range(10))
    assert not torch.equal(few.inputs, one_of_each(data, 1).inputs)
    assert torch.equal(few.inputs, one_of_each(data, 0).inputs)


def shares(value):
    return {name: Proportion.of(value, 1000) for name in "123"}


def test_recovery_is_relative_to_training_data():
    right = {(TUCKER, 0): shares(0.5), ("T+BDNF", 0): shares(0.7), (TRAINED, 0): shares(0.9)}
    assert recoveries(right, "T+BDNF", 1)["2"].mean == pytest.approx(0.5)
    # A trial that failed leaves its seed out.
    right |= {(TUCKER, 1): shares(0.5), ("T+BDNF", 1): shares(0.6)}
    assert recoveries(right, "T+BDNF", 2)["2"] == Spread(pytest.approx(0.5), None, 1)
    right |= {(TRAINED, 1): shares(0.9)}
    del right["T+BDNF", 1]
    assert recoveries(right, "T+BDNF", 2)["2"].mean == pytest.approx(0.5)
    right[TRAINED, 0] = shares(0.505)
    assert recoveries(right, "T+BDNF", 2)["2"] is None


def test_mistakes(tmp_path):
    with pytest.raises(ConfigError, match=r"part of the table 'cifar10'.*preset.*seeds") as e:
        table1(["cifar10"], preset="best", seeds=0, out=tmp_path / "o")
    assert len(e.value.faults) == 3
    with pytest.raises(ConfigError, match="Expected parts of the table"):
        table1([], out=tmp_path / "o")
    with pytest.raises(UsageError, match="pass --data-root"):
        table1(["mnist"], data_root=tmp_path, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()
