"""How much of what real images give a student has without any: recovery, on teachers made here.

    python benchmarks/recovery.py --role development --data-root FOLDER --synthesizer leaves

Teachers are named in `recovery-teachers.json`, trained from scratch and kept in `--teachers`.
Recovery is (student - Tucker only) / (real images - Tucker only) in accuracy on the test split,
where "Tucker only" is untrained and "real images" the same training on the real training images.
The test split measures and chooses nothing. Settings are to be chosen with `--role development`;
`--role test` is for the end. CIFAR-10 may be a folder of images (`--cifar10`).
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
import yaml

from freia_kd.compression import apply_plan, load_teacher, student_plan
from freia_kd.config import DistillationOptions
from freia_kd.data.datasets import LabelledData, load_dataset
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, dequantise, quantise
from freia_kd.distillation import train_student
from freia_kd.domain import DOMAINS
from freia_kd.evaluation import predict
from freia_kd.files import write_json, write_text
from freia_kd.synthesizers import build_synthesizers
from freia_kd.synthesizers.on_the_fly import OnTheFlySet, generate_labelled
from freia_kd.teachers import (
    Classifier,
    build_net,
    save_classifier,
    train_classifier,
)

HERE = Path(__file__).parent
NAMED = HERE / "recovery-teachers.json"
SHARD = 4_096


def few(data, count, seed, per_class=False):
    """Some of the data in a random order; `count` of each class, if asked."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    labels = data.labels[order]
    classes = range(int(data.labels.max()) + 1)
    rows = torch.cat([order[labels == k][:count] for k in classes]) if per_class else order[:count]
    return LabelledData(data.inputs[rows], data.labels[rows], data.name)


def domain_of(recipe):
    """The domain by which a teacher's inputs are normalised."""
    domain = DOMAINS[recipe["data"]]
    if not recipe.get("raw"):
        return domain
    return type(domain)(domain.shape, domain.classes, (0.0,), (1 / 255,), f"{domain.name}-raw")


def load_split(arguments, recipe, split):
    source = recipe["data"]
    if source == "cifar10" and arguments.cifar10:
        source = arguments.cifar10
    return load_dataset(source, domain_of(recipe), split, arguments.data_root)


def make_teacher(arguments, name, recipe, seed, train):
    """The teacher of a recipe and a seed, from its file or trained from scratch."""
    path = Path(arguments.teachers) / f"{name}-{seed}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        domain, start = domain_of(recipe), time.process_time()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = build_net(recipe["arch"], domain)
        part = few(train, recipe["images"], seed)
        generator = torch.Generator().manual_seed(seed)
        train_classifier(
            net, part, domain, recipe["epochs"], 128, recipe["learning_rate"], generator
        )
        save_classifier(path, Classifier(net, domain, recipe["arch"]))
        print(name, seed, f"trained in {time.process_time() - start:.0f} s", flush=True)
    return load_teacher(path)


class RealImages:
    """The real training images, as a source of inputs."""

    def __init__(self, data):
        self.data = data

    def sample(self, n, labels=None, generator=None):
        rows = torch.randint(len(self.data), (n,), generator=generator)
        return self.data.take(rows)


@torch.no_grad()
def make_set(folder, teacher, sources, size, seed):
    writer, generator = SyntheticWriter(folder, teacher.domain), torch.Generator().manual_seed(seed)
    for start in range(0, size, SHARD):
        writer.append(*generate_labelled(sources, teacher, min(SHARD, size - start), generator))
    return SyntheticSet(folder)


def make_student(teacher, name):
    net = apply_plan(teacher.net, student_plan(teacher.net, teacher.arch, name))
    return Classifier(net.requires_grad_(True), teacher.domain, teacher.arch).eval()


def measure(student, test, answers):
    said = predict(student, test)
    return {
        "accuracy": said.eq(test.labels).double().mean().item(),
        "agreement": said.eq(answers).double().mean().item(),
    }


def teach(teacher, sources, options, arguments, seed, test, answers):
    """Students of some sources of inputs: what they score, and CPU minutes a student."""
    start = time.process_time()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        data = (
            OnTheFlySet(sources, teacher, seed)
            if arguments.fresh
            else make_set(Path(folder) / "set", teacher, sources, arguments.size, seed)
        )
        made = (time.process_time() - start) / 60
        for name in arguments.students:
            student, begin = make_student(teacher, name), time.process_time()
            generator = torch.Generator().manual_seed(seed)
            train_student(student, data, options, generator, teacher=teacher)
            rows[name] = measure(student, test, answers)
            rows[name]["minutes"] = (time.process_time() - begin) / 60
    return rows, made


def run(arguments, options, name, recipe, seed):
    """One teacher: its students before training, of real images, and of the synthesizers."""
    torch.manual_seed(seed)
    train, test = (load_split(arguments, recipe, split) for split in ("train", "test"))
    test = few(test, arguments.test_images or len(test), 0)
    teacher = make_teacher(arguments, name, recipe, seed, train)
    answers = predict(teacher, test)
    row = {
        "teacher": name,
        "seed": seed,
        "accuracy": answers.eq(test.labels).double().mean().item(),
    }
    row["before"] = {
        s: measure(make_student(teacher, s), test, answers) for s in arguments.students
    }
    row["real"] = real_images(arguments, options, name, seed, teacher, train, test, answers)
    samples = None
    if arguments.samples:
        samples = few(train, arguments.samples, seed, per_class=True)
    start = time.process_time()
    sources = build_synthesizers(arguments.synthesizer, arguments.preset, arguments.set)
    for source in sources:
        source.fit(teacher, samples, generator=torch.Generator().manual_seed(seed))
    fitting = (time.process_time() - start) / 60
    row["wanted"] = {s.name: wanted_probability(s, teacher, seed) for s in sources}
    row["students"], made = teach(teacher, sources, options, arguments, seed, test, answers)
    row["minutes"] = {"fit": fitting, "set": made}
    row["recovery"] = {s: recovery(row, s) for s in arguments.students}
    return row


def real_images(arguments, options, name, seed, teacher, train, test, answers):
    """What the same training gives on real images; kept, since it is asked for again and again."""
    settings = {**asdict(options), "size": arguments.size, "fresh": arguments.fresh}
    if arguments.reference:
        settings = arguments.reference
    path = Path(arguments.teachers) / f"{name}-{seed}-real.json"
    known = json.loads(path.read_text()) if path.exists() else []
    for entry in known:
        if entry["settings"] == settings and set(arguments.students) <= set(entry["students"]):
            return entry["students"]
    students, _ = teach(teacher, [RealImages(train)], options, arguments, seed, test, answers)
    write_json(path, [*known, {"settings": settings, "students": students}])
    return students


@torch.no_grad()
def wanted_probability(source, teacher, seed):
    """The mean probability of the classes that were asked for."""
    labels = torch.arange(500) % teacher.domain.classes
    x, _ = source.sample(500, labels, torch.Generator().manual_seed(seed))
    x = dequantise(quantise(x))
    return teacher(x).softmax(1).gather(1, labels[:, None]).mean().item()


def recovery(row, student):
    """`None` where real images gain less than five points."""
    before, real, now = (row[k][student]["accuracy"] for k in ("before", "real", "students"))
    return (now - before) / (real - before) if real - before > 0.05 else None


def table(conditions, rows):
    lines = [
        f"Synthesizer `{conditions['synthesizer']}`, {conditions['role']} teachers; "
        f"{json.dumps(conditions['student'])}.",
        "",
        "| teacher | seeds | accuracy | student | Tucker only | real images | **student** "
        "| agreement | **recovery** | CPU minutes (fit, set, student) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["teacher"] for r in rows):
        chosen = [r for r in rows if r["teacher"] == name]
        for student in chosen[0]["students"]:
            cells = [
                percent([r["accuracy"] for r in chosen]),
                student,
                *(
                    percent([r[k][student]["accuracy"] for r in chosen])
                    for k in ("before", "real", "students")
                ),
                percent([r["students"][student]["agreement"] for r in chosen]),
                share([r["recovery"][student] for r in chosen]),
                ", ".join(
                    f"{statistics.mean(v):.1f}"
                    for v in (
                        [r["minutes"]["fit"] for r in chosen],
                        [r["minutes"]["set"] for r in chosen],
                        [r["students"][student]["minutes"] for r in chosen],
                    )
                ),
            ]
            seeds = ", ".join(str(r["seed"]) for r in chosen)
            lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def percent(values):
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def share(values):
    values = [v for v in values if v is not None]
    return f"{statistics.mean(values):.2f}" if values else "n/a"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--role", choices=["development", "test"], default="development")
    parser.add_argument("--only", nargs="+", help="teachers by name; all of the role if left out")
    parser.add_argument("--seeds", type=int, nargs="+", help="of those named; all if left out")
    parser.add_argument("--data-root")
    parser.add_argument("--cifar10", help="a folder of images with train/ and test/")
    parser.add_argument("--teachers", default="teachers", help="where teachers are kept")
    parser.add_argument("--synthesizer", default="bdnf+leaves")
    parser.add_argument("--preset", default="quick", help="of the synthesizers")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE, student.NAME=VALUE")
    parser.add_argument("--samples", type=int, default=0, help="real images of each class")
    parser.add_argument("--students", nargs="+", default=["1", "2", "3"])
    parser.add_argument("--size", type=int, default=32_768, help="inputs to learn from")
    parser.add_argument("--fresh", action="store_true", help="new inputs in every step")
    parser.add_argument("--test-images", type=int, help="fewer than all, to be quicker")
    parser.add_argument("--reference", help="a name under which real images' results are kept")
    parser.add_argument("--out", type=Path, help="where to write, without suffix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {k: yaml.safe_load(v) for k, v in (s.split("=", 1) for s in arguments.set)}
    own = {k.removeprefix("student."): v for k, v in settings.items() if k.startswith("student.")}
    options = DistillationOptions().changed(**own)
    arguments.set = {k: v for k, v in settings.items() if not k.startswith("student.")}
    named = json.loads(NAMED.read_text())
    conditions = {
        **{k: v for k, v in vars(arguments).items() if k not in ("data_root", "cifar10", "out")},
        "student": own,
        "threads": 1,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
    }
    rows = []
    for name, seeds in named[arguments.role].items():
        if arguments.only and name not in arguments.only:
            continue
        for seed in seeds:
            if arguments.seeds and seed not in arguments.seeds:
                continue
            rows.append(run(arguments, options, name, named["recipes"][name], seed))
            print(
                name,
                seed,
                f"{rows[-1]['accuracy']:.3f}",
                {s: f"{r['accuracy']:.3f}" for s, r in rows[-1]["students"].items()},
                rows[-1]["recovery"],
                flush=True,
            )
            if arguments.out:
                now = {**conditions, "load_average": os.getloadavg()}
                write_json(arguments.out.with_suffix(".json"), {"conditions": now, "rows": rows})
                write_text(arguments.out.with_suffix(".md"), table(conditions, rows))
    print(table(conditions, rows))


if __name__ == "__main__":
    main()
