"""What reports hold: frozen dataclasses, published as JSON Schema in `docs/report-schema.json`.

`report.json` is a :class:`Report`, `compare.json` a :class:`Comparison`, `table1.json` a
:class:`TableResult`. What goes where:

- :class:`Proportion`: every accuracy and agreement, by `Proportion.of(share, count)`.
- :class:`Difference`: two nets' accuracies on the same inputs, by `Difference.of(before, after)`.
- :class:`Spread`: a mean over seeds, by `Spread.of(values)`.
- :class:`Scores`: how good one net is; a student has one as compressed and one as distilled.
- :class:`Expectation`: an agreement on real data that nobody has measured, by `freia_kd.trust`.
- `costs`: what :func:`~freia_kd.compression.comparison.compare_costs` gives, as it is.
- :class:`MethodResult`: one method of compression, with its agreement after training.
- :class:`SynthesizerResult`: one synthesizer; what the inputs looked like, what looks wrong.
- :class:`Choice`: which synthesizers a run chose by itself, and what it tried.
- :class:`RealData`: which real data were used, and for what.
- :class:`Provenance`: when, where, by which versions and options; by `provenance.record(...)`.
- Pictures are PNG files in the same folder; those named here are shown where they exist.

Shares are in [0, 1], times in seconds or, where the name says so, milliseconds. To add a field, add
it here with a default and show it in the `documents` of this package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any, Literal

from ..compression.comparison import Comparison as CostComparison
from ..config import Count, Natural, NonNegative, Probability

VERSION = 1  # raised when a field changes its meaning or goes
MIN_GAP = 0.05  # between compressed and reference; of less, seeds' recoveries differ too much
MethodKind = Literal["method", "baseline", "reference"]
NORMAL_95 = 1.959963984540054  # the 97.5th percentile of the normal distribution


@dataclass(frozen=True)
class Proportion:
    """The share of inputs on which something holds, such as an accuracy or an agreement.

    Arguments:
        value: The share, in [0, 1].
        count: The number of inputs.
        low: The lower end of the 95 % Wilson interval, in [0, 1].
        high: Its upper end, in [0, 1].
    """

    value: Probability
    count: Count
    low: Probability
    high: Probability

    @classmethod
    def of(cls, value: float, count: int) -> Proportion:
        """A share with its interval.

        Arguments:
            value: The share, in [0, 1].
            count: The number of inputs.

        References:
            | Probable inference, the law of succession, and statistical inference (Wilson, 1927)

        Example:
            >>> round(Proportion.of(0.9, 100).low, 3)
            0.826
        """
        from scipy.stats import binomtest

        interval = binomtest(round(value * count), count).proportion_ci(method="wilson")
        return cls(value, count, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Difference:
    """How far a share changes from one net to another, on the same inputs.

    Arguments:
        value: The second share less the first, in [-1, 1].
        low: The lower end of the 95 % interval.
        high: Its upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> Difference:
        """The difference of two shares of the same inputs, with Agresti and Min's interval.

        Arguments:
            before: For each input, whether the first net is right.
            after: The same of the second.

        Raises:
            ValueError: If there are no inputs, or not equally many.

        References:
            | Simple improved confidence intervals for comparing matched proportions
            | (Agresti and Min, 2005), section 3: half an input is added to each of four cells

        Example:
            >>> Difference.of([True] * 10, [True] * 8 + [False] * 2).value
            -0.2
        """
        pairs = [(bool(b), bool(a)) for b, a in zip(before, after, strict=True)]
        if not pairs:
            raise ValueError("Expected an input or more to compare two nets on; got none.")
        won, lost = pairs.count((False, True)), pairs.count((True, False))
        count, differing = len(pairs) + 2, won + lost + 1
        middle = (won - lost) / count
        error = math.sqrt(differing - (won - lost) ** 2 / count) / count * NORMAL_95
        ends = max(middle - error, -1.0), min(middle + error, 1.0)
        return cls((won - lost) / len(pairs), *ends)


@dataclass(frozen=True)
class Spread:
    """A mean and how far single values lie from it.

    Arguments:
        mean: The mean, in the unit of what it is of.
        std: The standard deviation in the same unit; `None` of a single value.
        count: The number of values.
    """

    mean: float
    std: NonNegative | None
    count: Count

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """The spread of the values that there are; `None` if there are none.

        Example:
            >>> Spread.of([1.0, None, 4.0, 4.0])
            Spread(mean=3.0, std=1.7320508075688772, count=3)
        """
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(mean(known), stdev(known) if len(known) > 1 else None, len(known))


def recovery(compressed: float, student: float, reference: float) -> float | None:
    """(student - compressed) / (reference - compressed), where there is something to recover.

    Arguments:
        compressed: The accuracy without any training, in [0, 1].
        student: The accuracy after it.
        reference: The accuracy after training on the teacher's own data.

    Returns:
        1 where the student is as good as the reference; `None` if that gains less than 5 points.
    """
    gap = reference - compressed
    return (student - compressed) / gap if gap >= MIN_GAP else None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How good one net is.

    Arguments:
        agreement: With the teacher, on held-out synthetic inputs.
        accuracy: On the evaluation data, if there are any.
        real_agreement: With the teacher, on the evaluation data, if there are any.
    """

    agreement: Proportion
    accuracy: Proportion | None = None
    real_agreement: Proportion | None = None


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The agreement with the teacher that is to be expected on real data, seen without any.

    Arguments:
        value: The agreement, in [0, 1].
        low: The lower end of the interval.
        high: Its upper end.
        level: The share of students that lay within it where both were known.
        is_beyond: Whether the evidence lies outside of what was seen there.
        basis: On what it rests, in words.
        evidence: What was seen of the student (:class:`~freia_kd.trust.Evidence`).
    """

    value: Probability
    low: Probability
    high: Probability
    level: Probability
    is_beyond: bool
    basis: str
    evidence: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How good a student is on the inputs of one class.

    Arguments:
        label: The class.
        accuracy: On the evaluation data of this label, if there are any.
        agreement: On inputs that the teacher puts into this class (evaluation data, else held-out
            synthetic inputs), if there are any.
    """

    label: Natural
    accuracy: Proportion | None = None
    agreement: Proportion | None = None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Which classes a student gives where its teacher gives which.

    Arguments:
        data: What it was counted on: the evaluation data, or held-out synthetic inputs.
        counts: The numbers of inputs, a row for each class of the teacher, a column for each of
            the student.
    """

    data: Literal["evaluation", "held-out"]
    counts: list[list[Natural]]


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What one method of compression did, and how good the student was after its training.

    Arguments:
        name: The method's name.
        did: What it did, in a few words (:meth:`Compression.describe`).
        agreement: With the teacher on held-out synthetic inputs, after the training that followed.
    """

    name: str
    did: str
    agreement: Proportion


@dataclass(frozen=True, kw_only=True)
class StudentResult:
    """A student: how it was made, how good it is, and what it costs.

    Arguments:
        name: Its name.
        files: The files that hold it, in the report's folder; each rebuilds it alone.
        spec: What it was to be (:meth:`StudentSpec.to_dict`).
        steps: What each method of compression did, enough to rebuild the net.
        searches: What each method's search for a target found; `None` where nothing was searched.
        methods: The same methods for people.
        compressed: How good it was before any training, as `freiakd compress` writes it.
        distilled: How good it is.
        costs: Parameters, multiply-accumulates, bytes, and latency in milliseconds, of the teacher
            (`before`) and of the student (`after`), in all and by layer.
        gained: Whether distillation found weights that agree at least as well with the teacher on
            held-out synthetic inputs as those before it, and not surely worse on others from which
            the student did not learn (surely better, where `commonest` is 0.95 or more); if not,
            it is as compressed.
        expected: The agreement with the teacher to be expected on real data; `None` for vectors.
        change: The student's accuracy less the teacher's, if there are evaluation data.
        per_class: The scores of each class.
        confusion: Teacher against student.
        commonest: The share of the held-out synthetic inputs to which the teacher gives its
            commonest answer, with which a student that always says the same would agree.
    """

    name: str
    files: list[str]
    spec: dict[str, Any]
    steps: list[dict[str, Any]]
    searches: list[dict[str, Any] | None]
    methods: list[MethodResult]
    compressed: Scores
    distilled: Scores
    costs: CostComparison
    gained: bool = True
    expected: Expectation | None = None
    change: Difference | None = None
    per_class: list[ClassScores] | None = None
    confusion: Confusion | None = None
    commonest: float | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherResult:
    """The teacher.

    Arguments:
        path: Its file, or `"in memory"`.
        arch: Its architecture, by name or as `module:Class`.
        sha256: The hash of its weights.
        domain: Its input domain (:meth:`Domain.to_dict`).
        accuracy: On the evaluation data, if there are any.
    """

    path: str
    arch: str
    sha256: str
    domain: dict[str, Any]
    accuracy: Proportion | None = None


@dataclass(frozen=True, kw_only=True)
class SynthesizerResult:
    """A synthesizer, and what its inputs were like.

    Arguments:
        name: Its name, or `module:Class`.
        options: Its options.
        distinct: How many different inputs it has; `None` for one that never repeats itself.
        diagnostics: What was measured of its inputs, by the stage in which it learned; none of one
            that learns nothing.
        warnings: What looks wrong, and what to change.
        reliable: Whether students learned from its inputs; they do not where these do not show the
            classes that a method optimises them for (`False` if so for any student).
        chosen: What it has chosen by itself for the teacher, such as the size of a flow, and why.
        real_images: If it uses real images that are not the teacher's, a sentence on which.
        picture: The PNG with some of its inputs.
    """

    name: str
    options: dict[str, Any]
    distinct: Natural | None = None
    diagnostics: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    reliable: bool = True
    chosen: str | None = None
    real_images: str | None = None
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A mixture of synthesizers that a short run has tried.

    Arguments:
        synthesizer: The mixture, names joined by `+`.
        agreement: With the teacher on the judges' inputs of which it is confident, class by class:
            the mean over judges.
        judges: The same by the judges' families.
        behind: That less the best candidate's, with the bootstrap's 95 % interval.
        certainty: The share of bootstrap resamples of the judges' inputs in which it is the best.
    """

    synthesizer: str
    agreement: Probability
    judges: dict[str, Probability]
    behind: Difference
    certainty: Probability


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which synthesizers a run took, and why (`--synthesizer auto`).

    Arguments:
        synthesizer: What it took, names joined by `+`.
        default: What it would have taken without trying.
        candidates: What was tried, the best first; nothing where there was no time, or no judge.
        judged: How many inputs of each family judged.
        classes: Of how many classes these are.
        steps: The steps of each short training.
        failed: The errors of candidates that failed, by name.
        seconds: How long it took.
        sentence: The result in words.
    """

    synthesizer: str
    default: str
    candidates: list[Candidate] = field(default_factory=list)
    judged: dict[str, Count] = field(default_factory=dict)
    classes: dict[str, Count] = field(default_factory=dict)
    steps: Natural = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: NonNegative = 0.0
    sentence: str = ""


@dataclass(frozen=True, kw_only=True)
class RealData:
    """Which real data were used, and for what.

    Arguments:
        samples: What training saw, by name or path; `None` for nothing.
        samples_count: How many inputs those are.
        samples_sha256: The hash of these inputs and their labels.
        evaluation: What accuracy was measured on after the last weight was fixed.
        evaluation_count: How many inputs those are.
    """

    samples: str | None = None
    samples_count: Natural = 0
    samples_sha256: str | None = None
    evaluation: str | None = None
    evaluation_count: Natural = 0


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """When and where it was made, and with what.

    Arguments:
        created: The date and time in UTC, in the format of ISO 8601.
        seed: The seed of all random numbers; `None` where each trial has its own.
        device: Where it was computed, as torch names it.
        machine: The operating system and processor.
        threads: How many threads torch used.
        processes: How many processes shared the work (`torchrun`).
        command: The command line, if it was one.
        versions: The versions of this package, of Python and of what decides the numbers.
        config: All options.
    """

    created: str
    seed: int | None
    device: str
    machine: str
    threads: Count
    versions: dict[str, str]
    config: dict[str, Any]
    command: str | None = None
    processes: Count = 1


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came out of a run, `report.json`.

    Arguments:
        teacher: The teacher.
        students: The students, at least one; the first is also `student.pt`.
        synthesizers: What made the inputs.
        real_data: Which real data were used.
        seconds: How long each stage took, in seconds.
        provenance: How it was made.
        minutes: How many it was to take in all, if that was said.
        choice: How its synthesizers were chosen, if it chose them.
        version: The version of this schema.
    """

    teacher: TeacherResult
    students: list[StudentResult]
    synthesizers: list[SynthesizerResult]
    real_data: RealData
    seconds: dict[str, NonNegative]
    provenance: Provenance
    minutes: NonNegative | None = None
    choice: Choice | None = None
    version: int = VERSION


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One method with one seed; the students by name.

    Arguments:
        method: The method.
        seed: The seed.
        agreement: Of each student on the method's own held-out inputs; `None` without any.
        accuracy: Of each student on the evaluation data; none without them.
        stages: How long each stage took, in seconds.
        images: How many different inputs the students learned from.
        warnings: What looks wrong.
    """

    method: str
    seed: int
    agreement: dict[str, Proportion | None]
    accuracy: dict[str, Proportion]
    stages: dict[str, NonNegative]
    images: Natural
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One method over all seeds; the students by name.

    Arguments:
        method: The method.
        kind: Whether it is a method, the students as compressed (`"baseline"`), or students that
            saw the training data (`"reference"`).
        seeds: How many seeds it has.
        independent: The agreement on inputs of other families, in [0, 1], with the bootstrap's
            standard deviation; `None` where it was not judged.
        own: The agreement on its own held-out inputs, in [0, 1].
        accuracy: The accuracy, in [0, 1].
        recovery: See :func:`recovery`.
        seconds: How long a seed took with all students, in seconds.
        images: How many different inputs the students learned from.
        warnings: What looks wrong.
        picture: The PNG with some of its inputs.
    """

    method: str
    kind: MethodKind
    seeds: Count
    independent: Spread | None
    own: dict[str, Spread | None]
    accuracy: dict[str, Spread | None]
    recovery: dict[str, Spread | None]
    seconds: Spread
    images: Natural
    warnings: list[str] = field(default_factory=list)
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Which method is best by label-free evidence.

    Arguments:
        winner: The best method; `None` where one seed cannot tell.
        rival: The second, if there is one.
        certainty: The share of bootstrap resamples in which the best is the best; `None` of one
            seed.
        seeds: How many seeds there were.
        judges: How many families judged.
        sentence: The result in words.
    """

    winner: str | None
    rival: str | None
    certainty: Probability | None
    seeds: Count
    judges: Natural
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came out of a comparison of methods, `compare.json`.

    Arguments:
        teacher: The teacher.
        rows: The methods, the best first.
        trials: Every method with every seed.
        ranking: What the judges say; `None` where nothing was judged.
        failed: The errors of trials that failed, by method and seed.
        refused: Why methods were left out, by name.
        real_data: Which real data were used.
        provenance: How it was made.
        reference: The training data of the reference, if there is one.
        version: The version of this schema.
    """

    teacher: TeacherResult
    rows: list[MethodRow]
    trials: list[TrialResult]
    ranking: Ranking | None
    failed: dict[str, str]
    refused: dict[str, str]
    real_data: RealData
    provenance: Provenance
    reference: str | None = None
    version: int = VERSION


@dataclass(frozen=True, kw_only=True)
class TablePart:
    """The part of Table 1 on one data set; students by name.

    Arguments:
        arch: The teacher's architecture.
        test_images: How many images accuracy was measured on.
        rows: The accuracy of each row and student over seeds, in [0, 1], with the last weights;
            `None` where all failed.
        best_on_test: Of the paper's rows the largest accuracy of all looks at the test images, as
            the paper prints it: a leak, which nothing uses.
        published: The paper's accuracies of each row, in %, in the order of the students; a text
            where the paper gives a bound.
        recovery: See :func:`recovery`, for the rows where it says something.
    """

    arch: str
    test_images: Count
    rows: dict[str, dict[str, Spread | None]]
    best_on_test: dict[str, dict[str, Spread | None]]
    published: dict[str, list[float | str]]
    recovery: dict[str, dict[str, Spread | None]]


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """The paper's Table 1 beside our figures, `table1.json`.

    Arguments:
        parts: The data sets.
        preset: How much work was done.
        students: Whose students: `"paper"` for those of BDNF's code, `"kegnet"` for KegNet's.
        teacher: The name of the teacher's file; `None` for teachers trained from scratch.
        seeds: How many seeds.
        failed: The errors of trials that failed, by name.
        seconds: How long each stage took, in seconds.
        provenance: How it was made.
        version: The version of this schema.
    """

    parts: dict[str, TablePart]
    preset: str
    students: str
    teacher: str | None
    seeds: Count
    failed: dict[str, str]
    seconds: dict[str, NonNegative]
    provenance: Provenance
    version: int = VERSION
