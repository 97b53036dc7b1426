"""Modules typed as `module:attribute` are found in the current folder, and only they."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from freia_kd.cli.command import find_modules_here
from freia_kd.cli.main import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with modules, which `sys.path` lacks, as for a console script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and Path(p) != tmp_path])
    monkeypatch.delitem(sys.modules, "typed_here", raising=False)
    for name in ("typed_here", "json", "torch"):
        (tmp_path / f"{name}.py").write_text("thing = 1\n")
    (tmp_path / "folder_here").mkdir()
    (tmp_path / "folder_here/inner.py").write_text("thing = 1\n")
    yield str(tmp_path)
    sys.modules.pop("typed_here", None)


@pytest.mark.parametrize(
    "params",
    [
        {"synthesizers": "all,typed_here:Thing"},
        {"synthesizer": "bdnf+typed_here:Thing"},
        {"synthesizers": "typed_here:Thing(samples)"},
        {"arch": "folder_here.inner:Net.small"},
        {"settings": {"bdnf.flow": "typed_here:make"}},
        {"methods": ("tucker", "typed_here:Shear")},
    ],
)
def test_a_typed_module_puts_the_folder_last(here, params):
    before = list(sys.path)
    find_modules_here(params)
    find_modules_here(params)
    assert sys.path == [*before, here]


@pytest.mark.parametrize(
    "value",
    [
        "json:loads",  # the standard library's, and torch's, although files here have these names
        "torch:nn",
        "nowhere_at_all:x",
        "typed_here",
        "typed_here:",
        "data/typed_here:x.npz",
        r"C:\typed_here:x",
        None,
        3,
        ("typed_here", 3),
    ],
)
def test_nothing_else_does(here, value):
    before = list(sys.path)
    find_modules_here({"option": value, "settings": {"steps": 3}})
    assert sys.path == before


@pytest.mark.parametrize("safe", [False, True])
def test_python_may_be_told_to_be_safe(here, monkeypatch, safe):
    fake = SimpleNamespace(flags=SimpleNamespace(safe_path=safe), path=[], modules={})
    monkeypatch.setattr("freia_kd.cli.command.sys", fake)
    find_modules_here({"arch": "typed_here:Net"})
    assert fake.path == ([] if safe else [here])


def test_commands_look(here, teacher_file):
    """A module that is found is imported; what is asked of it is missing, or the module is."""
    arguments = ["distill", "--teacher", str(teacher_file), "--synthesizer"]
    found = CliRunner().invoke(main, [*arguments, "typed_here:Thing"])
    assert "Module 'typed_here' has no attribute 'Thing'" in found.stderr
    lost = CliRunner().invoke(main, [*arguments, "nowhere_at_all:Thing"])
    assert "No module named 'nowhere_at_all'. Is its folder in PYTHONPATH?" in lost.stderr
    assert found.exit_code == lost.exit_code == 2
