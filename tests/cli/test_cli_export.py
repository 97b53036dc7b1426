"""`freiakd export`: what it writes and prints, and how it fails."""

import errno
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import cli_calls
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import freia_kd
from freia_kd.data.synthetic import SyntheticSet
from freia_kd.domain import Domain
from freia_kd.errors import ExportError
from freia_kd.teachers import Classifier, save_classifier

call, fails = partial(cli_calls.call, "export"), partial(cli_calls.fails, "export")


@pytest.fixture
def run(finished, tmp_path):
    """A finished run that a test may write to."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.mark.slow
def test_all_formats_beside_the_student(run):
    before = {p.name for p in run.iterdir()}
    result = call(
        run, "--student", 3, "--to", "onnx", "--to", "torch-export", "--to", "torch", "--json",
        "--force",
    )  # fmt: skip
    assert result.stderr == ""
    rows = json.loads(result.stdout)
    assert [Path(r["file"]).name for r in rows] == [f"student-3.{s}" for s in ("onnx", "pt2", "pt")]
    assert {p.name for p in run.iterdir()} - before == {"student-3.onnx", "student-3.pt2"}
    assert all(r["same_top1"] == 1.0 for r in rows)
    assert {r["compared_on"] for r in rows} == {"inputs of the held-out synthetic set"}
    assert all(r["latency_ms"] > 0 and r["bytes"] > 1000 for r in rows)
    x, _, _ = SyntheticSet(run / "synthetic/heldout").batch(torch.arange(5))
    with torch.no_grad():
        expected = freia_kd.load_student(run / "student-3.safetensors")(x).numpy()
        loaded = freia_kd.load_student(run / "student-3.pt")
        assert torch.equal(loaded(x), torch.from_numpy(expected))
    (logits,) = onnxruntime.InferenceSession(run / "student-3.onnx").run(
        None, {"pixels": x.numpy()}
    )
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_where_a_file_comes_from_is_in_it(run):
    call(run, "--to", "torch", "--out", run / "mine.pt")
    own = freia_kd.teachers.read_checkpoint(run / "mine.pt").own
    assert own["export"]["source"] == "run/student.safetensors"
    assert own["export"]["freia_kd"] == freia_kd.__version__
    assert len(own["export"]["source_sha256"]) == 64
    assert own["domain"]["classes"] == 10


@pytest.mark.slow
def test_the_table_is_all_that_is_printed(run, tmp_path, capfd):
    result = call(run, "--to", "onnx", "--out", tmp_path)
    assert result.stderr == ""
    for expected in ("student.onnx", "onnxruntime", "100.0 %", f"Written to {tmp_path}."):
        assert expected in result.stdout
    assert capfd.readouterr() == ("", "")  # nor by libraries behind Python's back


def test_a_checkpoint_of_its_own(teacher_file, tmp_path):
    result = call(teacher_file, "--to", "safetensors", "--json")
    (row,) = json.loads(result.stdout)
    assert row["file"] == str(tmp_path / "lenet5.safetensors")
    assert row["compared_on"] == "draws of spectral noise"


def test_several_formats_go_to_a_folder(run, tmp_path):
    call(run, "--to", "torch", "--to", "safetensors", "--out", tmp_path / "new/folder")
    assert {p.name for p in (tmp_path / "new/folder").iterdir()} == {
        "student.pt",
        "student.safetensors",
    }


class Own(nn.Module):
    """An architecture of user code."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x)


def test_code_of_ones_own_must_be_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_nets", sys.modules[__name__])
    path, arch = tmp_path / "own.safetensors", "my_nets:Own"
    save_classifier(path, Classifier(Own(), Domain((3,), 2), arch))
    assert f"pass --arch {arch}" in fails(path, "--to", "torch", code=2)
    (row,) = json.loads(call(path, "--to", "torch", "--arch", arch, "--json").stdout)
    assert row["compared_on"] == "draws of normal noise"
    assert f"pass --arch {arch}" in fails(
        tmp_path / "own.pt", "--to", "safetensors", "--force", code=2
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["NOTHING", "--to", "onnx"], 2, "does not exist"),
        (["EMPTY", "--to", "onnx"], 1, "has no run.json"),
        (
            ["RUN", "--to", "tflite"],
            2,
            "one of torch, safetensors, onnx, torch-export",
        ),
        (["RUN", "--to", "onnx", "--student", "2"], 2, "has no 2; pass --student 1|3"),
        (["RUN", "--to", "safetensors"], 2, "is the student itself; pass --out"),
        (["RUN", "--to", "onnx", "--out", "x.pt"], 2, "Expected a file .onnx for onnx; got x.pt"),
        (["RUN", "--to", "onnx", "--to", "torch", "--out", "x.pt"], 2, "need a folder"),
        (["TEACHER", "--to", "onnx", "--student", "1"], 2, "--student chooses from a run"),
        (["TEXT", "--to", "onnx"], 1, "is not a checkpoint"),
        (["RUN", "--to", "torch", "--out", "text.pt/student.pt"], 1, "text.pt"),
    ],
)
def test_bad_input(arguments, code, message, run, teacher_file, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no checkpoint")
    monkeypatch.chdir(tmp_path)
    places = {"RUN": run, "EMPTY": "empty", "TEACHER": teacher_file, "TEXT": "text.pt"}
    assert message in fails(*[places.get(a, a) for a in arguments], code=code)


def test_runs_that_are_not_finished(run):
    (run / "student.safetensors").unlink()
    assert "pass --student 1|3" in fails(run, "--to", "torch", code=2)
    for path in run.glob("student-*.safetensors"):
        path.unlink()
    assert "has no trained students yet; `freiakd distill --out" in fails(
        run, "--to", "torch", code=1
    )


def test_a_missing_extra_is_said_before_any_work(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    before = sorted(p.name for p in run.iterdir())
    message = fails(run, "--to", "torch-export", "--to", "onnx", code=2)
    assert "pip install 'freia_kd[onnx]'" in message
    assert sorted(p.name for p in run.iterdir()) == before


def test_a_file_that_does_not_agree(run, monkeypatch):
    def broken(*arguments):
        raise ExportError("The file's logits differ from the student's.")

    monkeypatch.setattr("freia_kd.exporting.verify._compare", broken)
    before = sorted(p.name for p in run.iterdir())
    assert fails(run, "--to", "torch-export", code=1).endswith("differ from the student's.")
    assert sorted(p.name for p in run.iterdir()) == before


def test_a_full_disk(run, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in fails(run, "--to", "torch-export", code=1)
    assert not list(run.glob("*.pt2"))


def test_a_file_that_exists_is_replaced_if_that_is_asked_for(run):
    (run / "student.pt2").write_text("old")
    assert "student.pt2 exists; pass --force" in fails(run, "--to", "torch-export", code=2)
    assert (run / "student.pt2").read_text() == "old"
    call(run, "--to", "torch-export", "--force")
    assert (run / "student.pt2").stat().st_size > 1000
