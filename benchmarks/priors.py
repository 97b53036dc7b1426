"""How many images a second the synthesizers make that learn nothing, on one core.

python benchmarks/priors.py
"""

from __future__ import annotations

import argparse
import os
import time

import torch

from freia_kd.domain import DOMAINS
from freia_kd.synthesizers import build_synthesizers
from freia_kd.teachers import Teacher, build_net


def images_a_second(name, domain, count):
    """CPU seconds, so that other work on the machine matters less."""
    (source,) = build_synthesizers(name)
    source.fit(Teacher(build_net("lenet5", domain), domain, "lenet5"))
    generator = torch.Generator().manual_seed(0)
    source.draw(512, generator)
    start = time.process_time()
    source.draw(count, generator)
    return count / (time.process_time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=["uniform", "spectral", "leaves", "photos"])
    parser.add_argument("--count", type=int, default=8_192)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, one of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print("| synthesizer | grey, 32x32 | colour, 32x32 |\n|---|---|---|")
    for name in arguments.names:
        rates = [
            images_a_second(name, DOMAINS[d], arguments.count) for d in ("fashion-mnist", "cifar10")
        ]
        print(f"| {name} | " + " | ".join(f"{r:,.0f}" for r in rates) + " |")


if __name__ == "__main__":
    main()
