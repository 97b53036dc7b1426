"""The report of a run as a document."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from ..evaluation import ONE_SIDED
from .document import Block, Code, Document, Figure, Remarks, Section, Table
from .schema import Expectation, Provenance, Report, Scores, StudentResult
from .student import speed_of, student_sections
from .words import SAME_SPEED, count, duration, expectation, percent, points, proportion, size

LOW_AGREEMENT = 0.8
QUESTIONS = (
    "These inputs need not look like real ones. They are questions to the teacher, from whose "
    "answers the student learns; the agreement on inputs that were held out shows how well."
)


def run_document(report: Report, folder: str = "") -> Document:
    """The report of a run, the result first; arguments as of :func:`files`."""
    made = f"with {_real_inputs(report)}" if report.real_data.samples else "without its data"
    sections = [
        Section("", files(report, folder)),
        Section("How good and how small", [main_table(report), Remarks([*remarks(report)])]),
        *_chosen(report),
        Section("Synthetic inputs", [*_inputs(report)], True),
        Section("Training", [_curves()], True),
        *(section for student in report.students for section in student_sections(student)),
        Section("How it was made", [*_making(report)], True),
    ]
    several = len(report.students) > 1
    verdicts = [
        f"Student {s.name}: {verdict(report, s)}" if several else _capital(verdict(report, s))
        for s in report.students
    ]
    return Document(f"{report.teacher.arch} distilled {made}", verdicts, sections)


def verdict(report: Report, student: StudentResult) -> str:
    """A student in one sentence: how much smaller, how much less accurate, how much faster."""
    before, after = student.costs.before, student.costs.after
    small = before.bytes / after.bytes
    size_word = f"{small:.1f}x smaller" if small >= 1 else f"{1 / small:.1f}x larger"
    said = ["as large" if size_word.startswith("1.0x") else size_word]
    scores = student.distilled
    if student.change is not None:
        said.append(points(student.change))
    elif scores.accuracy is not None:
        said.append(f"an accuracy of {proportion(scores.accuracy)}")
    elif is_one_sided(student):
        said.append(
            "no evidence of how good it is (its teacher gives one and the same answer to "
            f"{percent(student.commonest)} of held-out synthetic inputs)"
        )
    else:
        agreement = proportion(scores.agreement)
        said.append(f"its teacher's answer on {agreement} of held-out synthetic inputs")
    expected = expected_of(student)
    if expected is not None and scores.real_agreement is None:
        unlike = " (of little weight: no such student was calibrated on)"
        beyond = unlike if expected.is_beyond else ""
        said.append(f"expected agreement on real data {expectation(expected)}{beyond}")
    found = speed_of(student.costs, min(before.latency)) or "speed not measured"
    said.append("no measured speed-up" if found == SAME_SPEED else found)
    return ", ".join(said) + "."


def is_one_sided(student: StudentResult) -> bool:
    """Whether agreeing with the teacher on held-out inputs shows nothing."""
    return student.commonest is not None and student.commonest >= ONE_SIDED


def expected_of(student: StudentResult) -> Expectation | None:
    """What is to be expected on real data; nothing where the teacher hardly tells inputs apart."""
    return None if is_one_sided(student) else student.expected


def files(report: Report, folder: str = "") -> list[Block]:
    """Where the students are, and how to load one.

    Arguments:
        report: The report.
        folder: What leads to the run's folder from where the reader is.
    """
    student, domain = report.students[0], report.teacher.domain
    names = "; ".join(f"student {s.name}: {' or '.join(s.files)}" for s in report.students)
    code = student.spec.get("arch") or report.teacher.arch
    arch = f", arch={json.dumps(code)}" if ":" in code else ""
    path, place = os.path.join(folder, student.files[-1]), f" in {folder}" if folder else ""
    shape = ", ".join(map(str, ("N", *domain["shape"])))
    lines = [
        "import freia_kd",
        f"student = freia_kd.load_student({json.dumps(path)}{arch})",
        f"logits = student(inputs)  # of shape ({shape}), pixels in [0, 1]",
    ]
    if len(domain["shape"]) == 1:
        lines[-1] = lines[-1].removesuffix(", pixels in [0, 1]")
    return [f"Files{place}, {names}. Each rebuilds the student alone:", Code("\n".join(lines))]


def main_table(report: Report) -> Table:
    """The teacher and the students, as compressed and as distilled."""
    real = report.real_data.evaluation is not None
    costs = report.students[0].costs.before
    batch = min(costs.latency)
    header = ["", *(["accuracy", "agreement, real data"] if real else [])]
    header += ["agreement, held-out synthetic", "file", "parameters", "MACs"]
    header += [f"latency, batch {batch}"]

    def cells(scores: Scores) -> list[str]:
        shown = [scores.accuracy, scores.real_agreement] if real else []
        return [proportion(s) for s in (*shown, scores.agreement)]

    first = ["teacher", *([proportion(report.teacher.accuracy), ""] if real else []), ""]
    first += [size(costs.bytes), count(costs.parameters), count(costs.macs)]
    rows = [[*first, f"{costs.latency[batch].median:.3g} ms"]]
    for student in report.students:
        before, after = student.costs.before, student.costs.after
        found = speed_of(student.costs, batch)
        times = f"{after.latency[batch].median:.3g} ms, {found}" if found else ""
        shares = [
            f"{size(after.bytes)} (1/{before.bytes / after.bytes:.1f})",
            f"{count(after.parameters)} (1/{before.parameters / after.parameters:.1f})",
            f"{count(after.macs)} (1/{before.macs / after.macs:.1f})" if after.macs else "0",
        ]
        untrained = "untrained" if student.spec.get("arch") else "compressed only"
        rows.append([f"student {student.name}, {untrained}", *cells(student.compressed), *[""] * 4])
        rows.append(
            [f"student {student.name}, distilled", *cells(student.distilled), *shares, times]
        )
    return Table(header, rows, strong=frozenset(range(2, len(rows), 2)))


def remarks(report: Report) -> Iterator[str]:
    """What a reader should know before trusting the table."""
    real = report.real_data
    if report.choice is not None:
        yield report.choice.sentence
    yield (
        f"Training used {_real_inputs(report)}, from {real.samples}."
        if real.samples
        else "Training used none of the teacher's data."
    )
    for synthesizer in report.synthesizers:
        if synthesizer.real_images:
            yield f"{synthesizer.name}: {synthesizer.real_images}"
    if real.evaluation:
        yield (
            f"Accuracy was measured on {real.evaluation} ({real.evaluation_count:,} inputs), read "
            "after the last weight was fixed. In brackets: 95 % intervals."
        )
    else:
        yield (
            "No real data was given to measure accuracy; agreement with the teacher on synthetic "
            "inputs is all the evidence there is, and often higher than on real ones. In "
            "brackets: 95 % intervals."
        )
    for student in report.students:
        yield from _expected(report, student)
        yield from _doubts(student, has_samples=real.samples is not None)
    for synthesizer in report.synthesizers:
        for warning in synthesizer.warnings:
            yield f"{synthesizer.name}: {warning}"
        if synthesizer.distinct is not None:
            made = f"{synthesizer.distinct:,} different inputs"
            yield f"{synthesizer.name} made {made}, which are repeated."


def _expected(report: Report, student: StudentResult) -> Iterator[str]:
    expected, is_vector = expected_of(student), len(report.teacher.domain["shape"]) == 1
    if is_vector and student.expected is None and student.distilled.real_agreement is None:
        yield (
            f"Student {student.name}: nothing predicts its agreement with its teacher on real "
            "data, which takes images of kinds that it did not learn from; of vectors there are no "
            "such kinds. Measure it with --eval-data."
        )
    if expected is None:
        return
    judges = " and ".join(expected.evidence["families"])
    beyond = " This student is unlike those, so that it says little." if expected.is_beyond else ""
    yield (
        f"Student {student.name}: expected agreement with its teacher on real data "
        f"{expectation(expected)}, by its answers to {judges}. {expected.basis}{beyond}"
    )


def _doubts(student: StudentResult, has_samples: bool) -> Iterator[str]:
    if not student.gained:
        found = (
            "which no inputs surely show to have made it better"
            if is_one_sided(student)
            else "which found no weights that agree as well with the teacher on held-out synthetic "
            "inputs, and on others from which it did not learn"
        )
        yield (
            f"Student {student.name} is as it was before distillation, {found}: other "
            "--synthesizer, a longer --preset, or a lower rate (--set student.learning_rate=...) "
            "may help."
        )
    old, new = student.compressed.accuracy, student.distilled.accuracy
    on = "the evaluation data"
    if old is None or new is None:
        old, new = student.compressed.agreement, student.distilled.agreement
        on = "held-out synthetic inputs, by agreement"
    if new.value < old.value:
        sure = "" if new.high < old.low else ", though by less than so few inputs can show"
        samples = "" if has_samples else ", or give a few labelled real inputs with --samples"
        yield (
            f"Student {student.name}: distillation made it worse than compression alone on {on} "
            f"({percent(new.value)} after {percent(old.value)}{sure}). Take what `freiakd "
            f"compress` writes, or try another --synthesizer{samples}."
        )
    if is_one_sided(student):
        yield (
            f"Student {student.name}: its teacher gives one and the same answer to "
            f"{percent(student.commonest)} of the held-out synthetic inputs, so that agreeing with "
            "it there shows nothing. Check the teacher's weights, --mean and --std, or give images "
            "that it tells apart with --proxy FOLDER or --samples FOLDER."
        )
    if student.distilled.agreement.value < LOW_AGREEMENT:
        yield (
            f"Student {student.name} agrees with its teacher on fewer than "
            f"{percent(LOW_AGREEMENT, 0)} of the synthetic inputs: choose a larger student, a "
            "longer --preset (standard, best), or another --synthesizer."
        )


def _chosen(report: Report) -> Iterator[Section]:
    choice = report.choice
    if choice is None or not choice.candidates:
        return
    families = list(choice.judged)
    header = ("mixture", *families, "mean", "behind the first", "the best in")
    rows = []
    for candidate in choice.candidates:
        behind = candidate.behind
        ends = [100 * (0.0 - end) for end in (behind.value, behind.high, behind.low)]
        points = "{:.1f} ({:.1f} to {:.1f})".format(*ends)
        shares = [candidate.judges[family] for family in families]
        said = [percent(share) for share in (*shares, candidate.agreement)]
        first = candidate is choice.candidates[0]
        taken = candidate.synthesizer == choice.synthesizer
        name = f"{candidate.synthesizer} (taken)" if taken else candidate.synthesizer
        rows.append([name, *said, "" if first else points, percent(candidate.certainty, 0)])
    judged = ", ".join(
        f"{count:,} of {family} in {choice.classes[family]} classes"
        for family, count in choice.judged.items()
    )
    about = (
        f"Each mixture taught a copy of one student for {choice.steps:,} steps. Shown is the "
        f"agreement with the teacher where it is confident, the mean over classes: {judged}, kinds "
        'of inputs that are part of no mixture. "The best in" is the share of resamples of these '
        "inputs; other seeds, and what real inputs would say, are not part of it. Points behind "
        "the first have 95 % intervals."
    )
    failed = [f"{name} failed: {error}" for name, error in choice.failed.items()]
    yield Section("How the synthesizers were chosen", [about, Table(header, rows), *failed], True)


def _inputs(report: Report) -> Iterator[Block]:
    pictures = [s for s in report.synthesizers if s.picture]
    if pictures:
        yield QUESTIONS
    for synthesizer in pictures:
        alt = f"Images of {synthesizer.name}, one row for each class, its number to the left"
        caption = f"{synthesizer.name}, one row for each class."
        yield Figure(str(synthesizer.picture), alt, caption, is_plot=False)
    measured = [(s.name, d) for s in report.synthesizers for d in s.diagnostics.values()]
    if measured:
        header = (
            "synthesizer",
            "teacher's probability of the wanted class",
            "answered with the wanted class",
            "rarest answer, of an equal share",
        )
        keys = ("confidence", "hit_rate", "balance")
        yield Table(header, [[name, *(percent(d.get(k)) for k in keys)] for name, d in measured])
    yield from (s.chosen for s in report.synthesizers if s.chosen)


def _curves() -> Figure:
    return Figure(
        "curves.png",
        "The terms of the loss of every stage over its steps",
        "The loss of every stage over its steps, and its summands where it has some; agreement, "
        "where it is shown, is with the teacher on held-out synthetic inputs.",
    )


def _making(report: Report) -> Iterator[Block]:
    rows = [[stage, duration(seconds)] for stage, seconds in report.seconds.items()]
    total = duration(sum(report.seconds.values()))
    yield Table(("stage", "time"), [*rows, ["in all", total]], strong=frozenset({len(rows)}))
    if report.minutes is not None:
        yield (
            f"Asked for were {report.minutes:g} minutes; it took {total}, besides loading and "
            "reading real data."
        )
    yield from provenance_blocks(report.provenance)


def provenance_blocks(made: Provenance) -> Iterator[Block]:
    """When and where something was made, with its options folded."""
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    seed = "" if made.seed is None else f"seed {made.seed}, "
    threads = f"{made.threads} thread{'s' if made.threads > 1 else ''}"
    several = f", {made.processes} processes" if made.processes > 1 else ""
    place = f"on {made.device} ({made.machine}, {threads}{several})"
    yield f"Made {made.created}, {seed}{place}, by {versions}."
    if made.command:
        yield Code(made.command)
    yield Code(json.dumps(made.config, indent=2, ensure_ascii=False), "All options")


def _real_inputs(report: Report) -> str:
    count = report.real_data.samples_count
    return f"{count:,} real input{'' if count == 1 else 's'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
