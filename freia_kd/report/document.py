"""What a report shows, apart from how: titles, sentences, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Remarks:
    """Sentences, each with a bullet."""

    sentences: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Arguments:
        header: The titles of the columns.
        rows: The cells, as many in each row.
        numeric: The columns that are set to the right; by default all but the first.
        strong: The rows that are stressed.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] | None = None
    strong: frozenset[int] = frozenset()

    def is_numeric(self, column: int) -> bool:
        """Whether a column is set to the right."""
        return column > 0 if self.numeric is None else column in self.numeric


@dataclass(frozen=True)
class Figure:
    """A picture.

    Arguments:
        path: The PNG in the document's folder; it is left out where there is none.
        alt: What it shows, for those who cannot see it.
        caption: The line below it.
        is_plot: Whether it has words, which a narrow page shows in a size that can be read.
    """

    path: str
    alt: str
    caption: str
    is_plot: bool = True


@dataclass(frozen=True)
class Code:
    """Text in a fixed pitch.

    Arguments:
        text: The text.
        summary: If given, the text is folded below it.
    """

    text: str
    summary: str = ""


Block = str | Remarks | Table | Figure | Code


@dataclass(frozen=True)
class Section:
    """A part of a document.

    Arguments:
        title: Its heading; empty for none.
        blocks: What it shows; a text is a paragraph.
        is_detail: Whether a terminal leaves it out.
    """

    title: str
    blocks: Sequence[Block]
    is_detail: bool = False


@dataclass(frozen=True)
class Document:
    """A report as it is shown.

    Arguments:
        title: Its heading.
        verdict: The result in a sentence or a few, which come first.
        sections: Its parts.
    """

    title: str
    verdict: Sequence[str]
    sections: Sequence[Section] = field(default_factory=list)
