"""The main job on a table, from the teacher to samples, by the commands alone."""

import json

import numpy as np
import pytest
import torch
from cli_calls import call

from freia_kd.data.datasets import load_dataset


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher of wines and what the command says of it; neither architecture nor epochs given."""
    path = tmp_path_factory.mktemp("wine") / "wine.pt"
    return path, json.loads(call("train-teacher", "wine", "--out", path, "--json").stdout)


def test_a_table_needs_no_more_than_its_name(teacher):
    _, trained = teacher
    assert (trained["arch"], trained["has_test_split"]) == ("mlp", True)
    assert trained["accuracy"]["count"] == 54
    assert trained["accuracy"]["value"] > 0.95
    train = load_dataset("wine").inputs
    assert trained["domain"]["mean"] == pytest.approx(train.mean(0).tolist(), rel=1e-5)


def ranks(student):
    return {name: plan["ranks"] for name, plan in student["steps"][0]["layers"].items()}


@pytest.mark.parametrize("synthesizer", ["kegnet", "bdnf"])
def test_the_main_job_on_a_table(synthesizer, teacher, quick, tmp_path):
    run = tmp_path / "run"
    tiny_options = {"kegnet": ["--set", "generators=2", "--set", "steps=2"]}.get(synthesizer, [])
    made = call(
        "distill", "--teacher", teacher[0], "--synthesizer", synthesizer, *tiny_options,
        "--student", 3, "--student", 1, "--eval-data", "wine", "--preset", "quick",
        "--device", "cpu", "--out", run, "--json",
    )  # fmt: skip
    report = json.loads(made.stdout)
    assert report["teacher"]["accuracy"] == teacher[1]["accuracy"]
    assert report["real_data"]["samples"] is None
    smallest, largest = report["students"]
    assert ranks(smallest) == {"layers.0": [4], "layers.1": [4]}
    assert ranks(largest) == {"layers.1": [16]}
    (row,) = json.loads(
        call("evaluate", run / "student-3.pt", "--eval-data", "wine", "--json").stdout
    )
    assert row["accuracy"] == smallest["distilled"]["accuracy"]


def test_samples_of_a_table_are_in_its_units(teacher, quick, tmp_path):
    run, out = tmp_path / "run", tmp_path / "x.npz"
    call(
        "distill", "--teacher", teacher[0], "--synthesizer", "kegnet", "--preset", "quick",
        "--set", "generators=2", "--set", "steps=60", "--device", "cpu", "--out", run,
    )  # fmt: skip
    call("sample", run, "--out", out, "-n", 100)
    with np.load(out) as file:
        x, y = torch.from_numpy(file["x"]), file["y"]
    assert x.shape == (300, 13)
    assert np.bincount(y).tolist() == [100, 100, 100]
    train = load_dataset("wine").inputs
    assert (((x.mean(0) - train.mean(0)) / train.std(0)).abs() < 1).all()
    assert ((x.std(0) / train.std(0)).log().abs() < 1).all()
    message = call("sample", run, "--out", tmp_path / "x.png", code=2).output
    assert ".npz" in message
