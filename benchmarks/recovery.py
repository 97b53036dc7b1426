"""How much of what real images give a student has without any: recovery, on teachers made here.

    python benchmarks/recovery.py --role development --data-root FOLDER --synthesizer leaves

Teachers are named in `recovery-teachers.json`, trained from scratch and kept in `--teachers`.
Recovery is (student - Tucker only) / (real images - Tucker only) in accuracy, where "Tucker only"
is untrained and "real images" the same training on the real training images; both come from
`freiakd.distill`, as users call it. Settings are to be chosen with `--role development`, which
judges on training images so that no test image is ever in view; `--role test` is for the end.
CIFAR-10 may be a folder of images (`--cifar10`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

import freia_kd
from freia_kd.data.datasets import LabelledData, load_dataset
from freia_kd.domain import DOMAINS, Domain
from freia_kd.files import write_json, write_text
from freia_kd.report.schema import StudentResult, recovery
from freia_kd.teachers import Classifier, build_net, save_classifier, train_classifier

NAMED = Path(__file__).with_name("recovery-teachers.json")
JUDGED = 10_000  # images, at most


def some(data: LabelledData, count: int, seed: int, per_class: bool = False) -> LabelledData:
    """Some of the data in a random order; `count` of each class, if asked."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    labels = data.labels[order]
    classes = range(int(data.labels.max()) + 1)
    rows = torch.cat([order[labels == k][:count] for k in classes]) if per_class else order[:count]
    return LabelledData(*data.take(rows), data.name)


def domain_of(recipe: dict) -> Domain:
    """The domain by which a teacher's inputs are normalised; "raw" ones are of 0 to 255."""
    domain = DOMAINS[recipe["data"]]
    if not recipe.get("raw"):
        return domain
    return Domain(domain.shape, domain.classes, (0.0,), (1 / 255,), f"{domain.name}-raw")


def load_split(arguments: argparse.Namespace, recipe: dict, split: str) -> LabelledData:
    source = recipe["data"]
    if source == "cifar10" and arguments.cifar10:
        source = arguments.cifar10
    return load_dataset(source, domain_of(recipe), split, arguments.data_root)


def make_teacher(
    arguments: argparse.Namespace, name: str, recipe: dict, seed: int, train: LabelledData
) -> Path:
    """The teacher of a recipe and a seed, from its file or trained from scratch."""
    path = Path(arguments.teachers) / f"{name}-{seed}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        domain, start = domain_of(recipe), time.process_time()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = build_net(recipe["arch"], domain)
        part, generator = some(train, recipe["images"], seed), torch.Generator().manual_seed(seed)
        train_classifier(
            net, part, domain, recipe["epochs"], 128, recipe["learning_rate"], generator
        )
        save_classifier(path, Classifier(net, domain, recipe["arch"]))
        print(name, seed, f"trained in {time.process_time() - start:.0f} s", flush=True)
    return path


def distil(
    arguments: argparse.Namespace,
    teacher: Path,
    judge: LabelledData,
    seed: int,
    samples: LabelledData | None,
    synthesizer: str | None,
) -> dict:
    """What `freiakd.distill` makes, and the CPU time that it takes, in minutes."""
    start = time.process_time()
    preset = freia_kd.config.get_preset(arguments.preset)
    training = preset.training.changed(**arguments.training)
    real = samples is not None and synthesizer == "samples"
    with TemporaryDirectory() as folder:
        result = freia_kd.distill(
            teacher,
            students=arguments.students,
            synthesizer=freia_kd.synthesizers.build_synthesizers(
                synthesizer, arguments.preset, {"augment": "never"} if real else arguments.set
            )
            if synthesizer
            else None,
            preset=preset.changed(training=training),
            set_size=arguments.size,
            samples=samples,
            eval_data=judge,
            seed=seed,
            out=Path(folder) / "run",
        )
    report = result.report
    return {
        "synthesizer": "+".join(s.name for s in report.synthesizers),
        "teacher_accuracy": report.teacher.accuracy.value,
        "students": {s.name: scores(s) for s in report.students},
        "minutes": (time.process_time() - start) / 60,
        "seconds": report.seconds,
    }


def scores(student: StudentResult) -> dict:
    distilled = student.distilled
    return {
        "before": student.compressed.accuracy.value,
        "accuracy": distilled.accuracy.value,
        "agreement": distilled.real_agreement.value,
        "heldout_agreement": distilled.agreement.value,
        "expected": student.expected and asdict(student.expected),
    }


def run(arguments: argparse.Namespace, name: str, recipe: dict, seed: int) -> dict:
    """One teacher: its students of the synthesizers, and of real images."""
    train = load_split(arguments, recipe, "train")
    source = train if arguments.role == "development" else load_split(arguments, recipe, "test")
    judge = some(source, JUDGED, 0)
    teacher = make_teacher(arguments, name, recipe, seed, train)
    samples = some(train, arguments.samples, seed, per_class=True) if arguments.samples else None
    made = distil(arguments, teacher, judge, seed, samples, arguments.synthesizer)
    print(name, seed, {k: v["accuracy"] for k, v in made["students"].items()}, flush=True)
    real = reference(arguments, name, seed, teacher, train, judge)
    row = {"teacher": name, "seed": seed, **made, "real": real}
    for student, found in row["students"].items():
        best = real["students"][student]["accuracy"]
        found["recovery"] = recovery(found["before"], found["accuracy"], best)
    return row


def reference(
    arguments: argparse.Namespace,
    name: str,
    seed: int,
    teacher: Path,
    train: LabelledData,
    judge: LabelledData,
) -> dict:
    """What the same training gives on real images; kept, since it is asked for again and again."""
    settings = {
        "role": arguments.role,
        "preset": arguments.preset,
        "size": arguments.size,
        "training": arguments.training,
        "students": arguments.students,
    }
    path = Path(arguments.teachers) / f"{name}-{seed}-real.json"
    known = json.loads(path.read_text()) if path.exists() else []
    for entry in known:
        if entry["settings"] == settings:
            return entry["found"]
    found = distil(arguments, teacher, judge, seed, train, "samples")
    write_json(path, [*known, {"settings": settings, "found": found}])
    return found


def table(conditions: dict, rows: list[dict]) -> str:
    lines = [
        f"Synthesizer `{rows[0]['synthesizer']}`, preset `{conditions['preset']}`, "
        f"{conditions['role']} teachers; {json.dumps(conditions['training'])}; mean and standard "
        "deviation over seeds.",
        "",
        "| teacher | seeds | accuracy | student | Tucker only | real images | **student** "
        "| agreement | expected agreement, from no data | **recovery** | CPU minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["teacher"] for r in rows):
        chosen = [r for r in rows if r["teacher"] == name]
        seeds = ", ".join(str(r["seed"]) for r in chosen)
        for student in chosen[0]["students"]:
            own = [r["students"][student] for r in chosen]
            cells = [
                percent([r["teacher_accuracy"] for r in chosen]),
                student,
                percent([s["before"] for s in own]),
                percent([r["real"]["students"][student]["accuracy"] for r in chosen]),
                percent([s["accuracy"] for s in own]),
                percent([s["agreement"] for s in own]),
                expected([s["expected"] for s in own]),
                share([s["recovery"] for s in own]),
                f"{statistics.mean(r['minutes'] / len(r['students']) for r in chosen):.1f}",
            ]
            lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def percent(values: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def expected(found: list[dict | None]) -> str:
    """The mean of what the reports predict, and of the ends of their intervals."""
    known = [f for f in found if f is not None]
    if not known:
        return "n/a"
    ends = ("low", "value", "high")
    low, value, high = (100 * statistics.mean(f[end] for f in known) for end in ends)
    return f"{value:.0f} ({low:.0f} to {high:.0f})"


def share(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    deviation = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{deviation}" if known else "n/a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--role", choices=["development", "test"], default="development")
    parser.add_argument("--only", nargs="+", help="teachers by name; all of the role if left out")
    parser.add_argument("--seeds", type=int, nargs="+", help="of those named; all if left out")
    parser.add_argument("--data-root")
    parser.add_argument("--cifar10", help="a folder of images with train/ and test/")
    parser.add_argument("--teachers", default="teachers", help="where teachers are kept")
    parser.add_argument("--synthesizer", help="the product's default if left out")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE, student.NAME=VALUE")
    parser.add_argument("--samples", type=int, default=0, help="real images of each class")
    parser.add_argument("--students", nargs="+", default=["1", "2", "3"])
    parser.add_argument("--size", type=int, help="inputs to learn from, if not the preset's")
    parser.add_argument("--out", type=Path, help="where to write, without suffix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {k: yaml.safe_load(v) for k, v in (s.split("=", 1) for s in arguments.set)}
    own = {k.removeprefix("student."): v for k, v in settings.items() if k.startswith("student.")}
    arguments.training = own
    arguments.set = {k: v for k, v in settings.items() if not k.startswith("student.")}
    named = json.loads(NAMED.read_text())
    conditions = {
        **{k: v for k, v in vars(arguments).items() if k not in ("data_root", "cifar10", "out")},
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
            row = run(arguments, name, named["recipes"][name], seed)
            rows.append(row)
            print(name, seed, json.dumps(row["students"]), flush=True)
            if arguments.out:
                now = {**conditions, "load_average": os.getloadavg()}
                write_json(arguments.out.with_suffix(".json"), {"conditions": now, "rows": rows})
                write_text(arguments.out.with_suffix(".md"), table(conditions, rows))
    print(table(conditions, rows))


if __name__ == "__main__":
    main()
