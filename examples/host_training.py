"""What the examples of host libraries share: a 2-D teacher, and the paper's training of any flow.

The loop knows nothing of the library that the flow comes from.
"""

import argparse
from collections.abc import Callable

import torch

from freia_kd.data.toy import toy
from freia_kd.domain import Domain
from freia_kd.experiments.figure2 import energy_distance
from freia_kd.flows import ConditionalFlow
from freia_kd.objectives import Batch, Bidirectional, Distill, Objective, ReverseLikelihood
from freia_kd.objectives.image_priors import GaussianPrior
from freia_kd.teachers import Teacher
from freia_kd.teachers.mlp import MLP
from freia_kd.teachers.training import train_classifier

CLASSES = 2
# Eq. (4) with the weights of eq. (1); the prior stands for the log p_X(x) that it asks for.
DISTILL = Distill(alpha=1.0, prior=GaussianPrior())


def train(
    flow: ConditionalFlow,
    teacher: Teacher,
    objective: Objective,
    samples: tuple[torch.Tensor, torch.Tensor],
    steps: int,
    generator: torch.Generator,
) -> None:
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        c = torch.randint(CLASSES, (128,), generator=generator)
        z = flow.sample_base(c, generator=generator)
        terms = objective(flow, teacher, Batch(z, c, *samples, generator))
        optimizer.zero_grad()
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def run(make_flow: Callable[[], ConditionalFlow]) -> None:
    """Trains a flow without data, and one more with ten samples a class; prints both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400, help="training steps of each flow")
    steps = parser.parse_args().steps

    torch.set_num_threads(1)  # in nets this small, threads only wait for each other
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    data, test = toy("moons", 1000, generator), toy("moons", 1000, generator)
    domain = Domain((2,), CLASSES, name="moons")
    net = MLP(2, CLASSES)
    train_classifier(net, data, domain, epochs=30, learning_rate=1e-2, generator=generator)
    teacher = Teacher(net, domain, "mlp")

    few = torch.cat([torch.nonzero(data.labels == k).flatten()[:10] for k in range(CLASSES)])
    samples = data.inputs[few].repeat(5, 1), data.labels[few].repeat(5)
    objectives = {
        "without data": DISTILL,
        "with 10 samples a class": Bidirectional(DISTILL, 2.0, ReverseLikelihood(noise=0.1)),
    }
    for name, objective in objectives.items():
        flow = make_flow()
        train(flow, teacher, objective, samples, steps, generator)
        with torch.no_grad():
            c = torch.arange(1000) % CLASSES
            x = flow.sample(c, generator=generator)
            right = (teacher(x).argmax(1) == c).float().mean()
        each = [energy_distance(x[c == k], test.inputs[test.labels == k]) for k in range(CLASSES)]
        print(f"{name}: {right:.0%} on the right side, energy distance {sum(each) / len(each):.3f}")
