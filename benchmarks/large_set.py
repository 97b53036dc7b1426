"""A synthetic set larger than memory: made, read in random order and learned from.

    python benchmarks/large_set.py --count 100000 --out FOLDER

Prints images a second and the peak of the resident memory, and writes both to
`benchmarks/results/large-set.json`. The teacher and the student are small on purpose, so that what
is measured is the set and not the nets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from freia_kd.config import DistillationOptions
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter
from freia_kd.distillation import train_student
from freia_kd.domain import Domain
from freia_kd.files import write_json
from freia_kd.synthesizers.noise import NoiseOptions, Spectral
from freia_kd.synthesizers.on_the_fly import generate_labelled
from freia_kd.teachers import Classifier, Teacher

SHARD, BATCH = 4_096, 256


def net(channels):
    layers = [nn.Conv2d(3, channels, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16 * channels, 10))


def peak():
    """The most bytes that were resident since the last call, mapped files included (Linux)."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def make(folder, teacher, count):
    source = Spectral(NoiseOptions(tries=1))
    source.fit(teacher)
    writer = SyntheticWriter(folder, teacher.domain)
    for number in range(-(-count // SHARD)):
        generator = torch.Generator().manual_seed(number)
        size = min(SHARD, count - number * SHARD)
        writer.append(*generate_labelled([source], teacher, size, generator))


def read(folder, count):
    data = SyntheticSet(folder)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    for rows in order.split(BATCH):
        data.batch(rows)


def load(folder, count):
    loader = DataLoader(SyntheticSet(folder), BATCH, shuffle=True)
    for number, _ in enumerate(loader, 1):
        if number * BATCH >= count:
            return


def learn(folder, teacher, count):
    student = Classifier(net(4), teacher.domain, "small")
    options = DistillationOptions(steps=-(-count // BATCH), batch_size=BATCH)
    train_student(student, SyntheticSet(folder), options, torch.Generator().manual_seed(0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=64, help="of an image, in pixels")
    parser.add_argument("--out", type=Path, help="by default a temporary folder")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/large-set.json"))
    given = parser.parse_args()
    folder = given.out or Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    domain = Domain((3, given.size, given.size), 10, (0.5,) * 3, (0.25,) * 3, "large")
    teacher = Teacher(net(8).eval(), domain, "small")
    start, found = peak(), {}
    for name, work in {
        "made": lambda: make(folder / "set", teacher, given.count),
        "read in random order": lambda: read(folder / "set", given.count),
        "read by a DataLoader": lambda: load(folder / "set", given.count),
        "learned from": lambda: learn(folder / "set", teacher, given.count),
    }.items():
        begin = time.perf_counter()
        work()
        seconds = time.perf_counter() - begin
        found[name] = {
            "images_per_second": round(given.count / seconds),
            "peak_mb": round(peak() / 1e6),
        }
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    disk = sum(path.stat().st_size for path in (folder / "set").iterdir())
    result = {
        "count": given.count,
        "shape": list(domain.shape),
        "set_mb": round(disk / 1e6),
        "at_start_mb": round(start / 1e6),
        "stages": found,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    write_json(given.results, result)
    if given.out is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
