"""What the README shows works."""

import re
import runpy
from pathlib import Path

import pytest

from freia_kd.cli.main import COMMANDS, main
from freia_kd.synthesizers.bdnf import BDNFOptions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_library_example(teacher_file, tmp_path, tiny, monkeypatch, capsys):
    """It is what the README shows, and runs as it stands but for its numbers of steps."""
    example = (ROOT / "examples/library.py").read_text(encoding="utf-8")
    code, shown = (
        [line for line in text.split('"""')[-1].splitlines() if line] for text in (example, CODE[0])
    )
    assert code == shown
    assert teacher_file == tmp_path / "lenet5.pt"
    flow = BDNFOptions(steps=4, batch_size=8)
    monkeypatch.setattr("freia_kd.synthesizers.bdnf.BDNFOptions", lambda **options: flow)
    monkeypatch.setattr("freia_kd.config.DistillationOptions", lambda **options: tiny.training)
    monkeypatch.setattr("freia_kd.job.opening.get_preset", lambda name: tiny)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples/library.py"))
    assert "count=16" in capsys.readouterr().out  # of 32 held-out inputs
    assert (tmp_path / "runs/library/report.md").exists()


@pytest.mark.parametrize("code", CODE[1:])
def test_other_code(code):
    exec(compile(code, "README.md", "exec"), {})


def test_every_command_is_mentioned():
    assert not [
        name for name in COMMANDS if f"freiakd {name}" not in README and f"`{name}`" not in README
    ]


def test_shown_commands_parse():
    """Every option that the README passes to a command is one that the command has."""
    for line in re.findall(r"^\$ freiakd (.*?)(?:#|$)", README.replace("\\\n", " "), re.MULTILINE):
        name, *words = line.split()
        known = {o for p in main.get_command(None, name).params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= known


@pytest.mark.parametrize("name", ["README.md", "docs/results.md", "docs/objectives.md"])
def test_linked_files_exist(name):
    file = ROOT / name
    targets = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", file.read_text(encoding="utf-8"))
    assert [t for t in targets if not (file.parent / t).exists()] == []
    assert targets
