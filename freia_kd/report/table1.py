"""The paper's Table 1 beside our figures, as a document."""

from __future__ import annotations

from collections.abc import Iterator

from .document import Document, Remarks, Section, Table
from .run import provenance_blocks
from .schema import MIN_GAP, TablePart, TableResult
from .words import spread


def table1_document(result: TableResult) -> Document:
    """The tables of all data sets."""
    parts = result.parts.items()
    sections = [Section(f"{name}, {part.arch}", [part_table(part)]) for name, part in parts]
    sections.append(Section("Remarks", [Remarks([*remarks(result)])]))
    made = [*provenance_blocks(result.provenance)]
    return Document("Table 1", [], [*sections, Section("How it was made", made, True)])


def part_table(part: TablePart) -> Table:
    """The rows of one data set, the paper's figures beside ours."""
    students = list(next(iter(part.rows.values())))
    header = ["", *(f"student {s}, {who}" for s in students for who in ("paper", "here"))]
    rows = []
    for row, values in part.rows.items():
        published = part.published.get(row, [""] * len(students))
        cells = [row]
        for student, paper in zip(students, published, strict=True):
            cells += [str(paper), spread(values[student]) or "failed"]
        known = [r.mean for s in students[1:] if (r := part.recovery.get(row, {}).get(s))]
        rows.append([*cells, f"{100 * sum(known) / len(known):.0f}" if known else ""])
    return Table([*header, f"recovery, {' and '.join(students[1:])}"], rows)


def remarks(result: TableResult) -> Iterator[str]:
    """What a reader should know."""
    seeds = result.seeds
    over = f"mean and standard deviation over {seeds} seeds with a teacher of its own each"
    yield (
        f"Accuracy in % on the test images, {over if seeds > 1 else 'of one seed'}; preset "
        f"{result.preset}."
    )
    yield (
        "The paper's figures are those of one teacher of its own, so compare the recovery: "
        f"(student - Tucker) / (on training data - Tucker), in %, where that is "
        f"{100 * MIN_GAP:.0f} points or more."
    )
    yield (
        "The last two rows are not in the paper. Students keep the teacher's batch statistics, as "
        "in the paper; only our default matches them to the compressed net."
    )
    for title, error in result.failed.items():
        yield f"Failed: {title}: {error}"
