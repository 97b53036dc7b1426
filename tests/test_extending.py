"""Adding a method touches its file and its registry line: no other module knows its name."""

import ast
from pathlib import Path

import pytest

from freia_kd.flows import FLOWS
from freia_kd.registry import COMPRESSIONS, DIVERGENCES
from freia_kd.synthesizers import SYNTHESIZERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Where a name of the table may be spelled: the tables, the paper's experiments (which name their
# rows), and the files that implement the methods.
TABLES = {
    "synthesizers": (
        SYNTHESIZERS,
        {"freia_kd/synthesizers", "freia_kd/experiments", "freia_kd/flows"},  # a base has its name
    ),
    "compressions": (COMPRESSIONS, {"freia_kd/compression", "freia_kd/registry.py"}),
    "flows": (FLOWS, {"freia_kd/flows", "freia_kd/synthesizers/bdnf.py"}),
    "divergences": (
        DIVERGENCES,
        {"freia_kd/registry.py", "freia_kd/config.py", "freia_kd/objectives"},
    ),
}


def spelled():
    """Every file of the package and the command, with the strings that it spells."""
    for file in [*(ROOT / "freia_kd").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        strings = {n.value for n in nodes if isinstance(n, ast.Constant) and type(n.value) is str}
        yield file.relative_to(ROOT).as_posix(), strings


SPELLED = dict(spelled())
WORDS = {"proxy", "samples"}  # which are also an option's name


@pytest.mark.parametrize("table", list(TABLES))
def test_no_other_file_knows_the_names(table):
    registry, homes = TABLES[table]
    strangers = {
        place: found
        for place, strings in SPELLED.items()
        if (found := (strings & set(registry.builtin)) - WORDS)
        and not place.startswith(tuple(homes))
    }
    assert strangers == {}


@pytest.mark.parametrize("table", ["synthesizers", "compressions", "flows"])
def test_each_has_its_place_in_the_readme(table):
    registry, _ = TABLES[table]
    shown = README.lower()
    assert [name for name in registry.builtin if name.split(":")[0] not in shown] == []


def test_contributors_are_told_what_adding_touches():
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for group in ("flows", "synthesizers", "compressions", "teachers", "datasets", "divergences"):
        assert f"`freia_kd.{group}`" in told
    assert "touches two files" in told


@pytest.mark.parametrize("table", ["synthesizers", "compressions"])
def test_each_has_its_page(table):
    registry, _ = TABLES[table]
    shown = (ROOT / "docs/methods/index.md").read_text(encoding="utf-8")
    assert [name for name in registry.builtin if f"`{name}`" not in shown] == []
