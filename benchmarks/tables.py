"""Distilling classifiers of tables: KegNet, BDNF and normal noise against real training data.

    python benchmarks/tables.py --seeds 0 1 2

Every seed trains its own teacher (an MLP of 64-64 hidden units) on each table. Each method makes
the same number of inputs, from which students 1, 2 and 3 learn in the same way. The test split
measures and chooses nothing. All that a method knows of the data is the teacher, and with it the
mean and standard deviation of each feature.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from students import STUDENTS, spread, train_on_real_images

from freia_kd.api import train_teacher
from freia_kd.compression import apply_plan, count_macs, load_teacher, student_plan
from freia_kd.config import DistillationOptions
from freia_kd.data.datasets import load_dataset
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter
from freia_kd.distillation import train_student
from freia_kd.evaluation import accuracy
from freia_kd.files import write_json, write_text
from freia_kd.synthesizers import get_synthesizer
from freia_kd.teachers import Classifier

METHODS = {"normal noise": "normal", "BDNF": "bdnf", "KegNet": "kegnet"}  # each by preset quick


def fresh_student(teacher, name):
    net = apply_plan(teacher.net, student_plan(teacher.net, teacher.arch, name))
    return Classifier(net, teacher.domain, teacher.arch).eval()


def run_method(method, teacher, test, arguments, seed, folder):
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    synthesizer = get_synthesizer(METHODS[method]).build("quick")
    synthesizer.fit(teacher, generator=generator)
    with torch.no_grad():
        x, labels = synthesizer.sample(arguments.size, generator=generator)
        logits = teacher(x)
    seconds = time.perf_counter() - start
    SyntheticWriter(folder, teacher.domain).append(x, logits, labels)
    data, options = SyntheticSet(folder), DistillationOptions(steps=arguments.steps, batch_size=256)
    result = {"seconds": seconds, "students": {}}
    for student_name in STUDENTS:
        student = fresh_student(teacher, student_name)
        train_student(student, data, options, torch.Generator().manual_seed(seed))
        result["students"][student_name] = accuracy(student, test)
    return result


def run_seed(name, arguments, seed, folder):
    checkpoint = folder / f"{name}-{seed}.pt"
    trained = train_teacher(name, checkpoint, seed=seed)
    teacher = load_teacher(checkpoint)
    train, test = (load_dataset(name, teacher.domain, split) for split in ("train", "test"))
    students = {s: fresh_student(teacher, s) for s in STUDENTS}
    options = DistillationOptions(steps=arguments.steps, batch_size=256)
    macs = count_macs(teacher.net, teacher.domain.shape)
    result = {
        "table": name,
        "seed": seed,
        "rows": {"train": len(train), "test": len(test)},
        "teacher": trained.accuracy.value,
        "macs": {s: macs / count_macs(c.net, teacher.domain.shape) for s, c in students.items()},
        "compressed_only": {s: accuracy(c, test) for s, c in students.items()},
        "real_data": {
            s: accuracy(train_on_real_images(teacher, s, train, options, seed), test)
            for s in STUDENTS
        },
    }
    result["methods"] = {
        method: run_method(method, teacher, test, arguments, seed, folder / f"{name}{seed}{number}")
        for number, method in enumerate(METHODS)
    }
    return result


def table(arguments, results):
    lines = [
        "Tables of scikit-learn, MLP teachers with 64-64 hidden units: accuracy in %, mean and "
        f"standard deviation over {len(arguments.seeds)} seeds, a teacher of its own for each; "
        f"{arguments.size:,} inputs by preset quick and {arguments.steps} steps for every student. "
        "Seconds are "
        "those of making the inputs, on one thread of a busy machine.",
        "",
        "| table | inputs | student 1 | student 2 | student 3 | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in arguments.tables:
        seeds = [r for r in results if r["table"] == name]
        rows = seeds[0]["rows"]
        about = f"{name}, {rows['train']} + {rows['test']} rows"
        teacher, macs = spread([s["teacher"] for s in seeds]), seeds[0]["macs"]
        lines.append(
            f"| {about} | teacher {teacher}; MACs | "
            + " | ".join(f"1/{macs[s]:.1f}" for s in STUDENTS)
            + " | |"
        )
        for key, title in (
            ("compressed_only", "none (compressed only)"),
            ("real_data", "real training data"),
        ):
            cells = [spread([r[key][s] for r in seeds]) for s in STUDENTS]
            lines.append(f"| | {title} | " + " | ".join(cells) + " | |")
        for method in METHODS:
            of = [r["methods"][method] for r in seeds]
            cells = [spread([r["students"][s] for r in of]) for s in STUDENTS]
            cells.append(f"{statistics.mean(r['seconds'] for r in of):.0f}")
            lines.append(f"| | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", default=["wine", "breast-cancer", "digits-table"])
    parser.add_argument("--size", type=int, default=8192, help="inputs of each method")
    parser.add_argument("--steps", type=int, default=300, help="of each student")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.tables:
            for seed in arguments.seeds:
                results.append(run_seed(name, arguments, seed, Path(folder)))
                print(results[-1], flush=True)
    conditions = {
        **{k: v for k, v in vars(arguments).items() if k != "out"},
        "threads": 1,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
    }
    write_json(arguments.out.with_suffix(".json"), {"conditions": conditions, "results": results})
    write_text(arguments.out.with_suffix(".md"), table(arguments, results))
    print(table(arguments, results))


if __name__ == "__main__":
    main()
