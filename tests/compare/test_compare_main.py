"""Comparisons: cells apart, a failed one reported, resumed, and judged by independent methods."""

import json
import os

import pytest
import torch

import freia_kd.job
from freia_kd.compare import compare
from freia_kd.compare.cells import NONE, Cell, families
from freia_kd.compare.main import choose_methods
from freia_kd.compare.running import run_cells
from freia_kd.data.datasets import LabelledData
from freia_kd.errors import TrainingError, UsageError
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
    assert list(data["failed"]) == [f"{HERE}:Broken, seed {seed}" for seed in (0, 1)]
    assert "this method is broken" in data["failed"][f"{HERE}:Broken, seed 0"]
    for name in ("compare.md", "compare.html", "compare.png"):
        assert (compared.folder / name).stat().st_size > 500
    html = (compared.folder / "compare.html").read_text()
    assert "this method is broken" in html
    assert 'src="http' not in html
    assert not list(compared.folder.glob("cells/*/synthetic*/train"))
    assert (compared.folder / "cells/spectral-1/student-3.pt").exists()


def test_rows_say_what_the_cells_say(compared):
    cells = {(c["method"], c["seed"]): c for c in compared.data["cells"]}
    row = next(r for r in compared.data["rows"] if r["method"] == "spectral")
    values = [cells["spectral", seed]["accuracy"]["3"] for seed in (0, 1)]
    assert row["accuracy"]["3"]["mean"] == pytest.approx(sum(values) / 2)
    assert row["accuracy"]["3"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    low, high = (cells[m, 0]["accuracy"]["3"] for m in (NONE, "real training data"))
    if high - low >= 0.01:
        expected = [
            (cells["spectral", s]["accuracy"]["3"] - cells[NONE, s]["accuracy"]["3"])
            / (cells["real training data", s]["accuracy"]["3"] - cells[NONE, s]["accuracy"]["3"])
            for s in (0, 1)
        ]
        assert row["recovery"]["3"]["mean"] == pytest.approx(sum(expected) / 2)
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
    with pytest.raises(UsageError, match="other options"):
        run(teacher, tmp_path / "out", resume=True, **{**methods, "seeds": 2})


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
