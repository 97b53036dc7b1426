"""Compose one's own class-conditional flow from FrEIA blocks, and fit it to handwritten digits.

    python examples/compose_flow.py

FrEIA leaves to its user how a class gets into an image block, how scales are split, and in which
order the modules of a branching graph are stored. `INN` takes care of all three. Any module with
FrEIA's signature can be appended, whoever wrote it.
"""

import torch
from FrEIA.modules import GLOWCouplingBlock
from sklearn.datasets import load_digits

from freia_kd.flows import INN, INNFlow
from freia_kd.flows.blocks import Conv1x1, Squeeze

STEPS = 150


def make_inn(classes: int) -> INN:
    """An invertible net for 1 x 8 x 8 images with two scales, from pixels to latents."""
    fine = INN([(1, 8, 8)], classes=classes).affine().append(Squeeze)  # 4 x 4 x 4 from here
    for _ in range(3):
        fine.append(Conv1x1).coupling(GLOWCouplingBlock, hidden_features=32)

    coarse = INN([(2, 4, 4)], classes=classes).append(Squeeze)  # half of the channels: 8 x 2 x 2
    coarse.append(Conv1x1).coupling(hidden_features=32).spline(bins=4, hidden_features=32)
    coarse.append(Squeeze, undo=True)

    fine.split(coarse).append(Squeeze, undo=True)
    return fine


def main() -> None:
    torch.manual_seed(0)
    flow = INNFlow(make_inn(10), (1, 8, 8), 10)
    print(f"{sum(p.numel() for p in flow.parameters())} parameters")

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None]  # 0..16
    labels = torch.tensor(data.target)
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3)
    first = last = float("nan")
    for step in range(STEPS):
        index = torch.randint(len(images), (64,))
        x = (images[index] + torch.rand(64, 1, 8, 8)) / 17  # dequantised, within [0, 1]
        loss = -flow.log_prob(x, labels[index]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    print(f"negative log-likelihood: {first:.1f} nats at first, {last:.1f} after {STEPS} steps")

    x = flow.sample(torch.arange(10), temperature=0.7)
    z, _ = flow.encode(x, torch.arange(10))
    error = (flow.decode(z, torch.arange(10))[0] - x).abs().max()
    print(f"one sample of each class: {tuple(x.shape)}, round trip off by {error:.1e}")


if __name__ == "__main__":
    main()
