"""Small reports by hand, with names that would be markup if they were not escaped."""

from dataclasses import replace

from freia_kd.compression.comparison import Comparison as CostComparison
from freia_kd.compression.comparison import Costs, LayerCosts
from freia_kd.compression.cost import Latency, Speed
from freia_kd.report.schema import (
    ClassScores,
    Comparison,
    Confusion,
    Difference,
    MethodResult,
    MethodRow,
    Proportion,
    Provenance,
    Ranking,
    RealData,
    Report,
    Scores,
    Spread,
    StudentResult,
    SynthesizerResult,
    TablePart,
    TableResult,
    TeacherResult,
    TrialResult,
)

EVIL = "<script>alert(1)</script> [bold]|*x*"
DOMAIN = {"shape": [1, 28, 28], "classes": 10}


def latency(median, batch=1):
    return Latency(median, 0.9 * median, 1.1 * median, batch, 50)


def gain(ratio):
    return Speed(ratio, 0.9 * ratio, 1.1 * ratio, 50)


def costs(after_ms=1.0, change="low rank"):
    """A student of a quarter of the size, as fast as its teacher unless said otherwise."""
    conv = LayerCosts(
        "conv2", (6, 8), change, (2_416, 600), (240_000, 60_000), (latency(0.2),) * 2, gain(1.0)
    )
    times = latency(0.1), latency(0.05)
    fc = LayerCosts("fc1", (20,), change, (48_120, 10_400), (48_000, 10_400), times, gain(2.0))
    before = Costs(61_706, 416_520, 248_000, {1: 300_000, 64: 9_000_000}, {})
    after = Costs(16_000, 140_000, 62_000, {1: 110_000, 64: 8_000_000}, {})
    return CostComparison(
        replace(before, latency={1: latency(1.0), 64: latency(20, 64)}),
        replace(after, latency={1: latency(after_ms), 64: latency(10, 64)}),
        (conv, fc),
        ("It is not faster here.",),
        {1: gain(1 / after_ms), 64: gain(2.0)},
    )


def scores(accuracy, agreement, count=1_000):
    real = None if accuracy is None else Proportion.of(accuracy, count)
    return Scores(agreement=Proportion.of(agreement, 512), accuracy=real, real_agreement=real)


SEARCH = {
    "target": "macs",
    "goal": 0.5,
    "reached": 0.47,
    "agreement": 0.81,
    "inputs": "512 inputs of noise",
    "sensitivity": [
        {"name": name, "share": share, "agreement": 0.5 + share / 2}
        for name in ("conv2", "fc1")
        for share in (0.6, 0.3, 0.1)
    ],
}


def student(name="1", accuracy=0.976, **changes):
    fields = {
        "name": name,
        "files": [f"student-{name}.pt", f"student-{name}.safetensors"],
        "spec": {"methods": [{"name": "tucker"}, {"name": "quantize"}]},
        "steps": [{"method": "tucker", "skipped": {"fc2": "it is too small"}}],
        "searches": [SEARCH, None],
        "methods": [
            MethodResult(name=n, did=did, agreement=Proportion.of(0.95, 512))
            for n, did in (("tucker", "2 layers at lower ranks"), ("x:Y", f"what {EVIL} does"))
        ],
        "compressed": scores(accuracy and accuracy - 0.2, 0.7),
        "distilled": scores(accuracy, 0.97),
        "costs": costs(),
        "change": None if accuracy is None else Difference(-0.003, -0.019, 0.013),
        "per_class": [
            ClassScores(label=k, accuracy=Proportion.of(0.9, 50), agreement=Proportion.of(0.8, 60))
            for k in range(3)
        ],
        "confusion": Confusion(data="evaluation", counts=[[50, 3, 0], [1, 48, 0], [0, 7, 41]]),
    }
    return StudentResult(**{**fields, **changes})


PROVENANCE = Provenance(
    created="2026-11-21T16:00:00+00:00",
    seed=0,
    device="cpu",
    machine="Linux x86_64",
    threads=1,
    versions={"freia_kd": "0.1.0", "torch": "2.4"},
    config={"preset": {"name": "quick"}, "title": EVIL},
    command=f"freiakd distill --teacher '{EVIL}'",
)
REAL = RealData(evaluation="digits", evaluation_count=1_000)
TEACHER = TeacherResult(
    path="lenet5.pt",
    arch="lenet5",
    sha256="0" * 64,
    domain=DOMAIN,
    accuracy=Proportion.of(0.979, 1_000),
)
SYNTHESIZERS = [
    SynthesizerResult(
        name="bdnf",
        options={"steps": 4},
        diagnostics={"bdnf": {"confidence": 0.91, "hit_rate": 0.88, "balance": 0.4}},
        warnings=[f"Looks like {EVIL}."],
        chosen=f"Of the flows, {EVIL}.",
        picture="synthetic-bdnf.png",
    ),
    SynthesizerResult(
        name="photos",
        options={},
        distinct=640,
        real_images="It crops two photographs that come with scikit-learn.",
        picture="synthetic-photos.png",
    ),
]


def report(*students, **changes):
    """A report with evaluation data, of one student unless more are given."""
    fields = {
        "teacher": TEACHER,
        "students": list(students) or [student()],
        "synthesizers": SYNTHESIZERS,
        "real_data": REAL,
        "seconds": {"bdnf": 61.2, "student-1": 4.0},
        "provenance": PROVENANCE,
    }
    return Report(**{**fields, **changes})


def unmeasured(*students, **changes):
    """A report without any real data."""
    teacher = replace(TEACHER, accuracy=None)
    students = students or (student(accuracy=None),)
    return report(*students, teacher=teacher, real_data=RealData(), **changes)


def row(method, level, minutes=1.0, kind="method", seeds=3, std=0.01, **changes):
    """One method of a comparison."""
    std = None if seeds == 1 else std

    def spread(value):
        return {"2": None if value is None else Spread(value, std, seeds)}

    fields = {
        "independent": None if level is None else Spread(level, std, seeds),
        "own": spread(level),
        "accuracy": spread(0.717),
        "recovery": spread(0.625 if kind == "method" else None),
        "seconds": Spread(60 * minutes, std, seeds),
        "images": 64,
    }
    return MethodRow(method=method, kind=kind, seeds=seeds, **{**fields, **changes})


def comparison(**changes):
    """A comparison of two methods, one of which had a trial that failed."""
    rows = [
        row("first", 0.9, warnings=["warned by first"], picture="trials/first-0/synthetic.png"),
        row("compression only", 0.8, kind="baseline", images=0),
        row(EVIL, 0.7, seeds=2),
        row("real training data", None, kind="reference"),
    ]
    trial = TrialResult(
        method="first",
        seed=0,
        agreement={"2": Proportion.of(0.9, 64)},
        accuracy={"2": Proportion.of(0.7, 64)},
        stages={"bdnf": 3.0},
        images=64,
    )
    fields = {
        "teacher": TEACHER,
        "rows": rows,
        "trials": [trial],
        "ranking": Ranking(
            winner="first",
            rival="compression only",
            certainty=0.9,
            seeds=3,
            judges=4,
            sentence="By label-free evidence first is probably the best.",
        ),
        "failed": {f"{EVIL}, seed 1": "it broke"},
        "refused": {"samples": "needs real samples"},
        "real_data": REAL,
        "provenance": PROVENANCE,
        "reference": "real (20)",
    }
    return Comparison(**{**fields, **changes})


def table1(**changes):
    """A part of Table 1 with a row that failed for student 3."""
    here = Spread(0.875, 0.0625, 3)
    rows = {r: dict.fromkeys("123", here) for r in ("original", "Tucker (T)", "T+BDNF")}
    rows["T+Normal"] = {**dict.fromkeys("12", here), "3": None}
    recovered = {s: Spread(m, None, 1) for s, m in (("1", 0.1), ("2", 0.5), ("3", 0.75))}
    part = TablePart(
        arch="lenet5",
        test_images=40,
        rows=rows,
        best_on_test={"T+BDNF": {**dict.fromkeys("12", Spread(0.9, 0.01, 3)), "3": None}},
        published={"T+BDNF": [1.0, "<2.0", 3.0]},
        recovery={"T+BDNF": recovered, "T+Normal": {**recovered, "3": None}},
    )
    fields = {
        "parts": {"mnist": part},
        "preset": "quick",
        "students": "paper",
        "teacher": None,
        "seeds": 3,
        "failed": {f"mnist {EVIL}": "no noise today"},
        "seconds": {"trials": 3.0},
        "provenance": PROVENANCE,
    }
    return TableResult(**{**fields, **changes})
