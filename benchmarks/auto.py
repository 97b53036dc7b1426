"""Does the evidence by which `--synthesizer auto` chooses rank mixtures as real images do?

    python benchmarks/auto.py --data-root FOLDER --teachers FOLDER

For each development teacher of `recovery-teachers.json` the mixtures that `auto` tries train
student 3 by short runs, as `freia_kd.job.choosing` has them. Shown are the evidence, of which real
images are no part, and the accuracy on training images, which chooses nothing. Test images are not
read.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from recovery import NAMED, load_split, make_teacher, some
from scipy.stats import spearmanr

from freia_kd.compression import load_teacher
from freia_kd.config import DistillationOptions
from freia_kd.evaluation import accuracy
from freia_kd.files import write_json, write_text
from freia_kd.job import choosing, open_job
from freia_kd.trust import hold_contest, make_judges

RESULT = Path(__file__).parent / "results" / "auto.json"
TEACHERS = ("lenet5-mnist", "lenet5-fashion-mnist", "resnet14-fashion-mnist")
IMAGES = 5_000


def run(arguments: argparse.Namespace, name: str, recipe: dict, seed: int) -> dict:
    """One teacher: the evidence on every mixture, by each judge alone, and the accuracy."""
    train = load_split(arguments, recipe, "train")
    real = some(train, IMAGES, 0)
    teacher = load_teacher(make_teacher(Path(arguments.teachers), name, recipe, 0, train))
    with TemporaryDirectory() as folder:
        training = DistillationOptions()
        job = open_job(
            teacher, students=[arguments.student], training=training, seed=seed, out=f"{folder}/run"
        )
        trials = choosing.plan_trials(job, [])
        start = time.process_time()
        students = choosing.train_candidates(trials)
        seconds = time.process_time() - start
    judges = make_judges(teacher, seed, choosing.JUDGED)
    sets = {judge.family: [judge] for judge in judges}
    sets["spectral noise and photographs"] = [j for j in judges if j.family != "dead leaves"]
    true = {mixture: accuracy(student, real) for mixture, student in students.items()}
    evidence = {}
    for title, members in sets.items():
        found, strata = hold_contest(students, members, seed)
        evidence[title] = {
            "agreement": {c.synthesizer: c.agreement for c in found},
            "best": found[0].synthesizer if found else None,
            "certainty": found[0].certainty if found else None,
            "inputs": sum(s.same.shape[1] for s in strata),
            "classes": len(strata),
            "spearman": _rank_correlation(true, found),
        }
    return {
        "teacher": name,
        "seed": seed,
        "steps": trials.steps,
        "planned_seconds": trials.seconds,
        "seconds": seconds,
        "default": trials.default,
        "accuracy": true,
        "evidence": evidence,
    }


def _rank_correlation(true: dict[str, float], found: list) -> float | None:
    if not found:
        return None
    shares = {c.synthesizer: c.agreement for c in found}
    return float(spearmanr([true[m] for m in true], [shares[m] for m in true])[0])


def table(rows: list[dict]) -> str:
    lines = [
        "What `--synthesizer auto` sees of the mixtures that it tries (agreement with the teacher "
        "where it is confident, the mean over classes, in %), and what it does not see: the "
        f"accuracy on {IMAGES:,} training images. Made by `benchmarks/auto.py`; student 3. A judge "
        "whose family is part of a mixture is shown for comparison, and does not count: `bdnf` is "
        "a flow over spectral noise. So photographs judge.",
        "",
    ]
    for row in rows:
        kinds = list(row["evidence"])
        lines += [
            f"**{row['teacher']}**, seed {row['seed']}, {row['steps']} steps for each, "
            f"{row['seconds']:.0f} s of CPU for all "
            f"(planned: {row['planned_seconds']:.0f} s by the clock, on a busy machine)",
            "",
            "| mixture | accuracy, real images | " + " | ".join(kinds) + " |",
            "|---|" + "---|" * (len(kinds) + 1),
        ]
        for mixture in sorted(row["accuracy"], key=lambda m: -row["accuracy"][m]):
            shares = [row["evidence"][k]["agreement"].get(mixture) for k in kinds]
            said = [_percent(row["accuracy"][mixture]), *map(_percent, shares)]
            mark = " (default)" if mixture == row["default"] else ""
            lines.append(f"| `{mixture}`{mark} | " + " | ".join(said) + " |")
        for title, key in (("best", "best"), ("certainty", "certainty"), ("inputs", "inputs")):
            cells = [row["evidence"][k][key] for k in kinds]
            lines.append(f"| {title} | | " + " | ".join(map(_cell, cells)) + " |")
        cells = [row["evidence"][k]["spearman"] for k in kinds]
        lines.append("| rank correlation with accuracy | | " + " | ".join(map(_cell, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root")
    parser.add_argument("--teachers", default="teachers", help="where teachers are kept")
    parser.add_argument("--only", nargs="+", default=TEACHERS)
    parser.add_argument("--student", default="3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=choosing.STEPS)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.cifar10 = None
    choosing.STEPS = arguments.steps
    torch.set_num_threads(1)
    recipes = json.loads(NAMED.read_text())["recipes"]
    known = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    rows = {(r["teacher"], r["seed"], r["steps"]): r for r in known}
    for name in arguments.only:
        for seed in arguments.seeds:
            if (name, seed, arguments.steps) not in rows:
                row = run(arguments, name, recipes[name], seed)
                rows[name, seed, arguments.steps] = row
                print(table([row]), flush=True)
                conditions = {
                    "images": IMAGES,
                    "student": arguments.student,
                    "threads": 1,
                    "torch": torch.__version__,
                    "load_average": os.getloadavg(),
                }
                found = {"conditions": conditions, "rows": list(rows.values())}
                write_json(arguments.out, found)
                write_text(arguments.out.with_suffix(".md"), table(found["rows"]))


if __name__ == "__main__":
    main()
