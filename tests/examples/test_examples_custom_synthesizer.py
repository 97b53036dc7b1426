"""A stranger's synthesizer: it keeps the contract, and commands find it in two ways."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from freia_kd.cli.main import main
from freia_kd.domain import Domain
from freia_kd.synthesizers import SYNTHESIZERS, get_synthesizer
from freia_kd.teachers import Teacher, build_net

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def fresh(monkeypatch):
    """As for a console script: the example is not imported, and its folder not on the path."""
    monkeypatch.delitem(sys.modules, "custom_synthesizer", raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p or ".") != EXAMPLES])
    yield
    sys.modules.pop("custom_synthesizer", None)


@pytest.fixture
def strokes(fresh, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return get_synthesizer("custom_synthesizer:Strokes")


def fit(kind, teacher, **settings):
    synthesizer = kind.build("quick", settings)
    synthesizer.fit(teacher)
    return synthesizer


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
def test_images_keep_the_contract(strokes, teacher):
    synthesizer = fit(strokes, teacher)
    x, labels = synthesizer.sample(300, generator=seeded())
    assert x.shape == (300, 1, 32, 32)
    assert 0 <= x.min() < 0.01 < 0.99 < x.max() <= 1
    assert len(labels.unique()) == 10
    again, same = synthesizer.sample(300, generator=seeded())
    assert torch.equal(x, again)
    assert torch.equal(labels, same)
    assert not torch.equal(x, synthesizer.sample(300, generator=seeded(1))[0])
    soft = torch.nn.functional.one_hot(labels, 10).float()
    by_index, by_soft = (synthesizer.sample(300, c, seeded())[0] for c in (labels, soft))
    assert torch.equal(by_index, by_soft)
    with pytest.raises(ValueError, match="Expected 3 labels"):
        synthesizer.sample(3, torch.tensor([1]))


def test_the_likeliest_of_several_is_kept(strokes, teacher):
    labels = torch.arange(100) % 10

    def log_p(tries):
        x, _ = fit(strokes, teacher, tries=tries).sample(100, labels, seeded())
        return teacher(x).log_softmax(1)[torch.arange(100), labels].mean()

    assert log_p(1) + 0.1 < log_p(8), (log_p(1), log_p(8))


def test_colours_and_oblong_images(strokes):
    domain = Domain((3, 8, 12), 4)
    with torch.random.fork_rng():
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(288, 4))
    x, _ = fit(strokes, Teacher(net, domain, "linear")).sample(5, generator=seeded())
    assert x.shape == (5, 3, 8, 12)
    vectors = Domain((2,), 3)
    with torch.random.fork_rng():
        mlp = Teacher(build_net("mlp", vectors), vectors, "mlp")
    assert "makes images" in strokes.unsupported_reason(mlp)


def compared(teacher_file, out, synthesizers):
    """What `freiakd compare` says in JSON."""
    arguments = ["compare", "--teacher", teacher_file, "--synthesizers", synthesizers]
    arguments += ["--seeds", 1, "--workers", 1, "--device", "cpu", "--out", out, "--json"]
    arguments += ["--set", "strokes.tries=2"]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    data = json.loads(result.stdout)
    assert not data["failed"]
    return [row["method"] for row in data["rows"]]


@pytest.mark.slow
def test_compare_finds_it_in_the_current_folder(fresh, teacher_file, tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    path = "custom_synthesizer:Strokes"
    assert path in compared(teacher_file, tmp_path / "out", f"spectral,{path}")


@pytest.mark.slow
def test_compare_finds_it_by_entry_point(fresh, teacher_file, tmp_path, tiny, monkeypatch):
    """As a package would register it whose pyproject.toml has the lines of the docstring."""
    text = (EXAMPLES / "custom_synthesizer.py").read_text()
    assert '[project.entry-points."freia_kd.synthesizers"]' in text
    (path,) = re.findall(r'^ *strokes = "(.+)"$', text, re.MULTILINE)
    folder = tmp_path / "strokes-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: strokes\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[freia_kd.synthesizers]\nstrokes = {path}\n")
    assert "strokes" not in SYNTHESIZERS
    for place in (EXAMPLES, tmp_path):
        monkeypatch.syspath_prepend(str(place))
    assert list(SYNTHESIZERS)[-1] == "strokes"
    assert "strokes" in compared(teacher_file, tmp_path / "out", "spectral,strokes")


def test_it_is_as_short_as_promised():
    assert len((EXAMPLES / "custom_synthesizer.py").read_text().splitlines()) < 60
