"""Minutes of one core to a student of a teacher: ours beside what others offer.

    python benchmarks/peers.py --teacher lenet5.pt --data mnist --data-root DATA \\
        --peer "KegNet=FOLDER:python $PWD/benchmarks/drivers/kegnet.py --teacher {teacher} \\
            --data-root DATA --minutes {limit}" --limits 20 \\
        --known "NAME=MINUTES,ACCURACY,WHERE IT WAS MEASURED" --note "..."

All get the same teacher, without data. A peer is a checkout with the command that trains its
student there on one thread. Its output may have lines of three numbers, `MINUTES ACCURACY WHOLE`:
the processor's minutes so far, the accuracy in %, and the minutes of its full length by its own
pace; the last such line counts, and tells whether the limit cut it. `benchmarks/drivers` makes
programs of others say so. Without such lines what it prints must end in the accuracy. A peer that
exceeds its limit (of the processor) by two minutes is ended, and what it had reached is taken.

Checkouts that were not given are named as such. torch-pruning has no training of its own: it prunes
the teacher to the parameters of our first student. Rows of `--known` are taken as they are told,
and marked so. Times are those of the processor. Other processes lengthen them as well, by what they
take of caches and of a shared core, so that a fixed piece of work is timed before and after each
row. Writes `benchmarks/results/peers.json` and `.md`, anew after every row; what was stopped goes
on with `--resume`.
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
import signal
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
CHECKOUTS = ("KegNet", "the paper's code", "DFAD", "CMI / Fast-DFKD")
LEVELS = (70, 80, 90, 95)  # of accuracy in %, to which minutes are told
ALLOWED = 2  # minutes beyond a peer's limit, for what its driver does not count
LINE = re.compile(r"[\d.]+ [\d.]+ [\d.]+")


def ours(student_name, teacher, preset, test):
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        done = freia_kd.distill(
            teacher, students=[student_name], preset=preset, seed=0, out=Path(folder) / "run"
        )
        student = done.student()
    minutes = (time.process_time() - start) / 60
    return {
        "name": f"freia_kd, preset {preset}",
        "student": student_name,
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


def peer(name, student, folder, command, teacher, limit):
    """A checkout's own command, on one thread, ended after so many minutes of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    values = {"teacher": Path(teacher).resolve(), "limit": limit}
    arguments = [part.format(**values) for part in shlex.split(command)]
    seconds = int(60 * (limit + ALLOWED))
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds)),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seen = [*map(seen_at, filter(LINE.fullmatch, done.stdout.splitlines()))]
    was_ended = done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    if done.returncode and not (seen and was_ended):
        raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr.strip()[-200:]!r}.")
    if not seen:
        found = re.search(r"([\d.]+)\s*%?\s*$", done.stdout)
        if found is None:
            raise SystemExit(
                f"{name}: expected an accuracy at the end; got {done.stdout[-200:]!r}."
            )
        seen = [{"minutes": spent / 60, "accuracy": float(found.group(1)), "whole": spent / 60}]
    return {
        "name": name,
        "student": student,
        "parameters": None,
        **{key: round(value, 2) for key, value in seen[-1].items()},
        "best": max(at["accuracy"] for at in seen),
        "seen": seen,
        "what": told(done.stdout),
    }


def seen_at(text):
    return dict(zip(("minutes", "accuracy", "whole"), map(float, text.split()), strict=True))


def told(output):
    """What a driver says of stages, as `5 of 30 passes`."""
    return "; ".join(re.findall(r"^[\d.]+ of [\d.]+ .*$", output, re.MULTILINE))


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


def minutes_to(row, level):
    """The first minutes at which a row was seen at a level, or nothing."""
    seen = row.get("seen", [row])
    return next((f"{at['minutes']:.1f}" for at in seen if at["accuracy"] >= level), "")


def write(path, result):
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["# Minutes of one core to a student", "", result["about"], ""]
    heads = ["what", "student", "parameters", "minutes", "accuracy, %", "best on the way (a leak)"]
    heads += [*(f"minutes to {level} %" for level in LEVELS), "minutes of its full length"]
    heads += ["a fixed step, ms, before and after", "note"]
    lines += [line(heads), "|" + "---|" * len(heads)]
    for row in result["rows"]:
        parameters = "" if row["parameters"] is None else f"{row['parameters']:,}"
        cells = [row["name"], row["student"], parameters, row["minutes"], row["accuracy"]]
        cells += [row.get("best", ""), *(minutes_to(row, level) for level in LEVELS)]
        cells += [row.get("whole", row["minutes"]), " / ".join(map(str, row["step"]))]
        lines.append(line([*cells, row["what"]]))
    missing = ", ".join(result["missing"]) or "none"
    lines += ["", f"Checkouts that were not given, and not run: {missing}."]
    if result["notes"]:
        lines += ["", *(f"- {note}" for note in result["notes"])]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def parsed(text):
    """`NAME[, STUDENT]=FOLDER:COMMAND`."""
    names, _, rest = text.partition("=")
    folder, _, command = rest.partition(":")
    if not Path(folder).is_dir():
        raise SystemExit(f"Expected NAME=FOLDER:COMMAND with a folder that is there; got {text!r}.")
    name, _, student = names.partition(", ")
    return name, student or "its own", folder, command


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-root")
    parser.add_argument("--students", nargs="*", default=["bdnf-3"])
    parser.add_argument("--presets", nargs="*", default=["quick"])
    parser.add_argument(
        "--peer", nargs="*", type=parsed, default=[], metavar="NAME[, STUDENT]=FOLDER:COMMAND"
    )
    parser.add_argument("--limits", nargs="*", type=float, help="minutes of each peer's processor")
    parser.add_argument("--known", nargs="*", default=[], metavar="NAME=MINUTES,ACCURACY,WHERE")
    parser.add_argument("--note", nargs="*", default=[], help="what the results must say")
    parser.add_argument("--resume", action="store_true", help="keep what the results have")
    parser.add_argument("--results", type=Path, default=HERE / "benchmarks/results/peers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher(given.teacher)
    test = load_dataset(given.data, teacher.domain, "test", given.data_root)
    result = {
        "about": (
            f"A {teacher.arch} on {given.data} with {100 * accuracy(teacher, test):.2f} % and "
            f"{count_parameters(teacher.net):,} parameters; no data. Minutes of the processor, one "
            f"thread ({platform.machine()}), torch {torch.__version__}. Accuracy is that of the "
            f"last weights on the test images. A peer is given some minutes, and no more."
        ),
        "rows": [],
        "missing": [name for name in CHECKOUTS if name not in {peer[0] for peer in given.peer}],
        "notes": given.note,
    }
    kept, file = {}, given.results.with_suffix(".json")
    if given.resume and file.exists() and (old := json.loads(file.read_text())):
        if old["about"] != result["about"]:
            raise SystemExit(f"Expected results of this teacher and machine; got {old['about']!r}.")
        kept = {(row["name"], row["student"]): row for row in old["rows"]}
    before = step_milliseconds(teacher)
    for row in rows(given, teacher, test, kept):
        after = step_milliseconds(teacher)
        result["rows"].append({"step": [before, after], **row})
        write(given.results, result)
        before = after
    print(given.results.with_suffix(".md").read_text())


def rows(given, teacher, test, kept):
    """Each of them once it is measured, or kept; our first preset comes first, others last."""
    first, *others = given.presets
    limits = given.limits or [20] * len(given.peer)

    def row(name, student, measure, *arguments):
        return kept.get((name, student)) or measure(*arguments)

    sizes = []
    for student in given.students:
        made = row(f"freia_kd, preset {first}", student, ours, student, teacher, first, test)
        sizes.append(made["parameters"])
        yield made
    yield torch_pruning(teacher, sizes[0], test)
    for (name, student, *rest), limit in zip(given.peer, limits, strict=True):
        yield row(name, student, peer, name, student, *rest, given.teacher, limit)
    yield from map(known, given.known)
    for preset in others:
        for student in given.students:
            yield row(f"freia_kd, preset {preset}", student, ours, student, teacher, preset, test)


def step_milliseconds(teacher, steps=20):
    """The processor's time of a fixed piece of work, which tells how crowded the machine is."""
    net = copy.deepcopy(teacher.net).requires_grad_(True)
    x = torch.randn(256, *teacher.domain.shape, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    for _ in range(steps):
        net(x).square().mean().backward()
    return round(1e3 * (time.process_time() - start) / steps, 1)


if __name__ == "__main__":
    main()
