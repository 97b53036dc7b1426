"""The papers' students of MNIST or Fashion-MNIST, distilled without data; several seeds.

    python benchmarks/students.py --data mnist --data-root FOLDER --seeds 0 1 2

Every seed trains its own teacher (`freiakd train-teacher`), distils students 1, 2 and 3 from it
(`freiakd distill --preset standard`), and trains the same students on the real training images,
which the command never does: the recovery is (student - Tucker only) / (real - Tucker only).
The test split is read by the report alone, and chooses nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
from pathlib import Path

import torch

from freia_kd.api import distill, train_teacher
from freia_kd.compression import apply_plan, load_teacher, student_plan
from freia_kd.config import get_preset
from freia_kd.data.datasets import load_dataset
from freia_kd.domain import DOMAINS
from freia_kd.evaluation import accuracy
from freia_kd.files import write_json, write_text
from freia_kd.registry import DIVERGENCES
from freia_kd.report.schema import recovery
from freia_kd.teachers import Classifier
from freia_kd.training.progress import PlainProgress

STUDENTS = ("1", "2", "3")


def train_on_real_images(teacher, name, data, options, seed):
    """The student of the same plan and loss, with real images in place of synthetic ones."""
    net = apply_plan(teacher.net, student_plan(teacher.net, teacher.arch, name))
    student = Classifier(net, teacher.domain, teacher.arch).eval().requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.parameters(), options.learning_rate or 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for _ in range(options.steps):
        x, _ = data.take(torch.randint(len(data), (options.batch_size,), generator=generator))
        with torch.no_grad():
            target = teacher(x)
        loss = DIVERGENCES[options.divergence](student(x), target, options.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student


def run_seed(arguments, seed, folder):
    checkpoint = folder / f"teacher-{seed}.pt"
    trained = train_teacher(
        arguments.data, checkpoint, arch=arguments.arch, data_root=arguments.data_root,
        epochs=arguments.epochs, seed=seed, progress=PlainProgress(interval=60),
    )  # fmt: skip
    result = distill(
        checkpoint, students=STUDENTS, eval_data=arguments.data, data_root=arguments.data_root,
        preset=arguments.preset, seed=seed, device="cpu", out=folder / f"run-{seed}",
        progress=PlainProgress(interval=60),
    )  # fmt: skip
    keep = Path(__file__).parent / "results" / f"{arguments.data}-synthetic.png"
    if seed == arguments.seeds[0]:
        shutil.copy(folder / f"run-{seed}" / "inputs-bdnf.png", keep)
    teacher, domain = load_teacher(checkpoint), DOMAINS[arguments.data]
    train, test = (
        load_dataset(arguments.data, domain, split, arguments.data_root)
        for split in ("train", "test")
    )
    rows = {}
    report = result.report
    for row in report.students:
        options = get_preset(arguments.preset).training
        real = accuracy(train_on_real_images(teacher, row.name, train, options, seed), test)
        before, after = row.compressed.accuracy.value, row.distilled.accuracy.value
        rows[row.name] = {
            "tucker_only": before,
            "student": after,
            "real_images": real,
            "recovery": recovery(before, after, real),
            "agreement": row.distilled.real_agreement.value,
            "synthetic_agreement": row.distilled.agreement.value,
            "steps": row.steps,
        }
    return {
        "seed": seed,
        "teacher": trained.accuracy.value,
        "students": rows,
        "seconds": report.seconds,
        "versions": report.provenance.versions,
        "preset": report.provenance.config["preset"],
    }


def spread(values):
    values = [v for v in values if v is not None]
    if not values:
        return "n/a"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def table(arguments, seeds):
    lines = [
        f"{arguments.data}, {arguments.arch}, preset {arguments.preset}: mean and standard "
        f"deviation over {len(seeds)} seeds, a teacher of its own for each, in %.",
        f"Teacher {spread([s['teacher'] for s in seeds])}. {platform.machine()}, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}.",
        "",
        "| student | Tucker only | distilled without data | on real images | recovery "
        "| agreement (real) | agreement (synthetic) |",
        "|---|---|---|---|---|---|---|",
    ]
    columns = ("tucker_only", "student", "real_images", "recovery", "agreement")
    for name in STUDENTS:
        cells = [
            spread([s["students"][name][c] for s in seeds])
            for c in (*columns, "synthetic_agreement")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    stages = list(seeds[0]["seconds"])
    lines += ["", "Minutes: " + ", ".join(
        f"{stage} {statistics.mean(s['seconds'][stage] for s in seeds) / 60:.1f}"
        for stage in stages
    ) + "."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["mnist", "fashion-mnist", "digits"], default="mnist")
    parser.add_argument("--data-root")
    parser.add_argument("--arch", default="lenet5")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = (
        Path(__file__).parent / "results" / f"{arguments.data}-{arguments.arch}-{arguments.preset}"
    )
    with tempfile.TemporaryDirectory() as folder:
        seeds = []
        for seed in arguments.seeds:
            seeds.append(run_seed(arguments, seed, Path(folder)))
            conditions = {
                "command": "python benchmarks/students.py "
                f"--data {arguments.data} --arch {arguments.arch} --preset {arguments.preset} "
                f"--seeds {' '.join(map(str, arguments.seeds))} --threads {arguments.threads}",
                "cores": os.cpu_count(),
                "load_average": os.getloadavg(),
            }
            write_json(out.with_suffix(".json"), {"conditions": conditions, "seeds": seeds})
            write_text(out.with_suffix(".md"), table(arguments, seeds))
            print(json.dumps(seeds[-1]["students"]), flush=True)
    print(table(arguments, seeds))


if __name__ == "__main__":
    main()
