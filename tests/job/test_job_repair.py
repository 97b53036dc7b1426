"""Parts of a run that are damaged are named with their stage, and made again the same."""

import json
import re
import shutil

import pytest
import safetensors.torch
import torch
from job_cases import NOISE, make_data, make_teacher, students_in

from freia_kd import StudentSpec, api, distill, resume
from freia_kd.compression import Quantize, Tucker
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.teachers import read_checkpoint
from freia_kd.training import Progress

SPECS = ("1", StudentSpec((Tucker(layers={"5": 0.3}), Quantize()), "two"))
SHARD = "synthetic/train/shard-000-00001"


class Notes(Progress):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("freia_kd.job.synthesis.SHARD", 16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("freia_kd.job.synthesis.SHARD", 16)
        flow = BDNF(BDNFOptions(steps=3, batch_size=8))
        out = tmp_path_factory.mktemp("whole") / "run"
        options = {**NOISE, "synthesizer": [flow, "spectral"]}
        return distill(make_teacher(), students=SPECS, out=out, **options).folder


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def flip(path):
    """One byte of the last quarter of a file is another."""
    data = bytearray(path.read_bytes())
    data[-len(data) // 4] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: -min(40, path.stat().st_size // 2)])


def spoil(path):
    """A weight is no number; the file is sound."""
    found = read_checkpoint(path)
    next(iter(found.state.values())).fill_(torch.nan)
    safetensors.torch.save_file(found.state, path, {"freia_kd": json.dumps(found.own)})


def lose(path):
    path.unlink()


# The stage that makes a part of the run, and what can happen to that part.
PARTS = [
    (f"{SHARD}.inputs.npy", "synthetic/train", flip),
    (f"{SHARD}.logits.npy", "synthetic/train", cut),
    (f"{SHARD}.conditions.npy", "synthetic/train", lose),
    ("synthetic/heldout/manifest.json", "synthetic/heldout", cut),
    ("checkpoints/bdnf.safetensors", "bdnf", cut),
    ("checkpoints/student-1.safetensors", "student-1", cut),
    ("checkpoints/student-two-tucker-net.safetensors", "student-two-tucker", spoil),
    ("compressed-two.safetensors", "compress two", cut),
    ("checkpoints/compressed-1-searches.json", "compress 1", cut),
    ("student-1.pt", "student-1", cut),
    ("student-two.safetensors", "student-two-quantize", cut),
    ("report.json", "report", cut),
]


def files(folder):
    """The bytes of what training made."""
    sets = {p.relative_to(folder): p.read_bytes() for p in folder.glob("synthetic/*/*")}
    flow = {"flow": (folder / "checkpoints/bdnf.safetensors").read_bytes()}
    return {**students_in(folder), **sets, **flow}


ALONE = [[PARTS[0]], [PARTS[2]], [PARTS[4]], [PARTS[8]]]


@pytest.mark.parametrize("parts", [PARTS, *ALONE], ids=["all", *(p[0][0] for p in ALONE)])
def test_what_is_damaged_is_named_and_made_again(parts, run, whole):
    for name, _, harm in parts:
        harm(run / name)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match="add --repair") as error:
        resume(run, teacher=make_teacher())
    for name, stage, _ in parts:
        shown = f"{SHARD}.json" if SHARD in name else name
        assert re.search(rf"{re.escape(shown)} \(stage {stage}\): \S", str(error.value))
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    notes = Notes()
    resume(run, teacher=make_teacher(), repair=True, progress=notes)
    for _, stage, _ in parts:
        assert any(f"deleted; the stage {stage} makes it again" in line for line in notes.lines)
    assert files(run) == files(whole)
    resume(run, teacher=make_teacher())


@pytest.mark.parametrize("name", [f"{SHARD}.json", "student-1.pt", "compressed-1.safetensors"])
def test_what_is_missing_is_made_again_and_said(name, run, whole):
    lose(run / name)
    notes = Notes()
    resume(run, teacher=make_teacher(), progress=notes)
    assert any(f"{name} is missing; the stage " in line for line in notes.lines)
    assert files(run) == files(whole)


def test_a_whole_run_has_nothing_to_repair(run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    resume(run, teacher=make_teacher(), repair=True)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_sets_alone_are_repaired_too(tmp_path):
    folder, _ = api.extract(make_teacher(), out=tmp_path / "run", **NOISE)
    flip(folder / f"{SHARD}.inputs.npy")
    with pytest.raises(CheckpointError, match=r"stage synthetic/train\): Its file shard-000-00001"):
        api.extract(make_teacher(), out=folder, again=True)
    api.extract(make_teacher(), out=folder, again=True, repair=True)
    api.extract(make_teacher(), out=folder, again=True)


def test_a_repair_does_not_lose_the_accuracies(tmp_path):
    run = distill(make_teacher(), out=tmp_path / "run", eval_data=make_data(), **NOISE).folder
    cut(run / "student-1.pt")
    with pytest.raises(UsageError, match="pass them again, as eval_data="):
        resume(run, teacher=make_teacher(), repair=True)
    again = resume(run, teacher=make_teacher(), repair=True, eval_data=make_data())
    assert again.report.students[0].distilled.accuracy is not None
