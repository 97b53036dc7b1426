"""A row of the paper's Table 1 at full length, which takes hours, as a run of its own.

    python benchmarks/table1_row.py --preset code --data mnist --data-root FOLDER \\
        --teacher lenet5.pt --students bdnf-1 bdnf-3 --folder runs/row

`freiakd reproduce table1` makes rows for all three students; this makes those that are named, so
that students may be trained on several machines from the same inputs (copy the folder once
`checkpoints/inputs.safetensors` is there), and goes on where it was stopped. Adds what it found to
`benchmarks/results/table1-full-length.json` and writes the table beside it.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path

import torch

from freia_kd.compression import load_teacher
from freia_kd.data.datasets import load_dataset
from freia_kd.domain import DOMAINS
from freia_kd.evaluation import accuracy
from freia_kd.experiments.opening import one_of_each
from freia_kd.experiments.published import PAPER_ROWS, TABLE1
from freia_kd.experiments.recipes import get_recipe
from freia_kd.experiments.trial import PublishedTrial
from freia_kd.files import write_json, write_text
from freia_kd.synthesizers.kegnet import KegNetOptions
from freia_kd.training import PlainProgress

OUT = Path(__file__).with_name("results") / "table1-full-length"


def run(arguments: argparse.Namespace) -> list[dict]:
    """The students that were asked for, one entry each."""
    name, domain = arguments.data, DOMAINS[arguments.data]
    test = load_dataset(name, domain, "test", arguments.data_root)
    kind, sees_samples = PAPER_ROWS[arguments.row]
    samples = None
    if sees_samples:
        train = load_dataset(name, domain, "train", arguments.data_root)
        samples = one_of_each(train, arguments.seed)
    trial = PublishedTrial(
        name=arguments.row,
        row=kind,
        data=name,
        seed=arguments.seed,
        students=tuple(arguments.students),
        recipe=get_recipe(arguments.preset, name),
        kegnet=KegNetOptions().changed(**TABLE1[name].kegnet),
        teacher=arguments.teacher,
        test=test,
        folder=arguments.folder,
        samples=samples,
        device="cpu",
    )
    trial.run(PlainProgress(interval=60))
    found = trial.result
    assert found is not None
    shared = {
        "preset": arguments.preset,
        "data": name,
        "row": arguments.row,
        "seed": arguments.seed,
        "teacher": arguments.teacher.name,
        "teacher_accuracy": accuracy(load_teacher(arguments.teacher, domain=domain), test),
        "recipe": trial.recipe.to_dict(),
        "recorded": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "seconds": found.stages,
    }
    return [
        {"student": s, **shared, "last": found.last[s], "best": found.best[s], "curve": curve}
        for s, curve in found.curve.items()
    ]


def key_of(entry: dict) -> tuple:
    return tuple(entry[k] for k in ("data", "preset", "row", "teacher", "student", "seed"))


def table(entries: list[dict]) -> str:
    lines = [
        "The paper's rows at full length, by `benchmarks/table1_row.py`: accuracy in % on the test "
        "images. *Best on test* is the largest of all looks at them, after every epoch and before "
        "the first, as the paper prints it: a leak, which nothing here uses.",
        "",
        "| data, teacher | preset, row | seed | student | before | last weights | best on test "
        "(a leak) | the paper's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in sorted(entries, key=key_of):
        printed = TABLE1[entry["data"]].published[entry["row"]]
        cells = [
            f"{entry['data']}, {entry['teacher']} ({100 * entry['teacher_accuracy']:.1f})",
            f"`{entry['preset']}`, {entry['row']}",
            str(entry["seed"]),
            entry["student"],
            *(f"{100 * share:.1f}" for share in (entry["curve"][0], entry["last"], entry["best"])),
            str(printed[int(entry["student"][-1]) - 1]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=PAPER_ROWS, default="T+BDNF")
    parser.add_argument("--preset", choices=["quick", "code", "paper"], default="code")
    parser.add_argument("--data", choices=TABLE1, required=True)
    parser.add_argument("--data-root")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--students", nargs="+", default=["bdnf-1", "bdnf-2", "bdnf-3"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="where the run is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = run(arguments)
    path = OUT.with_suffix(".json")
    known = json.loads(path.read_text()) if path.exists() else []
    new = {key_of(entry) for entry in made}
    entries = [entry for entry in known if key_of(entry) not in new] + made
    write_json(path, entries)
    write_text(OUT.with_suffix(".md"), table(entries))
    print(table(made))


if __name__ == "__main__":
    main()
