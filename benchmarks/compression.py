"""What compression buys, and what to do with batch normalisation, as Markdown tables.

python benchmarks/compression.py costs
python benchmarks/compression.py batchnorm --data digits
python benchmarks/compression.py batchnorm --data fashion-mnist --root DIR --images 12000
"""

import argparse
import platform
import time

import torch
import torch.nn.functional as F
from torch import nn

from freia_kd.compression import (
    apply_plan,
    compare_costs,
    make_plan,
    prepare_batchnorm,
    student_plan,
    train_mode,
)
from freia_kd.compression.tucker.decompose import evbmf_ranks, tucker2
from freia_kd.data.datasets import LabelledData, load_dataset
from freia_kd.domain import DOMAINS
from freia_kd.flows.bases import SpectralBase
from freia_kd.teachers.lenet5 import LeNet5
from freia_kd.teachers.mlp import MLP
from freia_kd.teachers.resnet14 import ResNet14
from freia_kd.teachers.training import train_classifier


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
        found = compare_costs(net.eval(), small.eval(), shape, seconds=1.0)
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


def batchnorm(arguments: argparse.Namespace) -> None:
    """ResNet14's student 3, distilled on spectral noise with each mode of batch normalisation."""
    domain = DOMAINS[arguments.data]
    train = load_dataset(arguments.data, split="train", root=arguments.root)
    test = load_dataset(arguments.data, split="test", root=arguments.root)
    few = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(train), generator=few)[: arguments.images]
    train = LabelledData(train.inputs[chosen], train.labels[chosen], train.name)
    x_test, y_test = test.take(torch.arange(min(2000, len(test))))
    torch.manual_seed(0)
    teacher = ResNet14(domain.shape[0], domain.classes)
    train_classifier(teacher, train, domain, arguments.epochs, generator=few)
    teacher.eval()

    def accuracy(net: nn.Module) -> float:
        net.eval()
        with torch.no_grad():
            logits = torch.cat([net(domain.normalize(x)) for x in x_test.split(250)])
        return 100 * (logits.argmax(1) == y_test).float().mean().item()

    base = SpectralBase.for_domain(domain)

    def images(n: int, generator: torch.Generator) -> torch.Tensor:
        return domain.normalize(base.sample(n, generator=generator).sigmoid())

    print(f"teacher {accuracy(teacher):.1f}", flush=True)
    print(
        "\n| student | mode | seed | Tucker only | prepared | distilled | agreement on noise |"
        "\n|---|---|---|---|---|---|---|"
    )
    for student in arguments.students:
        plan = student_plan(teacher, "resnet14", student)
        for mode in ("freeze", "reestimate", "train"):
            for seed in range(arguments.seeds):
                generator = torch.Generator().manual_seed(seed)
                net = apply_plan(teacher, plan).requires_grad_(True)
                before = accuracy(net)
                prepare_batchnorm(net, mode, images(1024, generator))
                prepared = accuracy(net)
                optimizer = torch.optim.Adam(net.parameters(), 1e-3)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
                train_mode(net, mode)
                for _ in range(arguments.steps):
                    x = images(64, generator)
                    with torch.no_grad():
                        goal = teacher(x)
                    loss = F.l1_loss(net(x), goal)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                row = f"{before:.1f} | {prepared:.1f} | {accuracy(net):.1f}"
                with torch.no_grad():
                    x = images(1024, generator)
                    same = (net(x).argmax(1) == teacher(x).argmax(1)).float().mean().item()
                row += f" | {100 * same:.1f}"
                print(f"| {student} | {mode} | {seed} | {row} |", flush=True)


def main() -> None:
    """Runs one of the two benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["costs", "batchnorm"])
    parser.add_argument("--ratio", type=float, default=0.25, help="ranks over channels, for costs")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--root", default="data")
    parser.add_argument("--images", type=int, default=12_000, help="training images of the teacher")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--students", nargs="+", default=["1", "3"])
    arguments = parser.parse_args()
    {"costs": costs, "batchnorm": batchnorm}[arguments.what](arguments)


if __name__ == "__main__":
    main()
