"""How surely teachers see the classes that inversions ask for, all with one set of defaults.

    python benchmarks/inversions.py --role test --preset quick --data-root FOLDER \\
        --cifar10 FOLDER --out benchmarks/results/inversions-quick

Teachers of images of `recovery-teachers.json`, each of its first seed unless others are named; they
are kept in `--work`, as those of `recovery.py` are. The adaptive form is made against the smallest
compressed student. Rows that the file of `--out` has are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from recovery import NAMED, code_of, load_split, make_teacher, students_of

import freia_kd
from freia_kd.compression import load_teacher
from freia_kd.files import write_json, write_text
from freia_kd.job.synthesis import weakness
from freia_kd.synthesizers import build_synthesizers

METHODS = ("deepinversion", "adaptive-deepinversion", "kw-inception", "kw-mixture")


def invert(method: str, preset: str, path: Path, recipe: dict, seed: int) -> dict | None:
    """The images of a method for a teacher: how sure it is of them, and what they took.

    `None` where the method cannot work with it.
    """
    teacher, student = load_teacher(path, code_of(recipe)), None
    (source,) = build_synthesizers(method, preset)
    reason = source.unsupported_reason(teacher)
    if reason:
        print(path.stem, method, "left out:", reason, flush=True)
        return None
    start = time.process_time()
    if source.needs_student:
        spec, arch = students_of(recipe, None)[-1], code_of(recipe)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "student.pt"
            freia_kd.compress(path, file, student=spec, arch=arch, seed=seed)
            student = freia_kd.load_student(file, arch)
    source.fit(teacher, generator=torch.Generator().manual_seed(seed), student=student)
    found = source.diagnose(teacher, torch.Generator().manual_seed(seed))
    return {
        "probability": found.confidence,
        "hit_rate": found.hit_rate,
        "images": source.options.images,
        "reliable": weakness(source, found) is None,
        "minutes": (time.process_time() - start) / 60,
    }


def table(conditions: dict, rows: list[dict]) -> str:
    lines = [
        f"Preset `{conditions['preset']}`, {conditions['role']} teachers: the teacher's mean "
        "probability of the class asked for, and minutes of one core; one seed each. Below 0.9 "
        "(marked \\*) a run lets no student learn from the images.",
        "",
        f"| teacher | seed | {' | '.join(METHODS)} |",
        f"|---|---|{'---|' * len(METHODS)}",
    ]
    for name, seed in dict.fromkeys((row["teacher"], row["seed"]) for row in rows):
        own = {r["method"]: r for r in rows if (r["teacher"], r["seed"]) == (name, seed)}
        cells = [cell(own[method]) if method in own else "n/a" for method in METHODS]
        lines.append(f"| {name} | {seed} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(row: dict) -> str:
    mark = "" if row["reliable"] else "\\*"
    return f"{row['probability']:.3f}{mark} ({row['minutes']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--role", choices=["development", "test"], default="development")
    parser.add_argument("--only", nargs="+", help="teachers by name; all of the role if left out")
    parser.add_argument("--seeds", type=int, nargs="+", help="the first of each if left out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--data-root")
    parser.add_argument("--cifar10", help="a folder of images with train/ and test/")
    parser.add_argument("--work", type=Path, default=Path("recovery"), help="where teachers are")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--out", type=Path, help="where rows and the table go, without suffix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    conditions = {"role": arguments.role, "preset": arguments.preset, "threads": 1}
    rows, path = [], arguments.out and arguments.out.with_suffix(".json")
    if path and path.exists():
        known = json.loads(path.read_text())
        if known["conditions"] != conditions:
            raise SystemExit(f"{path} was made with {known['conditions']}")
        rows = known["rows"]
    named = json.loads(NAMED.read_text())
    made = {(row["teacher"], row["seed"], row["method"]) for row in rows}
    for name, seeds in named[arguments.role].items():
        recipe = named["recipes"][name]
        if recipe["arch"] == "mlp" or (arguments.only and name not in arguments.only):
            continue
        for seed in [s for s in seeds if s in (arguments.seeds or seeds[:1])]:
            todo = [m for m in arguments.methods if (name, seed, m) not in made]
            if not todo:
                continue
            train = load_split(arguments, recipe, "train")
            file = make_teacher(arguments.work, name, recipe, seed, train)
            for method in todo:
                found = invert(method, arguments.preset, file, recipe, seed)
                if found is None:
                    continue
                rows.append({"teacher": name, "seed": seed, "method": method, **found})
                rows[-1] |= {"torch": torch.__version__, "load_average": os.getloadavg()}
                print(name, seed, method, cell(found), flush=True)
                if path:
                    write_json(path, {"conditions": conditions, "rows": rows})
    text = table(conditions, rows)
    print(text)
    if arguments.out:
        write_text(arguments.out.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
