"""A comparison of methods: its rows from its trials, and what it shows as a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from .document import Block, Document, Figure, Remarks, Section, Table
from .run import provenance_blocks
from .schema import (
    MIN_GAP,
    Comparison,
    MethodKind,
    MethodRow,
    Proportion,
    Spread,
    TrialResult,
    recovery,
)
from .words import spread


def recovered(
    student: Mapping[str, Proportion],
    compressed: Mapping[str, Proportion],
    reference: Mapping[str, Proportion],
    name: str,
) -> float | None:
    """The recovery of a student by name (:func:`~.schema.recovery`).

    Arguments:
        student: The accuracies of the method's students; none where a trial failed.
        compressed: Those without any training.
        reference: Those after training on real data.
        name: The student.
    """
    if not all(name in accuracies for accuracies in (student, compressed, reference)):
        return None
    return recovery(compressed[name].value, student[name].value, reference[name].value)


def method_rows(
    trials: Sequence[TrialResult],
    independent: Mapping[str, Spread],
    kinds: Mapping[str, MethodKind],
    pictures: Mapping[str, str] | None = None,
) -> list[MethodRow]:
    """One row for each method, the best first and the reference last.

    Arguments:
        trials: What ran.
        independent: The agreement by the judges, of each method that was judged.
        kinds: Which methods are the baseline and the reference; the others are methods.
        pictures: The PNG with inputs of each method that has one.
    """
    methods = list(dict.fromkeys(trial.method for trial in trials))

    def order(method: str) -> tuple[bool, float]:
        level = independent[method].mean if method in independent else -1.0
        return kinds.get(method) == "reference", -level

    return [
        _row(method, trials, independent.get(method), kinds, (pictures or {}).get(method))
        for method in sorted(methods, key=order)
    ]


def _row(
    method: str,
    trials: Sequence[TrialResult],
    independent: Spread | None,
    kinds: Mapping[str, MethodKind],
    picture: str | None,
) -> MethodRow:
    own = [trial for trial in trials if trial.method == method]
    kind = kinds.get(method, "method")
    bounds = {
        (k, t.seed): t.accuracy for t in trials if (k := kinds.get(t.method, "method")) != "method"
    }

    def over_seeds(value: Callable[[TrialResult, str], float | None]) -> dict[str, Spread | None]:
        return {name: Spread.of([value(t, name) for t in own]) for name in own[0].agreement}

    def gained(trial: TrialResult, name: str) -> float | None:
        low, high = (bounds.get((k, trial.seed), {}) for k in ("baseline", "reference"))
        return recovered(trial.accuracy, low, high, name) if kind == "method" else None

    seconds = Spread.of([sum(trial.stages.values()) for trial in own])
    assert seconds is not None  # a method has a trial
    return MethodRow(
        method=method,
        kind=kind,
        seeds=len(own),
        independent=independent,
        own=over_seeds(lambda trial, name: _value(trial.agreement[name])),
        accuracy=over_seeds(lambda trial, name: _value(trial.accuracy.get(name))),
        recovery=over_seeds(gained),
        seconds=seconds,
        images=0 if kind == "baseline" else max(trial.images for trial in own),
        warnings=sorted({warning for trial in own for warning in trial.warnings}),
        picture=picture,
    )


def _value(share: Proportion | None) -> float | None:
    return None if share is None else share.value


def comparison_document(comparison: Comparison) -> Document:
    """The comparison, what it says about the winner first."""
    pictures = [_picture(row) for row in comparison.rows if row.picture]
    warnings = [f"{row.method}: {said}" for row in comparison.rows for said in row.warnings]
    has_bars = any(row.independent and row.independent.std for row in comparison.rows)
    bars = "; the bars are standard deviations of the bootstrap" if has_bars else ""
    plot = Figure(
        "compare.png",
        "The agreement of each method on independent inputs against the minutes that it took",
        f"Agreement against time{bars}.",
    )
    sections = [
        Section("", [comparison_table(comparison), Remarks([*remarks(comparison)])]),
        Section("Agreement against time", [plot], True),
        Section("What each method makes", pictures, True),
        Section("Warnings", [Remarks(warnings)], True),
        Section("How it was made", [*provenance_blocks(comparison.provenance)], True),
    ]
    title = f"Methods compared on a {comparison.teacher.arch}"
    return Document(title, [verdict(comparison)], sections)


def verdict(comparison: Comparison) -> str:
    """Which method is best, as far as that can be told."""
    ranking = comparison.ranking
    if ranking is None:
        return "No method was judged by another, so no winner is named; compare several."
    baseline = [row.method for row in comparison.rows if row.kind == "baseline"]
    if ranking.winner in baseline:
        return f"{ranking.sentence} No method helped: leave the students as compressed."
    return ranking.sentence


def comparison_table(comparison: Comparison) -> Table:
    """The methods, one row for each."""
    rows = comparison.rows
    students = list(rows[0].own) if rows else []
    columns = [(k, t) for k, t in (("accuracy", "accuracy"), ("recovery", "recovery"))]
    columns.append(("own", "own agreement"))
    shown = [(k, t) for k, t in columns if any(v for row in rows for v in getattr(row, k).values())]
    header = ["method", "agreement, independent"]
    header += [f"{title}, student {name}" for _, title in shown for name in students]
    header += ["seconds", "inputs"]
    cells = []
    for row in rows:
        values = [spread(getattr(row, key)[name]) for key, _ in shown for name in students]
        seconds = f"{row.seconds.mean:.0f}" if row.kind != "baseline" else ""
        made = f"{row.images:,}" if row.images else ""
        cells.append([row.method, spread(row.independent), *values, seconds, made])
    winner = comparison.ranking and comparison.ranking.winner
    return Table(
        header, cells, strong=frozenset(i for i, r in enumerate(rows) if r.method == winner)
    )


def remarks(comparison: Comparison) -> Iterator[str]:
    """What a reader should know."""
    several = max((row.seeds for row in comparison.rows), default=1) > 1
    over = "mean ± standard deviation over seeds (of the bootstrap for the independent agreement)"
    yield f"All but seconds and inputs in %{f', {over}' if several else ', of one seed'}."
    yield (
        "Agreement, independent: with the teacher, on held-out inputs of methods of other "
        "families, adjusted for which judges a method had. It alone names the winner."
    )
    real = comparison.real_data
    if real.evaluation:
        yield (
            f"Accuracy was measured on {real.evaluation} ({real.evaluation_count:,} inputs), after "
            "the last weight was fixed, and decides nothing."
        )
    if comparison.reference:
        yield (
            f"Recovery: (student - compressed) / (on {comparison.reference} - compressed), where "
            f"that is {100 * MIN_GAP:.0f} points or more."
        )
    for title, error in comparison.failed.items():
        yield f"Failed: {title}: {error}"
    for name, reason in comparison.refused.items():
        yield f"Left out: {name} {reason}."


def _picture(row: MethodRow) -> Block:
    alt = f"Inputs of {row.method}, one row for each class"
    return Figure(str(row.picture), alt, row.method, is_plot=False)
