"""Where the wall time of `freiakd distill` goes, and how it compares with an earlier commit.

    git archive COMMIT | tar x -C BEFORE && ln -s ../cli BEFORE/freia_kd/cli
    python benchmarks/job.py
    python benchmarks/job.py --before BEFORE --pairs 3

Each case is one job in a process of its own, with the steps, sets and students fixed, so that both
commits do the same work; teachers have random weights. Pairs of runs are interleaved, each pair in
the reverse order of the one before (`--before`). Besides wall time there is the processor time,
which other processes on the machine hardly change. Without `--before` each case is profiled: calls
of the outermost module and `backward` outside of measuring are the nets' arithmetic. Writes
`benchmarks/results/job.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[1]
# Name: what its teacher is, the share of a preset's work, its preset's steps and set, the student.
RESNET18 = "torchvision.models:resnet18"
CASES = {
    "lenet5": ("lenet5", (1, 32, 32), 1 / 6, 6_000, 131_072, 4_096, "standard", "3"),
    "resnet14": ("resnet14", (1, 32, 32), 1 / 25, 2_000, 65_536, 4_096, "standard", "3"),
    "resnet18": (RESNET18, (3, 32, 32), 1 / 10, 600, 16_384, 2_048, "quick", "1"),
}


PARTS = ["forward", "backward", "weights", "imports", "opening, plan and end", "measure", "report"]
LEGEND = (
    "Where the seconds go afterwards, with one thread: `weights` is the optimizer. At full length: "
    "what grows with the steps is multiplied by the preset's share."
)


def teacher_of(arch, shape):
    """A teacher of random weights, whose batch normalisation has seen noise."""
    import torch

    from freia_kd.domain import Domain
    from freia_kd.teachers import Teacher, build_net

    torch.manual_seed(0)
    domain = Domain(shape, 10, (0.5,) * shape[0], (0.25,) * shape[0], "noise")
    net = build_net(arch, domain).train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(32, *shape))
    return Teacher(net.eval(), domain, arch)


class Clock:
    """Adds up the time within functions that it takes the place of, outermost calls only."""

    def __init__(self):
        self.seconds, self.depth, self.is_on = {}, 0, True

    def watch(self, owner, name, label):
        original = getattr(owner, name)

        def timed(*args, **kwargs):
            if self.depth or not self.is_on:
                return original(*args, **kwargs)
            self.depth += 1
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.depth -= 1
                spent = time.perf_counter() - start
                self.seconds[label] = self.seconds.get(label, 0.0) + spent

        setattr(owner, name, timed)

    def skip(self, module, name):
        """Counts nothing within a function."""
        original = getattr(module, name)

        def silent(*args, **kwargs):
            before, self.is_on = self.is_on, False
            try:
                return original(*args, **kwargs)
            finally:
                self.is_on = before

        setattr(module, name, silent)


def child(case, share, profiled):
    """One job; prints what it found as JSON."""
    begin = time.perf_counter()
    import torch

    import freia_kd
    from freia_kd.config import DistillationOptions, Preset
    from freia_kd.job import run

    imported = time.perf_counter() - begin
    arch, shape, _, steps, size, heldout, preset, student = CASES[case]
    clock = Clock()
    if profiled:
        clock.watch(torch.nn.Module, "__call__", "forward")
        clock.watch(torch.Tensor, "backward", "backward")
        clock.watch(torch.autograd, "grad", "backward")
        clock.watch(torch.optim.Optimizer, "step", "weights")
        clock.watch(torch.optim.Adam, "step", "weights")
        for name in ("measure", "announce"):
            clock.skip(run, name)
    scaled = Preset(
        preset,
        set_size=round(share * size),
        heldout_size=max(64, round(share * heldout)),
        training=DistillationOptions(
            steps=round(share * steps), batch_size=256, check_every=max(1, round(share * 200))
        ),
    )
    names = ["leaves", "figures"]
    from freia_kd.synthesizers import build_synthesizers

    sources = build_synthesizers("+".join(names), preset)
    if case != "lenet5":
        from freia_kd.synthesizers.bdnf import BDNF

        flow = BDNF.build(preset)
        flow = BDNF(flow.options.changed(steps=max(2, round(share * flow.options.steps))))
        sources = [flow, *sources]
    with tempfile.TemporaryDirectory() as folder:
        freia_kd.distill(
            teacher_of(arch, shape),
            students=[student],
            synthesizer=sources,
            preset=scaled,
            out=Path(folder) / "run",
        )
        record = json.loads((Path(folder) / "run" / "run.json").read_text())
    found = {"imports": imported, **clock.seconds}
    print("FOUND" + json.dumps({"stages": record["seconds"], "parts": found}))


def run_once(tree, case, share, threads, profiled=False):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(tree)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, str(Path(__file__).resolve()), "--child", case]
    command += ["--share", str(share)] + (["--profiled"] if profiled else [])
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found = json.loads(done.stdout.partition("FOUND")[2])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, **found}


def compare(before, case, share, threads, pairs):
    trees, runs = [before, HERE], {"before": [], "after": []}
    for pair in range(pairs):
        for tree in trees[:: -1 if pair % 2 else 1]:
            name = "after" if tree == HERE else "before"
            runs[name].append(run_once(tree, case, share, threads))
            last = runs[name][-1]
            print(
                f"{case}, {threads or 'default'} threads, {name}: "
                f"{last['wall']:.1f} s, cpu {last['cpu']:.1f} s",
                flush=True,
            )
    ratios = {
        unit: [round(a[unit] / b[unit], 3) for b, a in zip(*runs.values(), strict=True)]
        for unit in ("wall", "cpu")
    }
    return {
        "case": case,
        "share": share,
        "threads": threads or "default",
        "wall": {k: [round(r["wall"], 1) for r in v] for k, v in runs.items()},
        "cpu": {k: [round(r["cpu"], 1) for r in v] for k, v in runs.items()},
        "ratios": ratios,
        "load": round(os.getloadavg()[0], 1),
    }


def profile(case, share):
    found = run_once(HERE, case, share, 1, profiled=True)
    parts, stages = found["parts"], found["stages"]
    total = found["wall"]
    arithmetic = parts["forward"] + parts["backward"]
    fixed = {"imports": parts["imports"], **{k: stages[k] for k in ("measure", "report")}}
    known = sum(stages.values())
    fixed["opening, plan and end"] = max(0.0, total - parts["imports"] - known)
    growing = known - stages["measure"] - stages["report"]
    return {
        "case": case,
        "share_of_preset": share,
        "wall": round(total, 1),
        "arithmetic": round(arithmetic / total, 3),
        "arithmetic_of_work": round(arithmetic / growing, 3),
        "arithmetic_at_full_length": round(
            arithmetic / share / (growing / share + sum(fixed.values())), 3
        ),
        "seconds": {k: round(v, 2) for k, v in {**parts, **fixed}.items()},
        "stages": stages,
    }


def write(path, result):
    """The results, of which a table as Markdown."""
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    heads = ["job", "share of the preset", "threads", "wall, after / before"]
    heads += ["processor time, after / before", "seconds before", "after", "load"]
    lines = ["# The wall time of a job", "", result["about"], "", *head(heads)]
    for row in result["pairs"]:
        cells = [row["case"], f"{row['share']:.3f}", row["threads"]]
        for ratios in row["ratios"].values():
            cells.append(f"{median(ratios):.2f} ({', '.join(map(str, ratios))})")
        cells += [f"{median(row['wall'][k]):.0f}" for k in ("before", "after")]
        lines.append(line([*cells, row["load"]]))
    heads = ["job", "wall", *PARTS, "arithmetic", "at full length"]
    lines += ["", LEGEND, "", *head(heads)]
    for row in result["profiles"]:
        cells = [row["case"], row["wall"], *(f"{row['seconds'][p]:.1f}" for p in PARTS)]
        cells += [f"{row[k]:.0%}" for k in ("arithmetic", "arithmetic_at_full_length")]
        lines.append(line(cells))
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def line(cells):
    return f"| {' | '.join(map(str, cells))} |"


def head(cells):
    return [line(cells), "|" + "---|" * len(cells)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="the folder of an earlier commit")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--threads", type=int, nargs="*", default=[1], help="0 is torch's default")
    parser.add_argument("--share", type=float, help="of a preset's work")
    parser.add_argument("--results", type=Path, default=HERE / "benchmarks/results/job")
    parser.add_argument("--child")
    parser.add_argument("--profiled", action="store_true")
    given = parser.parse_args()
    if given.child:
        child(given.child, given.share, given.profiled)
        return
    path = given.results.with_suffix(".json")
    result = json.loads(path.read_text()) if path.exists() else {"pairs": [], "profiles": []}
    import torch

    result["about"] = (
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}; before is "
        "commit fc4b41fb. Ratios below 1 are faster. The load is the average after the runs."
    )
    for case in given.only:
        share = given.share or CASES[case][2]
        if not given.before:
            rows = [p for p in result["profiles"] if p["case"] != case]
            result["profiles"] = [*rows, profile(case, share)]
            print(json.dumps(result["profiles"][-1]), flush=True)
        for threads in given.threads if given.before else ():
            row = compare(given.before.resolve(), case, share, threads, given.pairs)
            result["pairs"].append(row)  # rows of other loads stay
            write(given.results, result)
    write(given.results, result)


if __name__ == "__main__":
    main()
