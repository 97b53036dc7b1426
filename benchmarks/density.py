"""Bits per dimension of class-conditional flows after equal CPU time: ours, normflows', zuko's.

    OMP_NUM_THREADS=1 python benchmarks/density.py --data cifar10.npz --output results.json

The data are an npz file with `train` and `test`, uint8 with shape `(N, C, 32, 32)`, and
`train_labels` and `test_labels`. Every flow trains by maximum likelihood on uniformly dequantised
images until a budget of CPU seconds of one thread is spent (building, and the first batch that
normflows' ActNorm looks at, not counted). Test images are seen once, after the last step. Both
Glows have the same scales, steps and width. Learning rates were the better of 3e-3 and 1e-2 for the
Glows, of 1e-3 and 3e-4 for zuko, on 500 of CIFAR-10's training images, after 25 and 12 seconds.
"""

import argparse
import json
import math
import statistics
import time

import normflows as nf
import numpy as np
import torch
import zuko
from torch import nn

from freia_kd.files import write_json
from freia_kd.flows import Glow, dequantize

CLASSES, LEVELS, STEPS, HIDDEN, BATCH = 10, 3, 8, 32, 64
LEARNING_RATES = {"freia_kd Glow": 1e-2, "normflows Glow": 1e-2, "zuko NICE": 1e-3}


class Ours(nn.Module):
    """Glow of this package."""

    def __init__(self, shape):
        super().__init__()
        self.has_seen_data = False
        self.flow = Glow(
            shape,
            CLASSES,
            levels=LEVELS,
            steps=STEPS,
            hidden_features=HIDDEN,
            bf16=True,
            squash="linear",
        )

    def forward(self, x, c):
        if not self.has_seen_data:  # as normflows' ActNorm, by the first batch
            self.flow.initialize(x, c)
            self.has_seen_data = True
        return self.flow.log_prob(x, c)


class Normflows(nn.Module):
    """normflows' Glow, built as in its own example, with class-conditional bases."""

    def __init__(self, shape):
        super().__init__()
        bases, merges, flows = [], [], []
        channels, size, _ = shape
        for level in range(LEVELS):  # coarsest first
            width, side = channels * 2 ** (LEVELS + 1 - level), size // 2 ** (LEVELS - level)
            steps = [nf.flows.GlowBlock(width, HIDDEN) for _ in range(STEPS)]
            flows.append([*steps, nf.flows.Squeeze()])
            if level:
                merges.append(nf.flows.Merge())
            base = (width // 2 if level else width, side, side)
            bases.append(nf.distributions.GlowBase(base, CLASSES))
        self.flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=True)

    def forward(self, x, c):
        return self.flow.log_prob(x, c)


class Zuko(nn.Module):
    """zuko's NICE on the pixels, through the logit of RealNVP's paper.

    Its MAF takes minutes to be built for 3072 features.
    """

    def __init__(self, shape):
        super().__init__()
        self.flow = zuko.flows.NICE(
            math.prod(shape), CLASSES, transforms=4, hidden_features=(512, 512)
        )

    def forward(self, x, c):
        x = 0.05 + 0.9 * x.flatten(1)
        u = torch.logit(x)
        ladj = (math.log(0.9) - x.log() - (1 - x).log()).sum(1)
        return self.flow(nn.functional.one_hot(c, CLASSES).float()).log_prob(u) + ladj


CONTENDERS = {"freia_kd Glow": Ours, "normflows Glow": Normflows, "zuko NICE": Zuko}


def bits(log_prob, x):
    return 8 - log_prob / (x[0].numel() * math.log(2))


def train(name, data, seconds, seed, learning_rate=None):
    """Trains a contender for so many CPU seconds; returns it and its number of steps."""
    torch.manual_seed(seed)
    images, labels = data
    model = CONTENDERS[name](tuple(images.shape[1:]))
    draw = torch.Generator().manual_seed(seed)
    rate = learning_rate or LEARNING_RATES[name]

    def batch():
        rows = torch.randint(len(images), (BATCH,), generator=draw)
        return dequantize(images[rows], draw)[0], labels[rows]

    with torch.no_grad():
        model(*batch())
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        # A warm-up, then down to a tenth, by the time that is spent.
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (steps + 1) / 20) * (0.1 ** (spent / seconds))
        x, c = batch()
        loss = bits(model(x, c), x).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    return model, steps


@torch.no_grad()
def evaluate(model, data, count):
    """Bits per dimension of the first `count` images."""
    images, labels = (part[:count] for part in data)
    noise = torch.Generator().manual_seed(1)
    total = 0.0
    for x, c in zip(images.split(250), labels.split(250), strict=True):
        pixels, _ = dequantize(x, noise)
        total += bits(model.eval()(pixels, c), pixels).sum().item()
    return total / len(images)


def load(path):
    """The training and the test half of an npz file."""
    with np.load(path) as arrays:
        return [
            (torch.from_numpy(arrays[half]), torch.from_numpy(arrays[f"{half}_labels"]).long())
            for half in ("train", "test")
        ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, nargs="+", help="npz files")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--output", help="where to write the results as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "cpu_seconds": arguments.seconds,
        "test_images": arguments.images,
        "flow": {"levels": LEVELS, "steps": STEPS, "width": HIDDEN, "batch": BATCH},
        "learning_rates": LEARNING_RATES,
        "torch": torch.__version__,
        "bits_per_dim": {},
    }
    for path in arguments.data:
        train_half, test_half = load(path)
        data = results["bits_per_dim"][path.rpartition("/")[2].removesuffix(".npz")] = {}
        for name in CONTENDERS:
            rows = []
            for seed in range(arguments.seeds):
                model, steps = train(name, train_half, arguments.seconds, seed)
                found = evaluate(model, test_half, arguments.images)
                rows.append({"seed": seed, "bits": round(found, 4), "steps": steps})
                print(path, name, rows[-1], flush=True)
            median = statistics.median(row["bits"] for row in rows)
            data[name] = {"median": median, "runs": rows}
            if arguments.output:
                write_json(arguments.output, results)
    print(json.dumps(results["bits_per_dim"], indent=2))


if __name__ == "__main__":
    main()
