"""How far memory grows while a set is made and read; apart, since a peak never falls."""

import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from freia_kd.data import synthetic
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter
from freia_kd.domain import Domain

SHARDS, ROWS, SHAPE = 40, 512, (3, 64, 64)  # 252 MB


def peak():
    """The most that was resident, in bytes; getrusage would count what forked this process too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def main(folder, kept):
    synthetic.KEPT = int(kept)
    domain = Domain(SHAPE, 10, (0.5,) * 3, (0.25,) * 3)
    writer, generator = SyntheticWriter(folder, domain), torch.Generator().manual_seed(0)
    peaks = [peak()]
    for _ in range(SHARDS):
        inputs = torch.randint(256, (ROWS, *SHAPE), generator=generator, dtype=torch.uint8)
        writer.append(inputs, torch.rand(ROWS, 10), torch.zeros(ROWS, dtype=torch.long))
        peaks = peaks if len(peaks) > 1 else [peak()] * 2  # what one shard takes is no growth
    data = SyntheticSet(folder)
    peaks.append(peak())
    for rows in torch.randperm(len(data), generator=generator).split(16):
        data.batch(rows)
    peaks.append(peak())
    seen = sum(len(x) for x, _, _ in DataLoader(data, 16, shuffle=True, generator=generator))
    peaks.append(peak())
    print(json.dumps({"rows": seen, "growth": [p - peaks[0] for p in peaks]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
