"""A student in detail: what it costs, layer by layer, and what each layer suffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN_SHARES = (0.7, 0.4, 0.2, 0.06)  # of a layer's weights, in the table of sensitivities

Rows = list[list[str]]


@dataclass(frozen=True)
class Block:
    """A table of a report, with what is to be said of it.

    Arguments:
        title: Its heading.
        rows: Rows of text, the first of which is the header; perhaps none.
        remarks: Sentences.
    """

    title: str
    rows: Rows
    remarks: tuple[str, ...] = ()


def student_blocks(student: Mapping[str, Any]) -> list[Block]:
    """The details of a student, from its entry in a report."""
    name, blocks = student["name"], []
    costs = student["costs"]
    blocks.append(Block(f"Student {name}: costs", cost_rows(costs), tuple(costs["warnings"])))
    if len(student["agreements"]) > 1:
        rows = method_rows(student["steps"], student["agreements"])
        blocks.append(Block(f"Student {name}: methods", rows))
    skipped = tuple(skipped_remarks(student["steps"]))
    blocks.append(Block(f"Student {name}: layers", layer_rows(costs), skipped))
    if student["budget"]:
        budget = student["budget"]
        rows = sensitivity_rows(budget["sensitivity"], student["ranks"])
        blocks.append(Block(f"Student {name}: sensitivity", rows, budget_remarks(budget)))
    return blocks


def cost_rows(costs: Mapping[str, Any]) -> Rows:
    """Parameters, multiply-accumulates, bytes, memory and time, before and after."""
    before, after = costs["before"], costs["after"]
    rows = [["", "teacher", "student", "share"]]
    for title, key in (("parameters", "parameters"), ("MACs", "macs"), ("bytes on disk", "bytes")):
        rows.append([title, f"{before[key]:,}", f"{after[key]:,}", _share(before[key], after[key])])
    for batch in before["peak_bytes"]:
        old, new = before["peak_bytes"][batch], after["peak_bytes"][batch]
        title = f"peak bytes, batch {batch}"
        rows.append([title, f"{old:,}", f"{new:,}", _share(old, new)])
    for batch in before["latency"]:
        old, new = before["latency"][batch], after["latency"][batch]
        share = _share(old["median"], new["median"])
        rows.append([f"latency, batch {batch}", _time(old), _time(new), share])
    return rows


def method_rows(steps: Sequence[Mapping[str, Any]], agreements: Mapping[str, float]) -> Rows:
    """What each method did, in order, and the agreement after its training."""
    rows = [["method", "what it did", "agreement, synthetic"]]
    for step in steps:
        method = step["method"]
        did = {
            "tucker": lambda s: f"{len(s['layers'])} layers at lower ranks",
            "prune": lambda s: f"MACs {s['macs'][0]:,} → {s['macs'][1]:,}",
            "quantize": lambda s: f"{len(s['layers'])} layers of integers",
        }[method](step)
        rows.append([method, did, f"{agreements[method]:.1%}"])
    return rows


def layer_rows(costs: Mapping[str, Any]) -> Rows:
    """What each compressed layer costs, before and after."""
    rows = [["layer", "change", "ranks", "parameters", "MACs", "latency, ms"]]
    for layer in costs["layers"]:
        times = [f"{latency['median']:.3f}" for latency in layer["latency"]]
        rows.append(
            [
                layer["name"],
                layer["change"],
                " x ".join(map(str, layer["ranks"])),
                " → ".join(f"{n:,}" for n in layer["parameters"]),
                " → ".join(f"{n:,}" for n in layer["macs"]),
                " → ".join(times),
            ]
        )
    return rows


def sensitivity_rows(
    sensitivity: Sequence[Mapping[str, Any]], ranks: Mapping[str, Sequence[int]]
) -> Rows:
    """The agreement with the teacher where one layer alone keeps a share of its weights.

    Arguments:
        sensitivity: The rows of a budget's search.
        ranks: The ranks that the search chose, by layer.
    """
    rows = [["layer", "ranks", *(f"{share:.0%}" for share in SHOWN_SHARES)]]
    for name in dict.fromkeys(row["name"] for row in sensitivity):
        own = [row for row in sensitivity if row["name"] == name]
        cells = []
        for share in SHOWN_SHARES:
            fitting = [row["agreement"] for row in own if row["share"] <= share]
            cells.append(f"{fitting[0]:.1%}" if fitting else "")
        rows.append([name, " x ".join(map(str, ranks.get(name, ("as it is",)))), *cells])
    return rows


def budget_remarks(budget: Mapping[str, Any]) -> tuple[str, ...]:
    """How a budget was met."""
    if budget["target"] == "drop":
        bound = f"at most {budget['goal']:g} percentage points of agreement lost"
        reached = f"{budget['reached']:.2f} were"
    else:
        what = {"params": "parameters", "macs": "MACs", "latency": "latency"}[budget["target"]]
        bound = f"at most {budget['goal']:.1%} of the teacher's {what}"
        reached = f"{budget['reached']:.1%} reached"
    return (
        f"Budget: {bound}; {reached}, with an agreement of {budget['agreement']:.1%} before "
        f"any training. Judged on {budget['inputs']}.",
        "The columns show the agreement with the teacher where that layer alone keeps so much of "
        "its weights.",
    )


def skipped_remarks(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The layers that the steps of compression left alone, and why."""
    verbs = {"tucker": "was left alone", "prune": "was not pruned", "quantize": "was not quantised"}
    return [
        f"{layer['name']} {verbs[step['method']]}: {layer['reason']}."
        for step in steps
        for layer in step["skipped"]
    ]


def chosen_ranks(steps: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[int]]:
    """The ranks that Tucker decomposition gave each layer."""
    return {
        name: layer["ranks"]
        for step in steps
        if step["method"] == "tucker"
        for name, layer in step["layers"].items()
    }


def _share(before: float, after: float) -> str:
    return f"{after / before:.0%}" if before else ""


def _time(latency: Mapping[str, float]) -> str:
    return f"{latency['median']:.2f} ms ({latency['low']:.2f} to {latency['high']:.2f})"
