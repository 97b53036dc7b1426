"""What the README and the pages show works: every block of Python runs, every command parses.

A comment before a block of Python says what the tests do with it:

- `<!-- tiny -->`: it runs with budgets of a moment in place of a preset's;
- `<!-- compiled -->`: it is compiled only, since it starts processes that know no such budgets;
- `<!-- file -->`: it is a file of the repository, which has tests of its own.

Commands are parsed by their own options and choices, since most need data or minutes; those of a
block after `<!-- run -->` run as well.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from click.testing import CliRunner

from freia_kd.cli.main import COMMANDS, main
from freia_kd.config import PRESETS
from freia_kd.synthesizers.bdnf import BDNF
from freia_kd.teachers import Classifier, save_classifier

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "RELEASE.md"]
FILES += sorted((ROOT / "docs").rglob("*.md"))
PAGES = [path.relative_to(ROOT).as_posix() for path in FILES]
BLOCK = re.compile(
    r"(?:<!-- (tiny|compiled|file|run) -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.M
)


class Block(NamedTuple):
    mark: str
    language: str
    text: str


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [Block(*match.groups("")) for match in BLOCK.finditer(text)]
    return [block for block in found if block.language == language]


def commands(page, mark=""):
    """The commands of a page, as lists of words."""
    for block in blocks(page, "console"):
        if mark and block.mark != mark:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield shlex.split(line.removeprefix("$ "), comments=True)


WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page != "docs/flows.md"]
WITH_COMMANDS = [page for page in PAGES if any(commands(page))]


@pytest.fixture
def folder(teacher, teacher_file, tiny, tmp_path, monkeypatch):
    """A folder with the files that pages speak of, and presets of a moment."""
    for name in ("student.safetensors", "net.pt"):
        save_classifier(tmp_path / name, Classifier(teacher.net, teacher.domain, teacher.arch))
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, lambda: tiny)
    monkeypatch.setitem(BDNF.presets, "quick", {"steps": 4, "batch_size": 8})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_its_python_runs_from_top_to_bottom(page, folder):
    names = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        if block.mark == "file":
            (name,) = re.findall(r'^--8<-- "(.*)"$', block.text, re.M)
            assert (ROOT / name).exists()
            continue
        code = compile(block.text, page, "exec")
        if block.mark != "compiled":
            exec(code, names)  # our own page


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_its_commands_parse(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands(page):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words
        if words[0] == "freiakd":
            parse(words[1:])


def parse(words):
    """Raises unless a command has the options, and the options the choices."""
    command, name = main, "freiakd"
    while isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(click.Context(command), name)
        assert command is not None, f"there is no command {name}"
    context = click.Context(command, info_name=name)
    given, _, _ = command.make_parser(context).parse_args(list(words))
    for param in command.params:
        if isinstance(param.type, click.Choice) and given.get(param.name) is not None:
            values = given[param.name] if param.multiple else [given[param.name]]
            for value in values:
                param.type.convert(value, param, context)


@pytest.mark.parametrize(
    "words", ["distill --no-such-option", "compress --student 9", "distil", "export --to tflite"]
)
def test_commands_that_are_wrong_do_not_parse(words):
    with pytest.raises((click.UsageError, AssertionError)):
        parse(words.split())


@pytest.mark.parametrize("page", [p for p in WITH_COMMANDS if any(commands(p, "run"))])
def test_commands_that_are_quick_run(page, folder):
    for words in commands(page, "run"):
        result = CliRunner().invoke(main, words[1:])
        assert result.exit_code == 0, f"{' '.join(words)}: {result.output}"


def test_every_command_is_shown_somewhere():
    shown = {words[1] for page in PAGES for words in commands(page) if words[0] == "freiakd"}
    assert set(COMMANDS) - shown - {"toy"} == set()  # which is `reproduce figure2` too
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "freiakd reproduce" in readme


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_exist(page):
    file = ROOT / page
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text)
    made = re.compile(r"reference/(freia_kd[\w.]*|index)\.md$|^(freia_kd[\w.]*)\.md$")
    missing = [t for t in targets if not (file.parent / t).exists() and not made.search(t)]
    assert missing == []  # pages that the site makes of modules are checked by `make docs`


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks/results").glob("*.md")), ids=lambda path: path.stem
)
def test_results_link_to_results_only(path):
    """The site has the results without the scripts that made them: other links lead nowhere."""
    targets = re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert [t for t in targets if not (path.parent / t).is_file() or "/" in t] == []
