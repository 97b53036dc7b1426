"""Predicts the agreement with the teacher on real data without any, and says how far off that is.

    python benchmarks/trust.py --data-root FOLDER            # students, to results/trust.json
    python benchmarks/trust.py --fit agreement new           # freia_kd/trust/calibration.json

Students of several kinds and qualities are made of teachers of `recovery-teachers.json` (roles
development and calibration; test teachers take no part): other inputs, few steps, other sizes, new
nets. For each, the evidence that needs no label and the agreement on test images are recorded; the
fit predicts one by the other and reports the error with each teacher left out. What is there is
not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean

import torch
from recovery import code_of, load_split, make_teacher, some, students_of

from freia_kd.compression import load_teacher
from freia_kd.config import DistillationOptions
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter
from freia_kd.distillation import train_student
from freia_kd.evaluation import predict, share_equal
from freia_kd.files import write_json, write_text
from freia_kd.students import StudentSpec, as_specs, build, calibration_set
from freia_kd.synthesizers import build_synthesizers
from freia_kd.synthesizers.on_the_fly import generate_labelled
from freia_kd.trust import Case, Evidence, calibrate, examine, make_judges
from freia_kd.trust.calibration import FILE, leave_one_out

HERE = Path(__file__).parent
NAMED = HERE / "recovery-teachers.json"
RESULT = HERE / "results" / "trust.json"
ROLES = ("development", "calibration")
NEW = StudentSpec(arch="lenet5", name="new")
SIZE, HELDOUT = 16_384, 512
CANDIDATES = [  # features to predict by, shown beside those that are shipped
    ("agreement",),
    ("agreement", "new"),
    ("overlap", "new"),
    ("divergence", "new"),
    ("agreement", "overlap", "new"),
    ("agreement", "new", "information"),
]
# By architecture: what students learn from, for how many steps, and which students. Other nets have
# batch normalisation, as the ResNet14 has.
PLANS = {
    "lenet5": [
        ("uniform", 40, ("1", "3")),
        ("uniform", 200, ("2", "3")),
        ("spectral", 40, ("1", "3")),
        ("spectral", 200, ("2", "3", NEW)),
        ("leaves", 40, ("2",)),
        ("leaves", 200, ("1", "3", NEW)),
        ("photos+leaves", 400, ("3", NEW)),
        ("leaves+figures", 2_000, ("1", "2", "3")),
    ],
    "resnet14": [
        ("uniform", 30, ("1", "3")),
        ("leaves", 30, ("3",)),
        ("spectral+photos", 30, ("2",)),
        ("leaves", 90, ("3",)),
        ("leaves+figures", 240, ("1", "3")),
    ],
}


def rows_of(arguments, name, recipe, seed, known):
    """Rows of one teacher's students, those that are not known yet."""
    train, test = (load_split(arguments, recipe, split) for split in ("train", "test"))
    test = some(test, arguments.test_images, 0)
    path = make_teacher(Path(arguments.teachers), name, recipe, seed, train)
    teacher = load_teacher(path, code_of(recipe))
    answers, judges, inputs = predict(teacher, test), make_judges(teacher), calibration_set(teacher)
    plan = [(None, 0, ("1", "2", "3")), *PLANS.get(recipe["arch"], PLANS["resnet14"])]
    if "macs" in recipe:  # which has students of its own
        own = students_of(recipe, None)
        plan = [(source, steps, own) for source, steps, _ in plan]
    with tempfile.TemporaryDirectory() as folder:
        for source, steps, kinds in plan:
            for spec in as_specs(kinds):
                key = {"teacher": f"{name}-{seed}", "source": source, "steps": steps}
                key["student"] = spec.name
                if any(key.items() <= row.items() for row in known):
                    continue
                start = time.process_time()
                student = build(teacher, spec, inputs).classifier
                learned = []
                if source is not None:
                    data, heldout, learned = make_sets(Path(folder), teacher, source)
                    options, order = (
                        DistillationOptions(steps=steps, batch_size=256),
                        torch.Generator(),
                    )
                    train_student(student, data, options, order.manual_seed(0), heldout=heldout)
                said = predict(student, test)
                yield {
                    **key,
                    "size": SIZE,
                    "evidence": asdict(examine(student, judges, learned, spec.arch is not None)),
                    "agreement": share_equal(said, answers),
                    "accuracy": share_equal(said, test.labels),
                    "teacher_accuracy": share_equal(answers, test.labels),
                    "seconds": time.process_time() - start,
                }


def make_sets(folder, teacher, source):
    """What students learn from and what chooses their weights, and the families of both."""
    synthesizers = build_synthesizers(source, "quick")
    for kind, size in (("train", SIZE), ("heldout", HELDOUT)):
        if not (folder / source / kind).exists():
            for synthesizer in synthesizers:
                synthesizer.fit(teacher, generator=torch.Generator().manual_seed(0))
            writer = SyntheticWriter(folder / source / kind, teacher.domain)
            generator = torch.Generator().manual_seed(len(kind))
            writer.append(*generate_labelled(synthesizers, teacher, size, generator))
    sets = (SyntheticSet(folder / source / kind) for kind in ("train", "heldout"))
    return *sets, {s.family or s.name for s in synthesizers}


def as_case(row):
    evidence = Evidence(**{**row["evidence"], "families": tuple(row["evidence"]["families"])})
    return Case(row["teacher"], evidence.features, row["agreement"])


def fit(names, conditions, rows):
    """Writes what the package ships, and says how far off it is."""
    cases = [as_case(row) for row in rows]
    teachers = sorted({case.teacher for case in cases})
    about = {
        "teachers": teachers,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": f"python benchmarks/trust.py --fit {' '.join(names)}",
        "students": "papers' students 1 to 3 and new LeNet5s, untrained or of 30 to 2,000 steps",
        "torch": conditions["torch"],
    }
    found = calibrate(cases, names, about)
    write_json(FILE, asdict(found))
    lines = [
        f"{len(cases)} students of {len(teachers)} teachers, {about['date']}; agreement with the "
        f"teacher on {conditions['test_images']:,} test images, in %. Errors of the prediction "
        "with the teacher left out, in points: the mean, and the largest.",
        "",
        "| features | mean error | largest | " + " | ".join(teachers) + " |",
        "|---|" + "---|" * (len(teachers) + 2),
    ]
    for chosen in dict.fromkeys([tuple(names), *CANDIDATES]):
        misses = leave_one_out(cases, chosen)
        by_teacher = [
            mean(abs(m.agreement) for m in misses if m.case.teacher == t) for t in teachers
        ]
        worst = max(abs(m.agreement) for m in misses)
        shown = "**" + " + ".join(chosen) + "**" if chosen == tuple(names) else " + ".join(chosen)
        numbers = [mean(abs(m.agreement) for m in misses), worst, *by_teacher]
        lines.append(f"| {shown} | " + " | ".join(f"{100 * v:.1f}" for v in numbers) + " |")
    lines += ["", "| teacher | source | steps | student | agreement | predicted |"]
    lines += ["|---|---|---|---|---|---|"]
    rows = sorted(rows, key=lambda row: row["teacher"])  # in which order teachers are left out
    for row, miss in zip(rows, leave_one_out(cases, names), strict=True):
        predicted = row["agreement"] + miss.agreement
        cells = [row["teacher"], row["source"] or "untrained", row["steps"], row["student"]]
        shares = [f"{100 * row['agreement']:.1f}", f"{100 * predicted:.1f}"]
        lines.append("| " + " | ".join(map(str, [*cells, *shares])) + " |")
    write_text(RESULT.with_suffix(".md"), "\n".join(lines) + "\n")
    print("\n".join(lines[:12]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="teachers by name; all of the roles if left out")
    parser.add_argument("--data-root")
    parser.add_argument("--cifar10", help="a folder of images with train/ and test/")
    parser.add_argument("--teachers", default="teachers", help="where teachers are kept")
    parser.add_argument("--test-images", type=int, default=2_000)
    parser.add_argument("--fit", nargs="+", help="features to predict by; makes no students")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {"conditions": {}, "rows": []}
    if arguments.fit:
        fit(arguments.fit, known["conditions"], known["rows"])
        return
    named = json.loads(NAMED.read_text())
    rows = known["rows"]
    conditions = {
        "test_images": arguments.test_images,
        "training": asdict(DistillationOptions(batch_size=256)),
        "threads": 1,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
    }
    for role in ROLES:
        for name, seeds in named.get(role, {}).items():
            for seed in seeds if not arguments.only or name in arguments.only else ():
                for row in rows_of(arguments, name, named["recipes"][name], seed, list(rows)):
                    rows.append(row)
                    shown = {k: row[k] for k in ("teacher", "source", "steps", "student")}
                    print(*shown.values(), f"{row['agreement']:.3f}", flush=True)
                    now = {**conditions, "load_average": os.getloadavg()}
                    write_json(RESULT, {"conditions": now, "rows": rows})


if __name__ == "__main__":
    main()
