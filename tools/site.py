"""What mkdocs is told beside its own file: pages that are made, and links into the repository.

Pages of the reference come from the package, so that none is forgotten; results, the changelog
and files of the repository's root become pages where they lie, so that their links work on a
hosting site as well.
"""

from __future__ import annotations

import ast
import html
import json
import posixpath
import re
from base64 import b64decode
from pathlib import Path

import click
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from freia_kd.cli.main import main

ROOT = Path(__file__).parents[1]
HIDDEN = {"freia_kd.cli"}
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "RELEASE.md": "release.md",
    "README.md": "index.md",
}
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)")
ROLE = re.compile(r":\w+:`~?([^`]+)`")
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</(?:span|div)>', re.DOTALL
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is not in docs/: results, examples, the changelog, notebooks, the reference."""
    for name, uri in PAGES.items():
        if uri != "index.md":
            files.append(File.generated(config, uri, content=(ROOT / name).read_text("utf-8")))
    for folder in ("benchmarks/results", "examples"):
        for path in sorted((ROOT / folder).iterdir()):
            if path.is_file():
                uri = _site_path(f"{folder}/{path.name}")
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for uri, content in _notebook(path):
            files.append(File.generated(config, uri, content=content))
    for uri, content in [*_reference(), ("reference/commands.md", _commands())]:
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository become links to where the site has them."""
    here = _repository_path(page.file.src_uri)

    def relink(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[2]))
        start = posixpath.dirname(page.file.src_uri)
        return match[1] + posixpath.relpath(_site_path(target), start or ".")

    return LINK.sub(relink, markdown)


def on_page_content(html_text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas become MathML, which browsers show without any script."""
    return FORMULA.sub(_mathml, html_text)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    return convert(html.unescape(match[2]).strip(), display=display)


def _site_path(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"
    return re.sub(r"^(docs/|benchmarks/(?=results/))", "", path)


def _repository_path(uri: str) -> str:
    """Where the repository has a page of the site."""
    root = {page: name for name, page in PAGES.items() if page != "index.md"}
    if uri in root or uri.startswith("notebooks/"):
        return root.get(uri, uri)
    return f"benchmarks/{uri}" if uri.startswith("results/") else f"docs/{uri}"


def _reference() -> list[tuple[str, str]]:
    """A page for each module of the package, and one that lists them."""
    pages, rows = [], []
    for path in sorted((ROOT / "freia_kd").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if any(part.startswith("_") for part in name.split(".")) or name in HIDDEN:
            continue
        first = re.match(r'r?"""(.*?)(\n|""")', path.read_text("utf-8"))
        summary = ROLE.sub(r"`\1`", first[1]) if first else ""
        if name == "freia_kd":
            continue  # its names are those of the modules below
        pages.append((f"reference/{name}.md", f"# {name} {{ #{name} }}\n\n::: {name}\n"))
        rows.append(f"| [{name}]({name}.md) | {summary} |")
    table = "\n".join(["| module | what it is |", "|---|---|", *rows])
    return [*pages, ("reference/index.md", f"{_public()}\n## All modules\n\n{table}\n")]


def _commands() -> str:
    """The help of every command, as `--help` shows it."""
    text = ["# The commands", "As `freiakd COMMAND --help` shows them.", *_help(main, "freiakd")]
    return "\n\n".join(text) + "\n"


def _help(command: click.Command, name: str, parent: click.Context | None = None) -> list[str]:
    """The help of a command, and of those below it."""
    context = click.Context(command, parent, info_name=name.split()[-1], terminal_width=76)
    text = [f"## {name}", f"```text\n{command.get_help(context)}\n```"]
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None:
                text += _help(found, f"{name} {below}", context)
    return text


def _public() -> str:
    """The names of `freia_kd` itself, with links to where they are described."""
    source = (ROOT / "freia_kd/__init__.py").read_text("utf-8")
    rows = []
    for module, name in re.findall(r"from \.(\S+) import (\w+) as", source):
        home, summary = _home(f"freia_kd.{module}", name)
        rows.append(f"| [`freia_kd.{name}`][{home}.{name}] | {summary} |")
    head = "# The names\n\nWhat `import freia_kd` offers:\n\n| name | what it is |\n|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _home(module: str, name: str) -> tuple[str, str]:
    """The module in which a name is defined, through `from .x import name`, and its first line."""
    base = ROOT / module.replace(".", "/")
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            return module, ROLE.sub(r"`\1`", summary)
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            package = module if base.is_dir() else module.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            return _home(f"{package}.{node.module}" if node.module else package, name)
    raise ValueError(f"Expected {name!r} to be defined or imported in {path}; it is neither.")


def _notebook(path: Path) -> list[tuple[str, str | bytes]]:
    """A notebook as a page, with its pictures."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    text, pictures = [], []
    for cell in cells:
        source = "".join(cell["source"])
        text.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                text.append(f"```text\n{''.join(output['text'])}```")
            if "image/png" in output.get("data", {}):
                uri = f"notebooks/{path.stem}-{len(pictures)}.png"
                pictures.append((uri, b64decode(output["data"]["image/png"])))
                text.append(f"![What the cell above shows]({Path(uri).name})")
    return [(f"notebooks/{path.stem}.md", "\n\n".join(text) + "\n"), *pictures]
