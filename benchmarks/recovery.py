"""How much of what real images give a student has without any: recovery, on teachers made here.

    python benchmarks/recovery.py --role development --data-root FOLDER
    python benchmarks/recovery.py --role test --data-root FOLDER --cifar10 FOLDER \\
        --methods ours ten real --out benchmarks/results/recovery-test

Teachers are named in `recovery-teachers.json`, trained from scratch and kept in `--work`, and so is
every student that was measured: a second call makes what is missing, several may work at a time on
different teachers, and the tables are made of all that is there. Recovery is (student - Tucker
only) / (real images - Tucker only) in accuracy, where "Tucker only" is untrained and `real` the
same training on the real training images; all come from `freiakd.distill`, as users call it.
Settings are to be chosen with `--role development`, which judges on training images so that no test
image is ever in view; `--role test` is for the end. CIFAR-10 may be a folder of images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

import freia_kd
from freia_kd import StudentSpec
from freia_kd.compression import Tucker, load_teacher
from freia_kd.data.datasets import LabelledData, load_dataset, measure_domain
from freia_kd.domain import DOMAINS, Domain
from freia_kd.errors import TrainingError
from freia_kd.files import write_json, write_text
from freia_kd.report.schema import MIN_GAP, StudentResult, recovery
from freia_kd.students import as_specs
from freia_kd.synthesizers import build_synthesizers
from freia_kd.synthesizers.bdnf import PUBLISHED
from freia_kd.teachers import Classifier, build_net, save_classifier, train_classifier

NAMED = Path(__file__).with_name("recovery-teachers.json")
JUDGED = 10_000  # images, at most

# What students learn from: synthesizers, their options, and how many real images a class.
METHODS = {
    "ours": (None, {}, 0),
    "ten": (None, {}, 1),
    "real": ("samples", {"augment": "never"}, None),
    "noise": ("normal", {}, 0),
    "kegnet": ("kegnet", {}, 0),
    "bdnf, as published": ("bdnf", PUBLISHED, 0),
    "deepinversion": ("deepinversion", {}, 0),
}
TITLES = {
    "ours": "no data",
    "ten": "ten images, one a class",
    "noise": "normal noise",
    "kegnet": "KegNet",
    "bdnf, as published": "BDNF as published",
    "deepinversion": "DeepInversion",
}


def some(data: LabelledData, count: int, seed: int, per_class: bool = False) -> LabelledData:
    """Some of the data in a random order; `count` of each class, if asked."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    labels = data.labels[order]
    classes = range(int(data.labels.max()) + 1)
    rows = torch.cat([order[labels == k][:count] for k in classes]) if per_class else order[:count]
    return LabelledData(*data.take(rows), data.name)


def students_of(recipe: dict, names: list[str] | None) -> list[StudentSpec]:
    """The papers' students, or those of shares of the multiply-accumulates; by name, if asked."""
    goals = recipe.get("macs")
    specs = as_specs(["1", "2", "3"])
    if goals:
        specs = [StudentSpec((Tucker(target="macs", goal=g),), f"macs-{g}") for g in goals]
    return [spec for spec in specs if not names or spec.name in names]


def code_of(recipe: dict) -> str | None:
    """The architecture, where only code can make it: files name no such code by themselves."""
    return recipe["arch"] if ":" in recipe["arch"] else None


def domain_of(recipe: dict) -> Domain:
    """The domain by which a teacher's inputs are normalised; "raw" ones are of 0 to 255.

    That of a table is measured on its training rows, as `freiakd train-teacher` does.
    """
    domain = DOMAINS.get(recipe["data"]) or measure_domain(load_dataset(recipe["data"]))
    if not recipe.get("raw"):
        return domain
    return Domain(domain.shape, domain.classes, (0.0,), (1 / 255,), f"{domain.name}-raw")


def load_split(arguments: argparse.Namespace, recipe: dict, split: str) -> LabelledData:
    source = recipe["data"]
    if source == "cifar10" and arguments.cifar10:
        source = arguments.cifar10
    return load_dataset(source, domain_of(recipe), split, arguments.data_root)


def make_teacher(folder: Path, name: str, recipe: dict, seed: int, train: LabelledData) -> Path:
    """The teacher of a recipe and a seed, from its file or trained from scratch."""
    path = folder / f"{name}-{seed}.pt"
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
    method: str,
    recipe: dict,
    teacher: Path,
    students: list[StudentSpec],
    seed: int,
    train: LabelledData,
    judge: LabelledData,
) -> dict:
    """What `freiakd.distill` makes, and the CPU time that it takes, in minutes."""
    names, options, per_class = METHODS[method]
    preset = freia_kd.config.get_preset(arguments.preset)
    start = time.process_time()
    if per_class is None:
        samples = train
    else:
        samples = some(train, per_class, seed, per_class=True) if per_class else None
    if method in ("ours", "ten"):
        names, options = arguments.synthesizer, arguments.set
    with TemporaryDirectory() as folder:
        result = freia_kd.distill(
            teacher,
            arch=code_of(recipe),
            students=students,
            synthesizer=build_synthesizers(names, arguments.preset, options) if names else None,
            preset=preset.changed(training=preset.training.changed(**arguments.training)),
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


def run(
    arguments: argparse.Namespace, name: str, recipe: dict, seed: int, methods: list[str]
) -> None:
    """The students of one teacher by each method that have not been made."""
    todo, before = {}, earlier(arguments)
    for method in methods:
        path = arguments.work / arguments.role / f"{name}-{seed}-{method}.json"
        own = [k for k in entries(path) if k["settings"] == arguments.settings]
        made = {student for entry in own for student in entry["students"]}
        made |= {row["student"] for row in before if cell_of(row)[:3] == (name, seed, method)}
        left = [s for s in students_of(recipe, arguments.students) if s.name not in made]
        if left:
            todo[method] = (path, left)
    if not todo:
        return
    train = load_split(arguments, recipe, "train")
    source = train if arguments.role == "development" else load_split(arguments, recipe, "test")
    judge = some(source, JUDGED, 0)
    teacher = make_teacher(arguments.work, name, recipe, seed, train)
    net = load_teacher(teacher, code_of(recipe))
    for method, (path, left) in todo.items():
        names = METHODS[method][0]
        parts = build_synthesizers(names) if names else []
        reasons = [part.unsupported_reason(net, train) for part in parts]
        if any(reasons):
            print(name, seed, method, "left out:", *filter(None, reasons), flush=True)
            continue
        try:
            found = distil(arguments, method, recipe, teacher, left, seed, train, judge)
        except TrainingError as error:  # such as inversions that miss their classes
            print(name, seed, method, "left out:", error, flush=True)
            continue
        entry = {
            "settings": arguments.settings,
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "load_average": os.getloadavg(),
            **found,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [*entries(path), entry])  # another call may have added to it meanwhile
        accuracies = {k: v["accuracy"] for k, v in found["students"].items()}
        print(name, seed, method, accuracies, f"{found['minutes']:.1f} minutes", flush=True)


def entries(path: Path) -> list[dict]:
    """What has been measured of a teacher by a method, with any settings."""
    return json.loads(path.read_text()) if path.exists() else []


def earlier(arguments: argparse.Namespace) -> list[dict]:
    """The rows that the file of `--out` has from earlier calls with the same settings, if any."""
    path = arguments.out and arguments.out.with_suffix(".json")
    if not path or not path.exists():
        return []
    known = json.loads(path.read_text())
    if known["conditions"]["settings"] != arguments.settings:
        raise SystemExit(f"{path} was made with {known['conditions']['settings']}")
    return known["rows"]


def collect(arguments: argparse.Namespace, named: dict) -> list[dict]:
    """Every student that has been measured with these settings, as a row of its own."""
    rows = []
    for name, seeds in named[arguments.role].items():
        for seed in seeds:
            for method in METHODS:
                path = arguments.work / arguments.role / f"{name}-{seed}-{method}.json"
                for entry in entries(path):
                    if entry["settings"] != arguments.settings:
                        continue
                    shared = {k: v for k, v in entry.items() if k not in ("students", "settings")}
                    shared["minutes"] /= len(entry["students"])
                    for student, found in entry["students"].items():
                        of = {"teacher": name, "seed": seed, "method": method, "student": student}
                        rows.append({**of, **found, **shared})
    made = {cell_of(row) for row in rows}
    rows += [row for row in earlier(arguments) if cell_of(row) not in made]
    best = {key_of(row): row["accuracy"] for row in rows if row["method"] == "real"}
    for row in rows:
        real = best.get(key_of(row))
        row["real"] = real
        known = real is not None and row["method"] != "real"
        row["recovery"] = recovery(row["before"], row["accuracy"], real) if known else None
    return rows


def cell_of(row: dict) -> tuple[str, int, str, str]:
    return row["teacher"], row["seed"], row["method"], row["student"]


def key_of(row: dict) -> tuple[str, int, str, float, float]:
    """A student of one teacher; another machine may train a slightly other one by the same seed."""
    return row["teacher"], row["seed"], row["student"], row["teacher_accuracy"], row["before"]


def tables(arguments: argparse.Namespace, rows: list[dict]) -> str:
    """A table of each method, a line for each student of a teacher."""
    lines = [
        f"Preset `{arguments.preset}`, {arguments.role} teachers; {json.dumps(arguments.settings)};"
        " mean and standard deviation over seeds; students' accuracy and agreement in %. There is "
        f"no recovery where real images gain less than {100 * MIN_GAP:.0f} points. Minutes are of "
        "the processor, for a student with everything that it takes, report included.",
    ]
    for method, title in TITLES.items():
        chosen = [row for row in rows if row["method"] == method]
        if chosen:
            lines += ["", f"## {title[0].upper()}{title[1:]}", "", *table(chosen)]
    return "\n".join(lines) + "\n"


def table(rows: list[dict]) -> list[str]:
    lines = [
        "| teacher | seeds | accuracy | student | Tucker only | real images | **student** "
        "| agreement | expected agreement, from no data | **recovery** | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, student in sorted({(r["teacher"], r["student"]) for r in rows}):
        own = [r for r in rows if (r["teacher"], r["student"]) == (name, student)]
        own.sort(key=lambda row: row["seed"])
        cells = [
            name,
            ", ".join(str(r["seed"]) for r in own),
            percent([r["teacher_accuracy"] for r in own]),
            student,
            percent([r["before"] for r in own]),
            percent([r["real"] for r in own]),
            percent([r["accuracy"] for r in own]),
            percent([r["agreement"] for r in own]),
            expected([r["expected"] for r in own]),
            share([r["recovery"] for r in own]),
            f"{statistics.mean(r['minutes'] for r in own):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", prediction(rows)]


def prediction(rows: list[dict]) -> str:
    """How far the agreement that reports expect is from what it is."""
    known = [(r["expected"], r["agreement"]) for r in rows if r["expected"] is not None]
    if not known:
        return "Nothing is expected of these students."
    error = 100 * statistics.mean(abs(e["value"] - agreement) for e, agreement in known)
    inside = sum(e["low"] <= agreement <= e["high"] for e, agreement in known)
    return (
        f"The expected agreement is {error:.1f} points off in the mean; {inside} of {len(known)} "
        "lie within their intervals."
    )


def percent(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    deviation = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{deviation}" if known else "not run"


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
    part = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{statistics.mean(known):.2f}{deviation}{part}" if known else "n/a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--role", choices=["development", "test"], default="development")
    parser.add_argument("--only", nargs="+", help="teachers by name; all of the role if left out")
    parser.add_argument("--seeds", type=int, nargs="+", help="of those named; all if left out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["ours", "real"])
    parser.add_argument("--students", nargs="+", help="by name; all if left out")
    parser.add_argument("--data-root")
    parser.add_argument("--cifar10", help="a folder of images with train/ and test/")
    parser.add_argument("--work", type=Path, default=Path("recovery"), help="where all is kept")
    parser.add_argument("--synthesizer", help="the product's default if left out")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE, student.NAME=VALUE")
    parser.add_argument("--size", type=int, help="inputs to learn from, if not the preset's")
    parser.add_argument("--out", type=Path, help="where the tables go, without suffix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {k: yaml.safe_load(v) for k, v in (s.split("=", 1) for s in arguments.set)}
    own = {k.removeprefix("student."): v for k, v in chosen.items() if k.startswith("student.")}
    arguments.training = own
    arguments.set = {k: v for k, v in chosen.items() if not k.startswith("student.")}
    asked = {"synthesizer": arguments.synthesizer, "size": arguments.size, "set": chosen}
    arguments.settings = {"preset": arguments.preset, **{k: v for k, v in asked.items() if v}}
    named = json.loads(NAMED.read_text())
    for name, seeds in named[arguments.role].items():
        if arguments.only and name not in arguments.only:
            continue
        for seed in seeds:
            if not arguments.seeds or seed in arguments.seeds:
                run(arguments, name, named["recipes"][name], seed, arguments.methods)
    rows = collect(arguments, named)
    text = tables(arguments, rows)
    print(text)
    if arguments.out:
        conditions = {"role": arguments.role, "settings": arguments.settings, "threads": 1}
        write_json(arguments.out.with_suffix(".json"), {"conditions": conditions, "rows": rows})
        write_text(arguments.out.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
