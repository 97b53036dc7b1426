"""ResNet50 and MobileNetV3 of torchvision at 3x224x224, random weights, through the whole job.

    python benchmarks/real_sizes.py

Plan, dead leaves, a search for half the multiply-accumulates, a few steps of distillation, the
report and an ONNX file; each net in a process of its own, by the command's defaults but for the
numbers in `SIZES`, which are small. Writes `benchmarks/results/real-sizes.json` and `.md`, with an
estimate of what preset `standard` would take on a GPU, by arithmetic alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
NETS = ("resnet50", "mobilenet_v3_large")
SIZES = {"steps": 4, "batch_size": 16, "set_size": 64, "heldout_size": 64}
STANDARD = {"steps": 2_000, "batch_size": 256, "set_size": 65_536, "heldout_size": 4_096}
SUSTAINED = 50e12  # FLOP/s that the estimate takes a GPU to sustain in bf16; not measured here


def lively(net, domain):
    """Random weights whose answers depend on the input, as a teacher's must.

    Batch normalisation has seen dead leaves, and the last bias takes the mean logits away.
    """
    import torch

    from freia_kd.synthesizers.leaves import DeadLeaves

    x = domain.normalize(DeadLeaves(domain)(32, torch.Generator().manual_seed(0)))
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
        if isinstance(layer, torch.nn.Linear):
            last = layer
    with torch.no_grad():
        for part in x.split(32):
            net.train()(part)
        last.bias -= torch.cat([net.eval()(part) for part in x.split(32)]).mean(0)
    return net


def child(name):
    """One net; prints what it found as JSON."""
    begin = time.perf_counter()
    import torch
    from torchvision import models

    import freia_kd
    from freia_kd.compression import Tucker
    from freia_kd.config import DistillationOptions, Preset
    from freia_kd.device import peak_memory
    from freia_kd.domain import Domain
    from freia_kd.students import StudentSpec
    from freia_kd.teachers import Teacher
    from freia_kd.training import Progress

    class Notes(Progress):
        def __init__(self):
            self.said, self.updates = [], 0

        def note(self, message):
            if not message.startswith("Run: "):  # a folder of this machine
                self.said.append(message)

        def stage(self, title, total):
            if title.startswith("try layers"):
                self.said.append(f"{title}: {total}")
            return super().stage(title, total)

        def update(self, done, values):
            self.updates += 1

    seconds, last = {}, [begin]

    def lap(what):
        now = time.perf_counter()
        seconds[what] = round(now - last[0], 1)
        last[0] = now

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    domain = Domain((3, 224, 224), 1000, mean, std, "imagenet")
    torch.manual_seed(0)
    net = lively(getattr(models, name)(), domain)
    teacher = Teacher(net, domain, f"torchvision.models:{name}")
    lap("imports and a net")
    training = DistillationOptions(
        steps=SIZES["steps"], batch_size=SIZES["batch_size"], check_every=SIZES["steps"]
    )
    preset = Preset(
        "quick",
        set_size=SIZES["set_size"],
        heldout_size=SIZES["heldout_size"],
        training=training,
    )
    progress = Notes()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        freia_kd.distill(
            teacher,
            students=[StudentSpec((Tucker(target="macs", goal=0.5),))],
            synthesizer="leaves",
            preset=preset,
            out=run,
            progress=progress,
        )
        lap("the job")
        report = json.loads((run / "report.json").read_text())
        (exported,) = freia_kd.export(
            run, ["onnx"], Path(folder) / "student.onnx", arch=teacher.arch
        )
        lap("ONNX")
    (own,) = report["students"]
    (search,) = own["searches"]
    found = {
        "net": name,
        "seconds": {**seconds, "in all": round(time.perf_counter() - begin, 1)},
        "cpu_seconds": round(time.process_time(), 1),
        "stages": report["seconds"],
        "peak_gb": round(peak_memory(torch.device("cpu")) / 1e9, 2),
        "macs": [own["costs"][k]["macs"] for k in ("before", "after")],
        "parameters": [own["costs"][k]["parameters"] for k in ("before", "after")],
        "search": {
            "batches": search["batches"],
            "trials": sum(not row["is_estimated"] for row in search["sensitivity"]),
            "estimated": sum(row["is_estimated"] for row in search["sensitivity"]),
            "reached": round(search["reached"], 4),
        },
        "onnx_mb": round(exported.bytes / 1e6, 1),
        "progress": progress.said,
        "threads": report["provenance"]["threads"],
    }
    print("FOUND" + json.dumps(found))


def estimate(macs):
    """Seconds of a GPU for preset `standard`, by the multiply-accumulates of its parts."""
    teacher, student = macs
    inputs = STANDARD["set_size"] + STANDARD["heldout_size"]
    checks = STANDARD["steps"] / 200 * STANDARD["heldout_size"] / 2
    parts = {
        "labels of the set": inputs * teacher,
        "the student's steps": 3 * STANDARD["steps"] * STANDARD["batch_size"] * student,
        "its checks": checks * student,
        "the search": 200 * 32e9,
    }
    return {k: round(2 * v / SUSTAINED, 1) for k, v in parts.items()}


def write(path, result):
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["# Nets of real sizes", "", result["about"], ""]
    heads = ["net", "seconds in all", "processor seconds", "peak memory", "MACs", "parameters"]
    heads += ["batches of the search", "ONNX", "a GPU, preset standard", "threads", "load"]
    lines += [line(heads), "|" + "---|" * len(heads)]
    for row in result["nets"]:
        before, after = row["macs"]
        lines.append(
            line(
                [
                    row["net"],
                    row["seconds"]["in all"],
                    row["cpu_seconds"],
                    f"{row['peak_gb']} GB",
                    f"{before / 1e9:.2f} G to {after / 1e9:.2f} G",
                    " to ".join(f"{p / 1e6:.1f} M" for p in row["parameters"]),
                    f"{row['search']['batches']} ({row['search']['trials']} trials, "
                    f"{row['search']['estimated']} told from them)",
                    f"{row['onnx_mb']} MB",
                    f"{sum(row['gpu_estimate'].values()):.0f} s",
                    row["threads"],
                    row["load_average"],
                ]
            )
        )
    lines += ["", result["estimate"]]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def line(cells):
    return f"| {' | '.join(map(str, cells))} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(NETS))
    parser.add_argument("--results", type=Path, default=HERE / "benchmarks/results/real-sizes")
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    import torch

    path = given.results.with_suffix(".json")
    nets = json.loads(path.read_text())["nets"] if path.exists() else []
    for name in given.only:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.partition("FOUND")[2])
        found["gpu_estimate"] = estimate(found["macs"])
        found["load_average"] = round(os.getloadavg()[0], 1)
        print(json.dumps(found, indent=1), flush=True)
        nets = [*(row for row in nets if row["net"] != name), found]
    result = {
        "about": (
            f"Random weights, 3x224x224, 1,000 classes; {SIZES['steps']} steps of "
            f"{SIZES['batch_size']} inputs, {SIZES['set_size']} inputs to learn from. "
            f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}."
        ),
        "sizes": SIZES,
        "estimate": (
            "The GPU's seconds are arithmetic: twice the multiply-accumulates of preset standard "
            f"({STANDARD['set_size']:,} inputs, {STANDARD['steps']:,} steps of "
            f"{STANDARD['batch_size']}), three forward passes for a step, at {SUSTAINED / 1e12:g} "
            "TFLOP/s. No GPU was seen; at another rate they are in proportion."
        ),
        "nets": sorted(nets, key=lambda row: NETS.index(row["net"])),
    }
    write(given.results, result)


if __name__ == "__main__":
    main()
