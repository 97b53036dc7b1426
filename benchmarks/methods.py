"""Which synthetic inputs serve students best: noise, BDNF as published, BDNF with a spectral base.

    python benchmarks/methods.py --data mnist --data-root FOLDER --seeds 0 1 2

Every seed trains its own teacher. Each method makes the same number of images, and students 1, 2
and 3 learn from them in the same way (`--steps`, far fewer than the presets take). The test split
measures and chooses nothing. Recovery is (student - Tucker only) / (real images - Tucker only).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from students import STUDENTS, spread, train_on_real_images

from freia_kd.api import train_teacher
from freia_kd.compression import apply_plan, load_teacher, student_plan
from freia_kd.config import DistillationOptions
from freia_kd.data.datasets import LabelledData, load_dataset
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, dequantise, quantise
from freia_kd.distillation import train_student
from freia_kd.domain import DOMAINS
from freia_kd.evaluation import accuracy, predict, share_equal
from freia_kd.files import write_json, write_text
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.synthesizers.noise import Normal, Spectral, Uniform
from freia_kd.teachers import Classifier

SPECTRAL = BDNFOptions(steps=200, batch_size=64)
PUBLISHED = replace(SPECTRAL, base="gaussian", prior=False, contrast=(1.0, 2.0))


def methods():
    """Each method's sources with their shares, and how many real images a class they see."""
    ours, noise = lambda: BDNF(SPECTRAL), lambda: Spectral()
    return {
        "uniform noise": ([(lambda: Uniform(), 1.0)], 0),
        "normal noise": ([(lambda: Normal(), 1.0)], 0),
        "spectral noise": ([(noise, 1.0)], 0),
        "BDNF as published": ([(lambda: BDNF(PUBLISHED), 1.0)], 0),
        "BDNF, spectral base and prior": ([(ours, 1.0)], 0),
        "the same, spectral noise mixed in (default)": ([(ours, 0.5), (noise, 0.5)], 0),
        "the default with 10 real images": ([(ours, 0.5), (noise, 0.5)], 1),
    }


def few(data, per_class, generator):
    """The first images of each class in a random order, or None."""
    if not per_class:
        return None
    order = torch.randperm(len(data), generator=generator)
    rows = torch.cat(
        [order[data.labels[order] == k][:per_class] for k in range(int(data.labels.max()) + 1)]
    )
    return LabelledData(data.inputs[rows], data.labels[rows], f"{per_class} a class")


@torch.no_grad()
def make_set(folder, teacher, sources, size, generator):
    made = [source.sample(round(size * share), generator=generator) for source, share in sources]
    inputs = quantise(torch.cat([x for x, _ in made]))
    logits = torch.cat([teacher(dequantise(part)) for part in inputs.split(1024)])
    SyntheticWriter(folder, teacher.domain).append(inputs, logits, torch.cat([c for _, c in made]))
    return SyntheticSet(folder)


def fresh_student(teacher, name):
    net = apply_plan(teacher.net, student_plan(teacher.net, teacher.arch, name))
    return Classifier(net, teacher.domain, teacher.arch).eval()


def run_method(sources, per_class, teacher, train, test, arguments, seed, folder):
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    samples = few(train, per_class, generator)
    fitted = [(make(), share) for make, share in sources]
    for source, _ in fitted:
        source.fit(teacher, samples, generator=generator)
    data = make_set(folder, teacher, fitted, arguments.size, generator)
    options = DistillationOptions(steps=arguments.steps, batch_size=256)
    rows, answers = {}, predict(teacher, test)
    for name in STUDENTS:
        student = fresh_student(teacher, name)
        train_student(student, data, options, torch.Generator().manual_seed(seed))
        said = predict(student, test)
        rows[name] = {
            "accuracy": share_equal(said, test.labels),
            "agreement": share_equal(said, answers),
        }
    return {"students": rows, "minutes": (time.perf_counter() - start) / 60}


def run_seed(arguments, seed, folder):
    checkpoint, domain = folder / f"teacher-{seed}.pt", DOMAINS[arguments.data]
    trained = train_teacher(
        arguments.data,
        checkpoint,
        data_root=arguments.data_root,
        epochs=arguments.epochs,
        seed=seed,
    )
    teacher = load_teacher(checkpoint)
    train, test = (
        load_dataset(arguments.data, domain, split, arguments.data_root)
        for split in ("train", "test")
    )
    options = DistillationOptions(steps=arguments.steps, batch_size=256)
    result = {
        "seed": seed,
        "teacher": trained.accuracy.value,
        "tucker_only": {s: accuracy(fresh_student(teacher, s), test) for s in STUDENTS},
        "real_images": {
            s: accuracy(train_on_real_images(teacher, s, train, options, seed), test)
            for s in STUDENTS
        },
        "methods": {},
    }
    for number, (name, (sources, per_class)) in enumerate(methods().items()):
        target = folder / f"set-{seed}-{number}"
        result["methods"][name] = run_method(
            sources, per_class, teacher, train, test, arguments, seed, target
        )
        print(seed, name, result["methods"][name], flush=True)
    return result


def table(arguments, seeds):
    lines = [
        f"{arguments.data}, LeNet5 teachers of {spread([s['teacher'] for s in seeds])} %: accuracy "
        f"in %, mean and standard deviation over {len(seeds)} seeds, a teacher of its own for "
        f"each; {arguments.size:,} images and {arguments.steps} steps for every student.",
        "",
        "| images | student 1 | student 2 | student 3 "
        "| agreement, 3 | recovery, 2 and 3 | minutes |",
        "|---|---|---|---|---|---|---|",
    ]

    def row(title, cells):
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    for key, title in (
        ("tucker_only", "none (Tucker only)"),
        ("real_images", "real training images"),
    ):
        row(title, [spread([s[key][n] for s in seeds]) for n in STUDENTS] + ["", "", ""])
    for name in methods():
        results = [s["methods"][name] for s in seeds]
        recovery = [
            (r["students"][n]["accuracy"] - s["tucker_only"][n])
            / (s["real_images"][n] - s["tucker_only"][n])
            for s, r in zip(seeds, results, strict=True)
            for n in ("2", "3")
            if s["real_images"][n] - s["tucker_only"][n] > 0.01
        ]
        cells = [spread([r["students"][n]["accuracy"] for r in results]) for n in STUDENTS]
        cells += [spread([r["students"]["3"]["agreement"] for r in results]), spread(recovery)]
        row(name, [*cells, f"{statistics.mean(r['minutes'] for r in results):.1f}"])
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["mnist", "fashion-mnist", "digits"], default="mnist")
    parser.add_argument("--data-root")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=8192, help="images of each method")
    parser.add_argument("--steps", type=int, default=300, help="of each student")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(__file__).parent / "results" / f"methods-{arguments.data}"
    with tempfile.TemporaryDirectory() as folder:
        seeds = []
        for seed in arguments.seeds:
            seeds.append(run_seed(arguments, seed, Path(folder)))
            conditions = {
                **{k: v for k, v in vars(arguments).items() if k != "data_root"},
                "threads": 1,
                "torch": torch.__version__,
                "cores": os.cpu_count(),
                "load_average": os.getloadavg(),
            }
            write_json(out.with_suffix(".json"), {"conditions": conditions, "seeds": seeds})
            write_text(out.with_suffix(".md"), table(arguments, seeds))
    print(table(arguments, seeds))


if __name__ == "__main__":
    main()
