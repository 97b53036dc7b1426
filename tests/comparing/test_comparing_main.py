"""Comparisons: cells apart, a failed one reported, resumed, and judged by independent methods."""

import copy
import json
import os

import pytest
import torch

import freia_kd.job
from freia_kd.compare import compare
from freia_kd.compare.cells import NONE, Cell, families
from freia_kd.compare.evidence import Verdict
from freia_kd.compare.main import _judge, choose_methods
from freia_kd.compare.running import run_cells
from freia_kd.data.datasets import LabelledData
from freia_kd.data.synthetic import SyntheticSet
from freia_kd.distillation import agreement, predict
from freia_kd.errors import TrainingError, UsageError
from freia_kd.pipeline import load_student
from freia_kd.runs.progress import Progress
from freia_kd.synthesizers.noise import Noise


class Flat(Noise):
    """One grey, which teaches nothing."""

    name = "flat"

    def draw(self, n, generator=None):
        shape = (n, *self.teacher.domain.shape)
        return torch.rand(shape, generator=generator) * 0.01 + 0.5


class Broken(Flat):
    """Fails while it is fitted."""

    name = "broken"

    def fit(self, *arguments, **options):
        raise RuntimeError("this method is broken")


class Deadly(Flat):
    """Takes its process with it."""

    name = "deadly"

    def fit(self, *arguments, **options):
        os._exit(9)


HERE = __name__
METHODS = f"spectral,uniform,{HERE}:Flat,{HERE}:Broken"


def run(teacher, out, **options):
    common = {"students": ("1", "3"), "seeds": 2, "preset": "quick", "device": "cpu", "workers": 1}
    return compare(teacher, out=out, **{"synthesizers": METHODS, **common, **options})


@pytest.fixture(scope="session")
def compared(teacher, evaluation, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    return run(teacher, out, eval_data=evaluation, reference=True)


def test_table_files_and_failure(compared):
    data = json.loads((compared.folder / "compare.json").read_text())
    assert data == json.loads(json.dumps(compared.data))
    methods = {row["method"] for row in data["rows"]}
    assert methods == {NONE, "spectral", "uniform", f"{HERE}:Flat", "real training data"}
    assert data["rows"][-1]["method"] == "real training data"
    baseline = next(row for row in data["rows"] if row["method"] == NONE)
    assert baseline["own"] == {"1": None, "3": None}  # no training, no inputs
    assert list(data["failed"]) == [f"{HERE}:Broken, seed {seed}" for seed in (0, 1)]
    assert "this method is broken" in data["failed"][f"{HERE}:Broken, seed 0"]
    for name in ("compare.md", "compare.html", "compare.png"):
        assert (compared.folder / name).stat().st_size > 500
    html = (compared.folder / "compare.html").read_text()
    assert "this method is broken" in html
    assert 'src="http' not in html
    assert not list(compared.folder.glob("cells/*/synthetic*/train"))
    assert (compared.folder / "cells/spectral-1/student-3.pt").exists()
    for folder in (compared.folder / "cells").iterdir():
        options = json.loads((folder / "run.json").read_text())["options"]
        assert options["seed"] == int(folder.name[-1])


def test_rows_say_what_the_cells_say(compared, evaluation):
    cells = {(c["method"], c["seed"]): c for c in compared.data["cells"]}
    row = next(r for r in compared.data["rows"] if r["method"] == "spectral")
    values = [cells["spectral", seed]["accuracy"]["3"] for seed in (0, 1)]
    assert row["accuracy"]["3"]["mean"] == pytest.approx(sum(values) / 2)
    assert row["accuracy"]["3"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    for (method, seed), cell in cells.items():
        stem = method.replace(" ", "-").replace(f"{HERE}:", f"{HERE}-").replace("_", "-")
        for name in ("1", "3"):
            path = compared.folder / f"cells/{stem}-{seed}/student-{name}.pt"
            right = predict(load_student(path), evaluation).eq(evaluation.labels)
            assert cell["accuracy"][name] == right.double().mean().item()
    assert any(cell["accuracy"]["1"] != cell["accuracy"]["3"] for cell in cells.values())
    low, high = (cells[m, 0]["accuracy"]["3"] for m in (NONE, "real training data"))
    if high - low >= 0.01:
        expected = [
            (cells["spectral", s]["accuracy"]["3"] - cells[NONE, s]["accuracy"]["3"])
            / (cells["real training data", s]["accuracy"]["3"] - cells[NONE, s]["accuracy"]["3"])
            for s in (0, 1)
        ]
        assert row["recovery"]["3"]["mean"] == pytest.approx(sum(expected) / 2)
    for cell in compared.data["cells"]:
        assert cell["seconds"] == pytest.approx(sum(cell["stages"].values()))
    reference = compared.data["rows"][-1]
    assert reference["independent"] is None
    assert reference["images"] == 50


def test_nobody_is_judged_by_its_own_family(compared):
    folder = compared.folder / "cells"
    judged = json.loads((folder / "uniform-0/judged.json").read_text())
    assert set(judged) == {"spectral", f"{HERE}:Flat"}
    assert set(json.loads((folder / "compression-only-0/judged.json").read_text())) == {
        "spectral",
        "uniform",
        f"{HERE}:Flat",
    }
    assert families("bdnf+uniform") == {"spectral noise", "pixel noise"}
    assert families("bdnf(samples)") == {"spectral noise", "samples"}


def test_agreement_is_that_on_the_half_that_chose_no_weights(compared):
    cells = {
        method: Cell(method, 1, ("1", "3"), compared.folder / f"cells/{stem}-1")
        for stem, method in (("spectral", "spectral"), ("uniform", "uniform"))
    }
    found, even = [], []
    for cell in cells.values():
        judged = json.loads((cell.folder / "judged.json").read_text())
        for other in cells.values():
            for name in cell.students:
                heldout = SyntheticSet(other.folder / "synthetic/heldout")
                said = judged[other.method] if other is not cell else None
                value = said[name] if said else cell.result["students"][name]["agreement"]
                assert value == agreement(cell.student(name), heldout, half="odd")
                found.append(value)
                even.append(agreement(cell.student(name), heldout, half="even"))
    assert found != even


class Told(Cell):
    """Its students are judged as the table below says."""

    def judge(self, other):
        assert other.seed == self.seed
        return {n: EASE[other.method] + 0.01 * self.seed + 0.1 * int(n) for n in self.students}


EASE = {"uniform": 0.1, "normal": 0.3, "spectral": 0.4, f"{HERE}:Flat": 0.0, "bdnf+normal": 0.5}
EASE |= {"bdnf(samples)": 0.6, "real training data": 0.7, NONE: 0.8}


def test_each_is_judged_by_all_other_families_of_its_seed(tmp_path):
    cells = [Told(m, seed, ("1", "3"), tmp_path) for m in EASE for seed in (0, 1)]
    flat, pixel, spectral = f"{HERE}:Flat", "pixel noise", "spectral noise"
    # Mixed inputs judge nobody; the two methods of pixel noise are one judge, their mean.
    judges = {
        "uniform": {"flat": 0.0, spectral: 0.4},
        "normal": {"flat": 0.0, spectral: 0.4},
        "spectral": {"flat": 0.0, pixel: 0.2},
        flat: {spectral: 0.4, pixel: 0.2},
        "bdnf+normal": {"flat": 0.0},
        "bdnf(samples)": {"flat": 0.0, pixel: 0.2},
        NONE: {"flat": 0.0, spectral: 0.4, pixel: 0.2},
    }
    expected = {
        (m, j, (s, n)): pytest.approx(ease + 0.01 * s + 0.1 * int(n))
        for m, eases in judges.items()
        for j, ease in eases.items()
        for s in (0, 1)
        for n in ("1", "3")
    }
    said = list(_judge(cells, Progress()))
    assert all(isinstance(v, Verdict) for v in said)
    assert {v[:3]: v.agreement for v in said} == expected
    assert len(said) == len(expected)


def test_real_data_are_read_for_what_they_are_meant(
    teacher, evaluation, tmp_path, tiny, monkeypatch
):
    training = LabelledData(evaluation.inputs[:40], evaluation.labels[:40], "training")
    few = LabelledData(evaluation.inputs[40:], evaluation.labels[40:], "few")
    sets = {("few", "train"): few, ("real", "train"): training, ("real", "test"): evaluation}
    cells = tmp_path / "out/cells"
    read = []

    def load(source, domain, split, *options, **more):
        read.append((source.name, split, len(list(cells.glob("*/cell.json")))))
        return sets[source.name, split]

    monkeypatch.setattr("freia_kd.compare.main.load", load)
    options = {"samples": few, "eval_data": evaluation, "reference": True, "seeds": 1}
    methods = "spectral,samples,bdnf(samples)"
    data = run(teacher, tmp_path / "out", synthesizers=methods, **options).data
    assert read == [("few", "train", 0), ("real", "train", 0), ("real", "test", 5)]
    assert data["evaluation"] == "real (50 test images)"
    sets["real", "train"] = LabelledData(training.inputs, training.labels, "another reference")
    with pytest.raises(UsageError, match="other options"):
        run(teacher, tmp_path / "out", synthesizers=methods, resume=True, **options)
    assert data["failed"] == {}
    seen = {
        path.name: json.loads((path / "run.json").read_text())["options"]["samples"]
        for path in cells.iterdir()
    }
    assert seen == {
        "compression-only-0": None,
        "spectral-0": None,
        "samples-0": "few",
        "bdnf-samples-0": "few",
        "real-training-data-0": "training",
    }


def test_the_winner_does_not_depend_on_real_data(teacher, compared, tmp_path, tiny):
    blind = run(teacher, tmp_path / "out")
    assert blind.data["ranking"] == compared.data["ranking"]
    assert blind.data["evaluation"] is None
    assert blind.data["rows"][0]["accuracy"] == {"1": None, "3": None}


def test_resuming_runs_only_what_is_missing(teacher, tmp_path, tiny, monkeypatch):
    methods = {"synthesizers": "spectral,uniform", "seeds": 1, "students": ("1",)}
    first = run(teacher, tmp_path / "out", **methods)
    with pytest.raises(UsageError, match="already holds a run"):
        run(teacher, tmp_path / "out", **methods)
    (tmp_path / "out/cells/uniform-0/cell.json").unlink()
    trained = []
    train = freia_kd.job.Job.train
    monkeypatch.setattr(
        freia_kd.job.Job,
        "train",
        lambda job, *a: trained.append(job.run.folder.name) or train(job, *a),
    )
    again = run(teacher, tmp_path / "out", resume=True, **methods)
    assert trained == ["uniform-0"]
    assert again.data["ranking"] == first.data["ranking"]
    few = LabelledData(torch.rand(2, 1, 32, 32), torch.arange(2), "few")
    for changes in ({"samples": few}, {"settings": {"spectral.tries": 3}}, {"preset": tiny}):
        with pytest.raises(UsageError, match="other options"):
            run(teacher, tmp_path / "out", resume=True, **{**methods, **changes})
    other = copy.deepcopy(teacher)
    other.net.fc2.bias.data += 1
    with pytest.raises(UsageError, match=r"other options.*teacher_sha256"):
        run(other, tmp_path / "out", resume=True, **methods)
    trained.clear()
    more = {**methods, "synthesizers": "spectral,uniform,normal", "seeds": 2}
    larger = run(teacher, tmp_path / "out", resume=True, **more)
    assert sorted(trained) == ["normal-0", "normal-1", "spectral-1", "uniform-1"]
    assert larger.data["ranking"]["seeds"] == 2
    assert larger.data["conditions"]["methods"] == ["spectral", "uniform", "normal"]


@pytest.mark.slow
def test_a_process_that_dies_stops_no_other(teacher, tmp_path):
    options = {"teacher": teacher, "preset": "quick", "device": "cpu"}
    cells = [
        Cell(method, 0, ("1",), tmp_path / str(i), options)
        for i, method in enumerate([f"{HERE}:Deadly", f"{HERE}:Broken", NONE])
    ]
    ended = {cell.method: error for cell, error in run_cells(cells, 2, Progress())}
    assert ended[NONE] is None
    assert "exit code 9" in ended[f"{HERE}:Deadly"]
    assert "broken" in ended[f"{HERE}:Broken"]
    assert cells[2].result["students"]["1"]["agreement"] is None


def test_if_every_method_fails_so_does_the_comparison(teacher, tmp_path, tiny):
    with pytest.raises(TrainingError, match="this method is broken"):
        run(teacher, tmp_path / "out", synthesizers=f"{HERE}:Broken", seeds=1)


def test_all_are_those_that_can_work_with_the_teacher(teacher):
    able, refused = choose_methods("all", teacher)
    assert {"bdnf+spectral", "bdnf", "kegnet", "dfad", "rdskd", "spectral"} <= set(able)
    assert "real samples" in refused["samples"]
    few = LabelledData(torch.zeros(4, 1, 32, 32), torch.arange(4), "few")
    able, _ = choose_methods(f"all,{HERE}:Flat", teacher, few)
    assert {"samples", "bdnf(samples)", f"{HERE}:Flat"} <= set(able)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("spectral,boat", "Unknown synthesizer 'boat'; known ones are bdnf"),
        ("samples", "needs real samples.*Those that can work.*bdnf"),
        ("bdnf(samples)", "needs real samples"),
    ],
)
def test_what_cannot_work_is_refused_by_name(teacher, tmp_path, methods, message):
    with pytest.raises(UsageError, match=message):
        run(teacher, tmp_path / "out", synthesizers=methods)
    assert not (tmp_path / "out").exists()


def test_unknown_settings_and_missing_data_are_refused(teacher, tmp_path):
    with pytest.raises(UsageError, match=r"No method compared has the option kegnet\.boats"):
        run(teacher, tmp_path / "o", synthesizers="spectral", settings={"kegnet.boats": 1})
    with pytest.raises(UsageError, match="needs evaluation data"):
        run(teacher, tmp_path / "o", synthesizers="spectral", reference=True)
    with pytest.raises(UsageError, match="one seed"):
        run(teacher, tmp_path / "o", synthesizers="spectral", seeds=0)
