"""What compression buys, as a Markdown table.

python benchmarks/compression.py
"""

import argparse
import platform
import time

import torch
from torch import nn

from freia_kd.compression import apply_plan, compare_costs, make_plan
from freia_kd.compression.tucker.decompose import evbmf_ranks, tucker2
from freia_kd.teachers.lenet5 import LeNet5
from freia_kd.teachers.mlp import MLP
from freia_kd.teachers.resnet14 import ResNet14


def costs(arguments: argparse.Namespace) -> None:
    """Costs of several nets with random weights at a quarter of the ranks of every layer."""
    from torchvision import models

    nets = {
        "LeNet5": (LeNet5(), (1, 32, 32)),
        "ResNet14": (ResNet14(), (3, 32, 32)),
        "MLP 784-512-512": (MLP(784, 10, (512, 512)), (784,)),
        "ResNet18": (models.resnet18(weights=None), (3, 112, 112)),
        "MobileNetV2": (models.mobilenet_v2(weights=None), (3, 112, 112)),
    }
    print(f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    print(
        "| net | layers | seconds | parameters | MACs | ms, batch 1 | ms, batch 64 | peak MB, 64 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (net, shape) in nets.items():
        start = time.perf_counter()
        small = apply_plan(net, make_plan(net, ranks=arguments.ratio, shape=shape))
        seconds = time.perf_counter() - start
        (found,) = compare_costs(net.eval(), [small.eval()], shape, seconds=1.0)
        old, new = found.before, found.after
        cells = [
            f"{len(found.layers)}",
            f"{seconds:.1f}",
            f"{old.parameters:,} → {new.parameters:,}",
            f"{old.macs:,} → {new.macs:,}",
            *(f"{old.latency[b].median:.2f} → {new.latency[b].median:.2f}" for b in (1, 64)),
            f"{old.peak_bytes[64] / 1e6:.1f} → {new.peak_bytes[64] / 1e6:.1f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    conv = nn.Conv2d(512, 512, 3)
    for what, work in (
        ("EVBMF ranks", evbmf_ranks),
        ("Tucker-2 at 128", lambda c: tucker2(c, (128, 128))),
    ):
        start = time.perf_counter()
        work(conv)
        print(f"\n{what} of a 512 x 512 x 3 x 3 convolution: {time.perf_counter() - start:.2f} s")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, default=0.25, help="ranks over channels")
    costs(parser.parse_args())


if __name__ == "__main__":
    main()
