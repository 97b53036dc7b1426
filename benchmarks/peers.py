"""Minutes of one core to a student of a teacher: ours beside what others offer.

    python benchmarks/peers.py --teacher lenet5.pt --data mnist --data-root DATA \\
        --peer 'KegNet=FOLDER:python run.py --teacher {teacher}' \\
        --known "NAME=MINUTES,ACCURACY,WHERE IT WAS MEASURED"

All get the same teacher, without data. A peer is a checkout with the command that trains its
student there on one thread; the last line of what it prints must end in its accuracy in %.
Checkouts that were not given are named as such. torch-pruning has no training of its own: it prunes
the teacher to the parameters of our student. Rows of `--known` are taken as they are told, and
marked so. Times are those of the processor, which other processes hardly change. Writes
`benchmarks/results/peers.json` and `.md`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from real_sizes import line

import freia_kd
from freia_kd.compression import count_parameters, load_teacher
from freia_kd.data.datasets import load_dataset
from freia_kd.evaluation import accuracy
from freia_kd.teachers import Teacher

HERE = Path(__file__).resolve().parents[1]
CHECKOUTS = ("KegNet", "the paper's code", "CMI / Fast-DFKD")


def ours(given, teacher, preset, test):
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        done = freia_kd.distill(
            teacher, students=[given.student], preset=preset, seed=0, out=Path(folder) / "run"
        )
        student = done.student()
    minutes = (time.process_time() - start) / 60
    return {
        "name": f"freia_kd, preset {preset}",
        "student": given.student,
        "parameters": count_parameters(student.net),
        "minutes": round(minutes, 2),
        "accuracy": round(100 * accuracy(student, test), 2),
        "what": "the whole job: plan, set, student, report",
    }


def torch_pruning(teacher, parameters, test):
    """The teacher pruned by magnitude to at most so many parameters."""
    import torch_pruning as tp

    start = time.process_time()
    x = torch.zeros(1, *teacher.domain.shape)
    last = [m for m in teacher.net.modules() if isinstance(m, torch.nn.Linear)][-1]
    names = {id(m): n for n, m in teacher.net.named_modules()}
    for ratio in (r / 100 for r in range(5, 100)):
        net = copy.deepcopy(teacher.net).requires_grad_(True)
        tp.pruner.MagnitudePruner(
            net,
            x,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[net.get_submodule(names[id(last)])],
        ).step()
        if count_parameters(net) <= parameters:
            break
    small = Teacher(net, teacher.domain, teacher.arch)
    return {
        "name": f"torch-pruning {tp.__version__}",
        "student": f"{ratio:.0%} of the channels pruned by magnitude",
        "parameters": count_parameters(net),
        "minutes": round((time.process_time() - start) / 60, 3),
        "accuracy": round(100 * accuracy(small, test), 2),
        "what": "pruning alone: it has no distillation without data",
    }


def peer(name, folder, command, teacher):
    """A checkout's own command, on one thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [part.format(teacher=Path(teacher).resolve()) for part in shlex.split(command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr.strip()[-200:]!r}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"([\d.]+)\s*%?\s*$", done.stdout)
    if found is None:
        raise SystemExit(f"{name}: expected an accuracy at the end; got {done.stdout[-200:]!r}.")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "name": name,
        "student": "its own",
        "parameters": None,
        "minutes": round(spent / 60, 2),
        "accuracy": float(found.group(1)),
        "what": command,
    }


def known(text):
    name, rest = text.split("=", 1)
    minutes, reached, where = rest.split(",", 2)
    return {
        "name": name,
        "student": "as told",
        "parameters": None,
        "minutes": float(minutes),
        "accuracy": float(reached),
        "what": f"not run here: {where.strip()}",
    }


def write(path, result):
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["# Minutes of one core to a student", "", result["about"], ""]
    heads = ["what", "student", "parameters", "minutes", "accuracy, %", "note"]
    lines += [line(heads), "|" + "---|" * len(heads)]
    for row in result["rows"]:
        parameters = "" if row["parameters"] is None else f"{row['parameters']:,}"
        cells = [row["name"], row["student"], parameters, row["minutes"], row["accuracy"]]
        lines.append(line([*cells, row["what"]]))
    missing = ", ".join(result["missing"]) or "none"
    lines += ["", f"Checkouts that were not given, and not run: {missing}."]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-root")
    parser.add_argument("--student", default="bdnf-3")
    parser.add_argument("--presets", nargs="*", default=["quick"])
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=FOLDER:COMMAND")
    parser.add_argument("--known", nargs="*", default=[], metavar="NAME=MINUTES,ACCURACY,WHERE")
    parser.add_argument("--results", type=Path, default=HERE / "benchmarks/results/peers")
    given = parser.parse_args()
    given_peers = [text.split("=", 1) for text in given.peer]
    missing = [rest for _, rest in given_peers if not Path(rest.split(":", 1)[0]).is_dir()]
    if missing:
        raise SystemExit(
            f"Expected NAME=FOLDER:COMMAND with a folder that is there; got {missing}."
        )
    torch.set_num_threads(1)
    teacher = load_teacher(given.teacher)
    test = load_dataset(given.data, teacher.domain, "test", given.data_root)
    rows = [ours(given, teacher, preset, test) for preset in given.presets]
    rows.append(torch_pruning(teacher, rows[0]["parameters"], test))
    for name, rest in given_peers:
        folder, command = rest.split(":", 1)
        rows.append(peer(name, folder, command, given.teacher))
    rows += [known(text) for text in given.known]
    have = {name for name, _ in given_peers}
    result = {
        "about": (
            f"A {teacher.arch} on {given.data} with {100 * accuracy(teacher, test):.2f} % and "
            f"{count_parameters(teacher.net):,} parameters; no data. Minutes of the processor, one "
            f"thread ({platform.machine()}), torch {torch.__version__}."
        ),
        "rows": rows,
        "missing": [name for name in CHECKOUTS if name not in have],
    }
    write(given.results, result)
    print(given.results.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
