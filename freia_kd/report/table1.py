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
    """The rows of one data set: the paper's figure, ours, and ours as the paper chose its own."""
    students = list(next(iter(part.rows.values())))
    header = [""]
    for student in students:
        header += [f"{student}, paper", "last weights", "best on test (a leak)"]
    rows = []
    for row, values in part.rows.items():
        published = part.published.get(row, [""] * len(students))
        cells = [row]
        for student, paper in zip(students, published, strict=True):
            best = spread(part.best_on_test.get(row, {}).get(student))
            cells += [str(paper), spread(values[student]) or "failed", best]
        known = [r.mean for s in students if (r := part.recovery.get(row, {}).get(s))]
        rows.append([*cells, f"{100 * sum(known) / len(known):.0f}" if known else ""])
    return Table([*header, "recovery"], rows)


def remarks(result: TableResult) -> Iterator[str]:
    """What a reader should know."""
    seeds = result.seeds
    teacher = "a teacher of its own each" if result.teacher is None else "one teacher"
    over = f"mean and standard deviation over {seeds} seeds with {teacher}"
    whose = "BDNF's code" if result.students == "paper" else "KegNet"
    yield (
        f"Accuracy in % on the test images, {over if seeds > 1 else 'of one seed'}; preset "
        f"{result.preset}; the students of {whose}; "
        + (f"the teacher {result.teacher}." if result.teacher else "teachers trained from scratch.")
    )
    yield (
        "Best on test: of all looks at the test images while a student learns, the start included: "
        "what the paper prints. It is chosen by the images that it is measured on, a leak: "
        "compare it with the paper's figure and with nothing else. Nothing here uses it."
    )
    yield (
        "Teachers differ, so compare the recovery too: (last weights - Tucker) / (on training data "
        f"- Tucker), in %, the mean of the students with {100 * MIN_GAP:.0f} points to recover."
    )
    yield (
        "Our rows and that on training data are not in the paper: they are the product's, with its "
        "own inputs, loss and steps. The paper's rows keep the teacher's batch normalisation as it "
        "is; ours match its statistics to the compressed net."
    )
    for title, error in result.failed.items():
        yield f"Failed: {title}: {error}"
