"""The one renderer: a document as Markdown, as an HTML page in one file, and on a terminal."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .document import Block, Code, Document, Figure, Remarks, Section, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

WIDTH = 160  # of a terminal's tables where the output goes to a file
PathLike = str | os.PathLike[str]


def visible(document: Document, folder: PathLike | None) -> Document:
    """A document without what is empty and the pictures that are not there.

    Arguments:
        document: The document.
        folder: Where its pictures are; `None` leaves them all out.
    """

    def is_visible(block: Block) -> bool:
        if isinstance(block, Figure):
            return folder is not None and _is_within(folder, block.path)
        return bool(block.sentences if isinstance(block, Remarks) else block)

    shown = [replace(s, blocks=[*filter(is_visible, s.blocks)]) for s in document.sections]
    return replace(document, sections=[section for section in shown if section.blocks])


def _is_within(folder: PathLike, path: str) -> bool:
    """Whether a file is there, and in that folder: no report shows what lies elsewhere."""
    whole = Path(folder, path)
    return whole.is_file() and whole.resolve().is_relative_to(Path(folder).resolve())


def markdown(document: Document, folder: PathLike) -> str:
    """The document as Markdown.

    Arguments:
        document: The document.
        folder: Where its pictures are; those that are not there are left out.
    """
    parts = [f"# {_escape(document.title)}", *(f"**{_escape(s)}**" for s in document.verdict)]
    for section in visible(document, folder).sections:
        parts += [f"## {_escape(section.title)}"] if section.title else []
        parts += [_markdown(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return _escape(block)
    if isinstance(block, Remarks):
        return "\n".join(f"- {_escape(sentence)}" for sentence in block.sentences)
    if isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        return "\n".join([_escape(block.summary), "", fence, block.text, fence]).strip()
    if isinstance(block, Figure):
        return f"![{_escape(block.alt)}](<{block.path}>)\n\n{_escape(block.caption)}"
    lines = ["---:" if block.is_numeric(i) else "---" for i in range(len(block.header))]
    rows = [[_escape(cell) for cell in row] for row in block.rows]
    for number in block.strong:
        rows[number] = [f"**{cell}**" if cell else "" for cell in rows[number]]
    header = [_escape(cell) for cell in block.header]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, lines, *rows])


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def html(document: Document, folder: PathLike) -> str:
    """The document as one HTML page, its pictures inside, that needs no network.

    Arguments:
        document: The document.
        folder: Where its pictures are; those that are not there are left out.
    """
    from jinja2 import Environment, PackageLoader

    def picture(figure: Figure) -> str:
        data = base64.b64encode(Path(folder, figure.path).read_bytes()).decode()
        return f"data:image/png;base64,{data}"

    def kind(block: Block) -> str:
        return "Text" if isinstance(block, str) else type(block).__name__

    loader = PackageLoader("freia_kd.report", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template("report.html")
    return template.render(document=visible(document, folder), picture=picture, kind=kind)


def terminal(document: Document, details: bool = False, console: Console | None = None) -> None:
    """Prints the document's sentences and tables.

    Arguments:
        document: The document.
        details: Whether to print the sections that are details as well.
        console: Where to print; by default the standard output.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    for sentence in document.verdict:
        console.print(Text(sentence, style="bold"))
    for section in visible(document, None).sections:
        if details or not section.is_detail:
            show_section(section, console)


def show_section(section: Section, console: Console) -> None:
    """Prints one section without its pictures; names are never read as markup."""
    from rich.text import Text

    if section.title:
        console.print(Text(f"\n{section.title}", style="bold"))
    for block in section.blocks:
        if isinstance(block, Table):
            console.print(_rich_table(block))
        elif isinstance(block, Remarks):
            for sentence in block.sentences:
                console.print(Text(f"- {sentence}"))
        elif not isinstance(block, Figure):
            console.print(Text(block.text if isinstance(block, Code) else block))


def _rich_table(table: Table) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(header_style="bold")
    for column, title in enumerate(table.header):
        made.add_column(Text(title), justify="right" if table.is_numeric(column) else "left")
    for number, row in enumerate(table.rows):
        style = "bold" if number in table.strong else None
        made.add_row(*map(Text, row), style=style)
    return made
