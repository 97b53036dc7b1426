"""A student in detail: its methods, its classes, and what each layer costs and can do without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..compression.comparison import Comparison as CostComparison
from .document import Block, Figure, Remarks, Section, Table
from .schema import ClassScores, StudentResult
from .words import count, milliseconds, percent, proportion, ratio, size, speed

SHOWN_SHARES = (0.7, 0.4, 0.2, 0.06)  # of a layer's weights, in the table of sensitivities
MAX_CONFUSIONS = 10  # shown, the most frequent ones
GOALS = {"params": "parameters", "macs": "MACs", "latency": "latency"}

Steps = Sequence[Mapping[str, Any]]
Searches = Sequence[Mapping[str, Any] | None]


def student_sections(student: StudentResult) -> list[Section]:
    """The details of a student, each with its name in the title."""
    title = f"Student {student.name}: "
    rows = [[m.name, m.did, proportion(m.agreement)] for m in student.methods]
    header = ("method", "what it did", "agreement, held-out synthetic inputs")
    return [
        Section(title + "methods", [Table(header, rows, frozenset({2}))], True),
        Section(title + "classes", [*_classes(student)], True),
        *compression_sections(
            student.costs, student.steps, student.searches, title, f"-{student.name}"
        ),
    ]


def compression_sections(
    costs: CostComparison,
    steps: Steps,
    searches: Searches,
    title: str = "",
    suffix: str = "",
) -> list[Section]:
    """What compression did and bought, for `freiakd compress` as well.

    Arguments:
        costs: The costs before and after.
        steps: What each method did.
        searches: What each method's search for a target found.
        title: What the sections' titles begin with.
        suffix: What the names of the pictures end with, before `.png`.
    """
    alt = "Bars: parameters, multiply-accumulates and latency of each layer, before and after"
    caption = "Each compressed layer on its own, before and after."
    layers = Figure(f"costs{suffix}.png", alt, caption)
    skipped = skipped_remarks(steps)
    layer_blocks: list[Block] = [layers, layer_table(costs)]
    has_layers = bool(costs.layers or skipped)  # not of another architecture
    sections = [
        Section(title + "costs", [cost_table(costs), Remarks(costs.warnings)], True),
        *(
            [Section(title + "layers", [*layer_blocks, Remarks(skipped)], True)]
            if has_layers
            else []
        ),
    ]
    for search in searches:
        if search is not None and {"target", "sensitivity"} <= set(search):
            sections.append(_search_section(search, costs, title, suffix))
    return sections


def cost_table(costs: CostComparison) -> Table:
    """Parameters, multiply-accumulates, bytes, memory and time, before and after."""
    before, after = costs.before, costs.after
    rows = [
        ["parameters", count(before.parameters), count(after.parameters)],
        ["MACs for one input", count(before.macs), count(after.macs)],
        ["file", size(before.bytes), size(after.bytes)],
    ]
    shares = [ratio(getattr(before, k), getattr(after, k)) for k in ("parameters", "macs", "bytes")]
    for batch, old in before.peak_bytes.items():
        rows.append([f"peak memory, batch {batch}", size(old), size(after.peak_bytes[batch])])
        shares.append(ratio(old, after.peak_bytes[batch]))
    for batch, time in before.latency.items():
        new = after.latency[batch]
        rows.append([f"latency, batch {batch}", milliseconds(time), milliseconds(new)])
        shares.append(speed_of(costs, batch) or "")
    header = ("", "teacher", "student", "left")
    return Table(header, [[*row, share] for row, share in zip(rows, shares, strict=True)])


def speed_of(costs: CostComparison, batch: int) -> str | None:
    """The student's speed beside its teacher's; `None` where integers are computed as floats."""
    if batch not in costs.speed or any("int8" in layer.change for layer in costs.layers):
        return None
    return speed(costs.speed[batch])


def layer_table(costs: CostComparison) -> Table:
    """What each compressed layer costs, before and after."""
    header = ("layer", "change", "ranks", "parameters", "MACs", "latency alone, ms", "speed")
    rows = [
        [
            layer.name,
            layer.change,
            _ranks(layer.ranks),
            " → ".join(map(count, layer.parameters)),
            " → ".join(map(count, layer.macs)),
            " → ".join(f"{latency.median:.3f}" for latency in layer.latency),
            speed(layer.speed) if layer.speed and "int8" not in layer.change else "",
        ]
        for layer in costs.layers
    ]
    return Table(header, rows, frozenset(range(2, 7)))


def skipped_remarks(steps: Steps) -> list[str]:
    """The layers that the methods left alone, and why."""
    return [
        f"{name} was left alone ({step['method']}): {reason}."
        for step in steps
        for name, reason in step.get("skipped", {}).items()
    ]


def _search_section(
    search: Mapping[str, Any], costs: CostComparison, title: str, suffix: str
) -> Section:
    """How a target was met, and the agreement with each layer alone at lower ranks."""
    ranks = {layer.name: _ranks(layer.ranks) for layer in costs.layers}
    rows = []
    for name in dict.fromkeys(row["name"] for row in search["sensitivity"]):
        own = [row for row in search["sensitivity"] if row["name"] == name]
        fitting = [[r["agreement"] for r in own if r["share"] <= s] for s in SHOWN_SHARES]
        cells = [percent(found[0]) if found else "" for found in fitting]
        rows.append([name, ranks.get(name) or "as it is", *cells])
    figure = Figure(
        f"sensitivity{suffix}.png",
        "Agreement with the teacher against the share of weights left, one line for each layer",
        "Each layer alone at lower ranks.",
    )
    table = Table(("layer", "ranks", *(percent(share, 0) for share in SHOWN_SHARES)), rows)
    said = Remarks([*_search_remarks(search)])
    return Section(title + "sensitivity", [said, table, figure])


def _search_remarks(search: Mapping[str, Any]) -> Iterator[str]:
    if search["target"] == "drop":
        bound = f"at most {search['goal']:g} percentage points of agreement lost"
        reached = f"{search['reached']:.2f} were"
    else:
        what = GOALS.get(search["target"], search["target"])
        if search["target"] == "latency":
            what = f"{what} in {search.get('runtime', 'torch')}"
        bound = f"at most {percent(search['goal'])} of the teacher's {what}"
        reached = f"{percent(search['reached'])} reached"
    agreement = percent(search["agreement"])
    yield f"Target: {bound}; {reached}, with an agreement of {agreement} before any training."
    if search.get("inputs"):
        yield f"The calibration set was {search['inputs']}."
    yield "The columns show the agreement where that layer alone keeps so much of its weights."


def _classes(student: StudentResult) -> Iterator[Block]:
    if student.per_class:
        yield class_table(student.per_class)
    if student.confusion:
        counts = student.confusion.counts
        where = {"evaluation": "the evaluation data", "held-out": "held-out synthetic inputs"}
        pairs = [
            (n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j
        ]
        pairs.sort(key=lambda pair: -pair[0])
        yield f"Where it differs from its teacher most often, on {where[student.confusion.data]}:"
        yield (
            Table(
                ("teacher says", "student says", "inputs", "of the teacher's"),
                [
                    [str(i), str(j), count(n), percent(n / sum(counts[i]))]
                    for n, i, j in pairs[:MAX_CONFUSIONS]
                ],
            )
            if pairs
            else "nowhere."
        )


def class_table(classes: Sequence[ClassScores]) -> Table:
    """The scores of each class, with its accuracy where that was measured, and its agreement."""
    columns = [("accuracy", [c.accuracy for c in classes])]
    columns += [("agreement with the teacher", [c.agreement for c in classes])]
    shown = [(title, found) for title, found in columns if any(found)]
    rows = [
        [str(c.label), *map(proportion, cells)]
        for c, *cells in zip(classes, *(f for _, f in shown), strict=True)
    ]
    return Table(("class", *(title for title, _ in shown)), rows)


def _ranks(ranks: Sequence[int]) -> str:
    return " x ".join(map(str, ranks))
