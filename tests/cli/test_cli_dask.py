"""`--dask`: what runs the trials of `compare` and `reproduce`."""

import sys
from contextlib import contextmanager

import pytest
from cli_calls import fails

from freia_kd import api
from freia_kd.comparing import cluster
from freia_kd.experiments import table1 as module

ADDRESS = "tcp://127.0.0.1:8786"


@pytest.fixture(params=["compare", "reproduce"])
def command(request, teacher_file, tmp_path, monkeypatch):
    """A command up to its call of the library, and what it passes on."""
    seen = {}

    def stop(*arguments, **given):
        seen.update(given)
        raise ValueError("seen")

    monkeypatch.setattr(api, "compare", stop)
    monkeypatch.setattr(module, "table1", stop)
    words = ["compare", "--teacher", teacher_file]
    words = words if request.param == "compare" else ["reproduce", "table1", "--data", "mnist"]
    return [*words, "--out", tmp_path / "out"], seen


def test_the_cluster_runs_the_trials(command, tmp_path, monkeypatch):
    words, seen = command
    opened = []

    @contextmanager
    def connect(address, folder):
        opened.append((address, folder))
        yield "the cluster"
        opened.clear()

    monkeypatch.setattr(cluster, "connect", connect)
    assert "seen" in fails(*words, "--dask", ADDRESS, code=1)
    assert opened == [(ADDRESS, str(tmp_path / "out"))]
    assert (seen["executor"], seen["workers"]) == ("the cluster", None)
    assert "dask" not in seen
    fails(*words, code=1)
    assert seen["executor"] is None


def test_what_it_does_not_go_with_is_refused(command, monkeypatch):
    words, seen = command
    assert "pass one of them" in fails(*words, "--dask", ADDRESS, "--workers", 2)
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'freia_kd[dask]'" in fails(*words, "--dask", ADDRESS, code=1)
    assert not seen
