"""How a student should learn from a fixed source of synthetic images: loss, mixup, EMA, and so on.

    python benchmarks/distillation.py --data mnist --data-root FOLDER --seeds 0 1 2

Every seed trains its own teacher and makes one set of images, half of them BDNF's and half spectral
noise; students 2 and 3 learn from it in every way of `ways()`. Agreement with the teacher is
measured on images of other sources, which no student saw and whose making knows nothing of BDNF or
its base (uniform, normal, and noise of three other power spectra). That needs no data. Judges are
the sources on which the teacher names at least three classes (the exponential of the entropy of its
answers: where it always says the same, agreement tells nothing), and the way with the largest mean
over them is the choice. Accuracy on the test split stands beside it, and chooses
nothing; the rank correlation of the two says how good a guide the first is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from scipy.stats import spearmanr
from students import spread

from freia_kd.api import train_teacher
from freia_kd.compression import apply_plan, load_teacher, student_plan
from freia_kd.config import DistillationOptions
from freia_kd.data.datasets import load_dataset
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, dequantise, quantise
from freia_kd.distillation import train_student
from freia_kd.domain import DOMAINS
from freia_kd.evaluation import accuracy, agreement
from freia_kd.files import write_json, write_text
from freia_kd.flows.bases import SpectralBase
from freia_kd.synthesizers import build_synthesizers
from freia_kd.synthesizers.on_the_fly import OnTheFlySet, generate_labelled
from freia_kd.teachers import Classifier

STUDENTS = ("2", "3")
BASE = {"divergence": "l1", "learning_rate": 2e-3}
FEWEST = 3.0  # classes that a teacher names on a judge's images
JUDGES = ("uniform", "normal", "spectrum 1", "spectrum 1.5", "spectrum 5")


def ways():
    """Each way to learn: the options that differ from `BASE`, and whether images are fresh."""
    return {
        "L1": ({}, False),
        "L1, rate 1e-3": ({"learning_rate": 1e-3}, False),
        "L1, rate 4e-3": ({"learning_rate": 4e-3}, False),
        "forward KL, T = 1": ({"divergence": "forward-kl"}, False),
        "forward KL, T = 4": ({"divergence": "forward-kl", "temperature": 4.0}, False),
        "forward KL, T = 20": ({"divergence": "forward-kl", "temperature": 20.0}, False),
        "reverse KL, T = 1": ({"divergence": "reverse-kl"}, False),
        "Jensen-Shannon, T = 1": ({"divergence": "js"}, False),
        "activation boundaries, then L1": ({"boundaries": 0.25}, False),
        "L1, mixup 1": ({"mixup": 1.0}, False),
        "L1, EMA 0.99": ({"ema": 0.99}, False),
        "L1, fresh images": ({}, True),
    }


def keep_set(folder, domain, arrays):
    SyntheticWriter(folder, domain).append(*arrays)
    return SyntheticSet(folder)


@torch.no_grad()
def judges(teacher, size, folder):
    """Sets of images from sources that have nothing to do with those that students learn from."""
    sets, generator = {}, torch.Generator().manual_seed(10_000)
    for name in JUDGES:
        kind, _, exponent = name.partition(" ")
        if exponent:
            base = SpectralBase(teacher.domain.shape, exponents=(float(exponent),))
            inputs = quantise(base.sample(size, generator=generator).sigmoid())
            logits = torch.cat([teacher(dequantise(part)) for part in inputs.split(1024)])
            arrays = (inputs, logits, logits.argmax(1))
        else:
            (source,) = build_synthesizers(kind)
            source.fit(teacher)
            arrays = generate_labelled([source], teacher, size, generator)
        sets[name] = keep_set(folder / name, teacher.domain, arrays)
    return sets


def named_classes(data):
    """How many classes a teacher names on a set: the exponential of the entropy of its answers."""
    _, logits, _ = data.batch(torch.arange(len(data)))
    shares = logits.argmax(1).bincount().double() / len(data)
    return shares[shares > 0].log().mul(-shares[shares > 0]).sum().exp().item()


def fresh_student(teacher, name):
    net = apply_plan(teacher.net, student_plan(teacher.net, teacher.arch, name))
    return Classifier(net, teacher.domain, teacher.arch).eval()


def measure(student, sets, own, test):
    return {
        "accuracy": accuracy(student, test),
        "own": agreement(student, own),
        "judges": {name: agreement(student, judge) for name, judge in sets.items()},
    }


def run_seed(arguments, seed, folder, keep):
    checkpoint, domain = folder / "teacher.pt", DOMAINS[arguments.data]
    trained = train_teacher(
        arguments.data, checkpoint, arch=arguments.arch, data_root=arguments.data_root,
        epochs=arguments.epochs, seed=seed,
    )  # fmt: skip
    teacher = load_teacher(checkpoint)
    test = load_dataset(arguments.data, domain, "test", arguments.data_root)
    generator = torch.Generator().manual_seed(seed)
    sources = build_synthesizers("bdnf+spectral", "quick")
    for source in sources:
        source.fit(teacher, generator=generator)
    data = keep_set(
        folder / "set", domain, generate_labelled(sources, teacher, arguments.size, generator)
    )
    own = keep_set(folder / "own", domain, generate_labelled(sources, teacher, 2048, generator))
    sets = judges(teacher, arguments.judge_size, folder)
    named = {name: named_classes(judge) for name, judge in sets.items()}
    print(seed, "classes named", named, flush=True)
    before = {s: measure(fresh_student(teacher, s), sets, own, test) for s in STUDENTS}
    result = {"seed": seed, "teacher": trained.accuracy.value, "classes_named": named}
    result |= {"before": before, "ways": {}}
    for name, (changes, is_fresh) in ways().items():
        options = DistillationOptions(
            steps=arguments.steps, batch_size=arguments.batch_size, **{**BASE, **changes}
        )
        start = time.process_time()
        students = {s: fresh_student(teacher, s) for s in STUDENTS}
        for student in students.values():
            source = OnTheFlySet(sources, teacher, seed) if is_fresh else data
            train_student(
                student, source, options, torch.Generator().manual_seed(seed), teacher=teacher
            )
        seconds = (time.process_time() - start) / len(STUDENTS)
        rows = {s: measure(student, sets, own, test) for s, student in students.items()}
        result["ways"][name] = {"options": asdict(options), "students": rows, "seconds": seconds}
        print(
            seed,
            name,
            {s: score(r, named) for s, r in rows.items()},
            f"{seconds:.1f} s",
            flush=True,
        )
        keep(result)
    return result


def score(row, named):
    """The label-free criterion: the mean agreement over the judges that can tell."""
    able = [v for k, v in row["judges"].items() if named[k] >= FEWEST]
    return statistics.mean(able or row["judges"].values())


def correlations(seeds, key):
    """Spearman's rank correlation of a number with accuracy, for each seed and student."""
    found = []
    for seed in seeds:
        for student in STUDENTS:
            rows = [way["students"][student] for way in seed["ways"].values()]
            values, truth = (
                [key(r, seed["classes_named"]) for r in rows],
                [r["accuracy"] for r in rows],
            )
            if len(set(values)) > 1 and len(set(truth)) > 1:
                found.append(float(spearmanr(values, truth)[0]))
    return found


def summary(seeds, name):
    """The mean over seeds and students of criterion and accuracy."""
    rows = [s["ways"][name]["students"][student] for s in seeds for student in STUDENTS]
    scores = [
        score(s["ways"][name]["students"][student], s["classes_named"])
        for s in seeds
        for student in STUDENTS
    ]
    return statistics.mean(scores), statistics.mean(r["accuracy"] for r in rows)


def table(arguments, seeds):
    named = [
        f"{judge} " + "/".join(f"{s['classes_named'][judge]:.1f}" for s in seeds)
        for judge in JUDGES
    ]
    whole = [name for name in ways() if all(name in s["ways"] for s in seeds)]
    lines = [
        f"{arguments.data}, {arguments.arch} teachers of "
        f"{spread([s['teacher'] for s in seeds])} %: "
        f"mean and standard deviation in % over {len(seeds)} seeds, a teacher of its own for each; "
        f"{arguments.size:,} images (half BDNF, half spectral noise), {arguments.steps} steps of "
        f"{arguments.batch_size}, the last weights; CPU seconds for a student.",
        "**Judges**: mean agreement with the teacher on images of other sources "
        f"({arguments.judge_size:,} each) by which the default is chosen. Classes that the "
        "teachers name there, of which a judge needs three: " + ", ".join(named) + ".",
        "",
        "| way | judges, student 2 | judges, student 3 | own source, 3 "
        "| accuracy, student 2 | accuracy, student 3 | seconds |",
        "|---|---|---|---|---|---|---|",
    ]

    def row(title, entries, seconds):
        scored = list(zip(entries, seeds, strict=True))
        cells = [
            spread([score(e[s], seed["classes_named"]) for e, seed in scored]) for s in STUDENTS
        ]
        cells.append(spread([e["3"]["own"] for e in entries]))
        cells += [spread([e[s]["accuracy"] for e in entries]) for s in STUDENTS]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {seconds} |")

    row("none (Tucker only)", [s["before"] for s in seeds], "")
    for name in whole:
        entries = [s["ways"][name] for s in seeds]
        seconds = f"{statistics.mean(e['seconds'] for e in entries):.1f}"
        row(name, [e["students"] for e in entries], seconds)
    if len(whole) > 2:
        lines += ["", verdict(seeds, whole)]
    return "\n".join(lines) + "\n"


def verdict(seeds, whole):
    means = {name: summary(seeds, name) for name in whole}
    chosen = max(whole, key=lambda name: means[name][0])
    best = max(whole, key=lambda name: means[name][1])
    sources = {"the judges": score, "its own source": lambda r, _: r["own"]}
    for judge in JUDGES:
        sources[judge] = lambda r, _, judge=judge: r["judges"][judge]
    ranks = {title: correlations(seeds, key) for title, key in sources.items()}
    return (
        f"The judges choose **{chosen}** ({100 * means[chosen][0]:.1f} %, accuracy "
        f"{100 * means[chosen][1]:.1f} %, over both students); the test split, had it been asked, "
        f"{best} ({100 * means[best][1]:.1f} %). Spearman's rank correlation with accuracy over "
        f"the {len(whole)} ways, mean (least) over seeds and students: "
        + ", ".join(f"{k} {statistics.mean(v):.2f} ({min(v):.2f})" for k, v in ranks.items() if v)
        + "."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["mnist", "fashion-mnist", "digits"], default="mnist")
    parser.add_argument("--data-root")
    parser.add_argument("--arch", default="lenet5")
    parser.add_argument("--epochs", type=int, default=2, help="of each teacher")
    parser.add_argument("--size", type=int, default=8192, help="images to learn from")
    parser.add_argument("--judge-size", type=int, default=2048, help="images of each judge")
    parser.add_argument("--steps", type=int, default=300, help="of each student")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="where to write, without suffix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arch = "" if arguments.arch == "lenet5" else f"-{arguments.arch}"
    out = arguments.out or (
        Path(__file__).parent / "results" / f"distillation-{arguments.data}{arch}"
    )
    conditions = {
        **{k: v for k, v in vars(arguments).items() if k not in ("data_root", "out")},
        "threads": 1,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
    }
    seeds = []
    if out.with_suffix(".json").exists():  # seeds of an earlier call stay
        earlier = json.loads(out.with_suffix(".json").read_text())["seeds"]
        seeds = [s for s in earlier if s["seed"] not in arguments.seeds]

    def keep(result):
        done = [s for s in seeds if s["seed"] != result["seed"]] + [result]
        now = {**conditions, "load_average": os.getloadavg()}
        write_json(out.with_suffix(".json"), {"conditions": now, "seeds": done})
        write_text(out.with_suffix(".md"), table(arguments, done))

    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(run_seed(arguments, seed, Path(folder), keep))
        keep(seeds[-1])
    print(table(arguments, seeds))


if __name__ == "__main__":
    main()
