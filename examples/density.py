"""Maximum likelihood on images: a class-conditional Glow, a picture per class, Bayes' classifier.

    python examples/density.py --steps 200 --out density.png
    python examples/density.py --data fashion.npz --steps 5000

Without `--data` scikit-learn's digits (8 x 8 pixels) are used. A file of one's own is an npz with
`train`, `test` (uint8, `(N, C, H, W)`), `train_labels` and `test_labels`. Reported are the bits per
dimension and the accuracy of `flow.posterior` on test images; the picture has a row per class.
"""

import argparse

import matplotlib
import numpy as np
import torch

from freia_kd.flows import Glow, dequantize

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def load(path):
    """Training and test images with their labels."""
    if path is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * 255 / 16).astype(np.uint8)[:, None]
        halves = (slice(0, 1400), slice(1400, None))
        return [
            (torch.from_numpy(images[h]), torch.from_numpy(digits.target[h]).long()) for h in halves
        ]
    with np.load(path) as arrays:
        return [
            (torch.from_numpy(arrays[h]), torch.from_numpy(arrays[f"{h}_labels"]).long())
            for h in ("train", "test")
        ]


def train(images, labels, steps, learning_rate, hidden_features):
    """A Glow over Glow's own squash, which suits densities, trained in bits per dimension."""
    classes = int(labels.max()) + 1
    flow = Glow(tuple(images.shape[1:]), classes, squash="linear", hidden_features=hidden_features)
    flow.initialize(dequantize(images[:256])[0], labels[:256])
    optimizer = torch.optim.Adam(flow.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    for step in range(steps):
        rows = torch.randint(len(images), (64,))
        loss = flow(images[rows], labels[rows], "bits_per_dim").mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: {loss.item():.3f} bits per dimension")
    return flow.eval()


@torch.no_grad()
def examine(flow, images, labels):
    """Bits per dimension, and the accuracy of Bayes' rule, on test images."""
    parts = list(zip(images.split(100), labels.split(100), strict=True))
    bits = torch.cat([flow.bits_per_dim(x, c) for x, c in parts]).mean().item()
    right = [flow.posterior((x + 0.5) / 256).argmax(1) == c for x, c in parts]
    return bits, torch.cat(right).float().mean().item()


@torch.no_grad()
def draw(flow, path, each=8, temperature=0.7):
    """One row of samples for each class."""
    x = flow.sample(torch.arange(flow.classes), temperature, sample_shape=(each,)).clamp(0, 1)
    rows = torch.cat(list(torch.cat(list(x), -1)), -2)  # (C, classes * H, each * W)
    plt.imsave(path, rows.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="an npz file")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--out", default="density.png")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    (images, labels), (test_images, test_labels) = load(arguments.data)
    flow = train(images, labels, arguments.steps, arguments.learning_rate, arguments.width)
    few = slice(0, arguments.test_images)
    bits, accuracy = examine(flow, test_images[few], test_labels[few])
    print(f"test: {bits:.3f} bits per dimension, Bayes' classifier {accuracy:.1%} right")
    draw(flow, arguments.out)


if __name__ == "__main__":
    main()
