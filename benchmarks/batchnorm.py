"""What becomes of batch normalisation in a student: matched, frozen, re-estimated or trained.

    python benchmarks/batchnorm.py --data fashion-mnist --data-root FOLDER --seeds 0 1 2

Every seed trains its own ResNet14, briefly. Each set of synthetic images (noise, DeepInversion)
teaches each student in every mode, from the same weights and with the same batches; agreement
is measured on images of BDNF, which none of them has seen, and accuracy on the test split, which
chooses nothing. "Untrained" is the student before distillation, with the teacher's statistics,
with those of the set, and matched by it.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from students import spread

from freia_kd.compression import apply_plan, prepare_batchnorm, student_plan
from freia_kd.config import DistillationOptions
from freia_kd.data.datasets import LabelledData, load_dataset
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter
from freia_kd.distillation import train_student
from freia_kd.domain import DOMAINS
from freia_kd.evaluation import agreement, predict, share_equal
from freia_kd.files import write_json, write_text
from freia_kd.synthesizers import build_synthesizers
from freia_kd.synthesizers.on_the_fly import generate_labelled
from freia_kd.teachers import Classifier, Teacher, build_net, train_classifier

MODES = ("match", "freeze", "reestimate", "train")
UNTRAINED = {
    "freeze": "untrained",
    "reestimate": "untrained, reestimate",
    "match": "untrained, match",
}
# Briefer than the presets, so that three seeds take a quarter of an hour of one core.
SETTINGS = {
    "bdnf": {"bdnf.steps": 60, "bdnf.batch_size": 32},
    "deepinversion": {"images": 512},
}


def few(data, count, seed):
    """Some of the data, in a random order."""
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    return LabelledData(data.inputs[rows], data.labels[rows], data.name)


def make_teacher(arguments, train, domain, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build_net("resnet14", domain)
    part, generator = few(train, arguments.images, seed), torch.Generator().manual_seed(seed)
    train_classifier(net, part, domain, arguments.epochs, 64, 2e-3, generator)
    return Teacher(net, domain, "resnet14")


def make_set(folder, teacher, name, size, seed):
    """A synthetic set by one synthesizer."""
    (synthesizer,) = build_synthesizers(name, "quick", SETTINGS.get(name))
    generator = torch.Generator().manual_seed(seed)
    synthesizer.fit(teacher, generator=generator)
    SyntheticWriter(folder, teacher.domain).append(
        *generate_labelled([synthesizer], teacher, size, generator)
    )
    return SyntheticSet(folder)


def measure(student, test, answers, judge):
    said = predict(student, test)
    return {
        "accuracy": share_equal(said, test.labels),
        "agreement": share_equal(said, answers),
        "agreement_synthetic": agreement(student, judge),
    }


def run_student(name, teacher, data, arguments, seed, score):
    """A student untrained and trained, in every mode."""
    net = apply_plan(teacher.net, student_plan(teacher.net, teacher.arch, name))
    fresh = Classifier(net.requires_grad_(True), teacher.domain, teacher.arch).eval()
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:2048]
    inputs = teacher.domain.normalize(data.batch(rows)[0])
    results = {}
    for mode, title in UNTRAINED.items():
        student = copy.deepcopy(fresh)
        prepare_batchnorm(student.net, mode, inputs, teacher.net)
        results[title] = score(student)
    for mode in MODES:
        student = copy.deepcopy(fresh)
        prepare_batchnorm(student.net, mode, inputs, teacher.net)
        options = DistillationOptions(steps=arguments.steps, batch_size=64)
        generator = torch.Generator().manual_seed(seed)
        train_student(
            student, data, options, generator, teacher=teacher, batchnorm_follows=mode == "train"
        )
        results[mode] = score(student)
    return results


def run_seed(arguments, seed, folder):
    domain = DOMAINS[arguments.data]
    train, test = (
        load_dataset(arguments.data, domain, split, arguments.data_root)
        for split in ("train", "test")
    )
    test = few(test, arguments.test_images, 0)
    start = time.perf_counter()
    teacher = make_teacher(arguments, train, domain, seed)
    answers = predict(teacher, test)
    judge = make_set(folder / f"judge-{seed}", teacher, "bdnf", 1024, seed + 1)
    result = {"seed": seed, "teacher": share_equal(answers, test.labels), "sets": {}}
    print(seed, "teacher and judge", f"{time.perf_counter() - start:.0f} s", flush=True)
    for source in arguments.sets:
        data = make_set(folder / f"{source}-{seed}", teacher, source, arguments.size, seed)
        print(seed, source, f"{time.perf_counter() - start:.0f} s", flush=True)
        result["sets"][source] = {
            name: run_student(
                name, teacher, data, arguments, seed, lambda s: measure(s, test, answers, judge)
            )
            for name in arguments.students
        }
        print(seed, source, result["sets"][source], flush=True)
    return {**result, "minutes": (time.perf_counter() - start) / 60}


def table(arguments, seeds):
    lines = [
        f"{arguments.data}, ResNet14 teachers of {spread([s['teacher'] for s in seeds])} %: mean "
        f"and standard deviation in % over {len(seeds)} seeds, a teacher of its own for each; "
        f"{arguments.size:,} images and {arguments.steps} steps for every student, "
        f"{statistics.mean(s['minutes'] for s in seeds):.1f} minutes a seed.",
        "",
        "| images | student | batch normalisation | accuracy | agreement, test images "
        "| agreement, BDNF's images |",
        "|---|---|---|---|---|---|",
    ]
    for source in arguments.sets:
        for name in arguments.students:
            for mode in (*UNTRAINED.values(), *MODES):
                rows = [s["sets"][source][name][mode] for s in seeds]
                cells = [
                    spread([r[key] for r in rows])
                    for key in ("accuracy", "agreement", "agreement_synthetic")
                ]
                lines.append(f"| {source} | {name} | {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["fashion-mnist", "mnist", "digits"], default="digits")
    parser.add_argument("--data-root")
    parser.add_argument("--images", type=int, default=8_000, help="that teach the teacher")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test-images", type=int, default=2_000)
    parser.add_argument("--sets", nargs="+", default=["spectral", "deepinversion"])
    parser.add_argument("--students", nargs="+", default=["1", "2", "3"])
    parser.add_argument("--size", type=int, default=4_096, help="images of each set")
    parser.add_argument("--steps", type=int, default=60, help="of each student")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(arguments.out) / f"batchnorm-{arguments.data}"
    with tempfile.TemporaryDirectory() as folder:
        seeds = []
        for seed in arguments.seeds:
            seeds.append(run_seed(arguments, seed, Path(folder)))
            conditions = {
                **{k: v for k, v in vars(arguments).items() if k not in ("data_root", "out")},
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
