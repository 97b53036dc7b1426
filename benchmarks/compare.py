"""All methods side by side on one teacher, and whether the label-free winner is the true one.

    python benchmarks/compare.py --data fashion-mnist --arch resnet14 --data-root FOLDER

Trains a teacher, runs `freia_kd.compare` with small budgets and copies its table, plot and numbers
to benchmarks/results. The test split measures accuracy and chooses nothing; how well the label-free
evidence would have predicted it is Spearman's rank correlation, over methods.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from scipy.stats import spearmanr

from freia_kd.api import compare, train_teacher
from freia_kd.data.datasets import load_dataset
from freia_kd.domain import DOMAINS
from freia_kd.experiments.opening import QUICK, one_of_each
from freia_kd.files import write_json, write_text
from freia_kd.training.progress import PlainProgress

RESULTS = Path(__file__).parent / "results"


def correlation(rows):
    """How well the independent agreement orders the methods as accuracy does."""
    known = [row for row in rows if row.kind == "method" and row.independent]
    evidence = [row.independent.mean for row in known]
    accuracy = [mean(spread.mean for spread in row.accuracy.values()) for row in known]
    return float(spearmanr(evidence, accuracy).statistic), len(known)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["mnist", "fashion-mnist", "digits"], default="mnist")
    parser.add_argument("--arch", choices=list(QUICK), default="lenet5")
    parser.add_argument("--data-root")
    parser.add_argument("--teacher", help="instead of training one")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--synthesizers", default="all")
    parser.add_argument("--students", default="2,3")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", default="runs/compare-benchmark")
    arguments = parser.parse_args()
    out, progress = Path(arguments.out), PlainProgress()
    teacher = Path(arguments.teacher or out.with_suffix(".pt"))
    if not teacher.exists():
        teacher.parent.mkdir(parents=True, exist_ok=True)
        train_teacher(
            arguments.data,
            teacher,
            arch=arguments.arch,
            data_root=arguments.data_root,
            epochs=arguments.epochs,
            progress=progress,
        )
    train = load_dataset(arguments.data, DOMAINS[arguments.data], "train", arguments.data_root)
    result = compare(
        teacher,
        synthesizers=arguments.synthesizers,
        students=arguments.students.split(","),
        seeds=arguments.seeds,
        samples=one_of_each(train, 0),
        eval_data=arguments.data,
        reference=True,
        data_root=arguments.data_root,
        preset=QUICK[arguments.arch],
        workers=arguments.workers,
        out=out,
        resume=(out / "run.json").exists(),
        progress=progress,
    )
    value, count = correlation(result.comparison.rows)
    stem = RESULTS / f"compare-{arguments.data}-{arguments.arch}"
    conditions = {
        **{k: v for k, v in vars(arguments).items() if k not in ("data_root", "teacher", "out")},
        "cores": os.cpu_count(),
        "spearman": value,
    }
    write_json(stem.with_suffix(".json"), {**asdict(result.comparison), "benchmark": conditions})
    shutil.copyfile(result.folder / "compare.png", stem.with_suffix(".png"))
    text = (result.folder / "compare.md").read_text(encoding="utf-8")
    said = (
        f"\nSpearman's rank correlation of the independent agreement with accuracy, over {count} "
        f"methods: {value:.2f}.\n"
    )
    write_text(stem.with_suffix(".md"), text.replace("compare.png", stem.name + ".png") + said)
    print(text, said)


if __name__ == "__main__":
    main()
