"""The paper's figure 2: a flow learns 2-D data from a teacher, with few samples or none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.datasets import LabelledData
from ..data.toy import toy
from ..domain import Domain
from ..evaluation import accuracy, share_equal
from ..files import atomic, write_json
from ..flows.contract import ConditionalFlow
from ..flows.nice import NICE
from ..objectives import (
    Batch,
    Bidirectional,
    Distill,
    Exact,
    GaussianPrior,
    Objective,
    ReverseLikelihood,
)
from ..teachers.classifier import Teacher
from ..teachers.mlp import MLP
from ..teachers.training import train_classifier
from ..training import Checkpoints, Rehearsal, Stateful, TrainingLoop

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("tab:blue", "tab:red", "tab:green", "tab:orange", "tab:purple", "tab:brown")


@dataclass(frozen=True, eq=False)
class Figure2:
    """What one run of :func:`figure2` made.

    Arguments:
        data: The true data.
        teacher: The teacher trained on them.
        samples: The few real samples that the second flow saw, and their classes.
        flows: The flows, under `data_free` and `with_samples`.
        sampled: For each flow as many samples as there are data, and their classes.
        numbers: The measurements, as plain JSON types.
    """

    data: LabelledData
    teacher: Teacher
    samples: tuple[Tensor, Tensor]
    flows: dict[str, ConditionalFlow]
    sampled: dict[str, tuple[Tensor, Tensor]]
    numbers: dict[str, Any]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `NAME.png` and `NAME.json` into a folder; returns the path of the picture."""
        published = "-as-published" if self.numbers["as_published"] else ""
        stem = self.data.name.replace(":", "-") + published
        write_json(Path(folder) / f"{stem}.json", self.numbers)
        with atomic(Path(folder) / f"{stem}.png") as temporary:
            plot(self).savefig(temporary, dpi=110, metadata={"Software": None})
        return Path(folder) / f"{stem}.png"


def figure2(
    name: str,
    generator: torch.Generator,
    *,
    points: int = 2000,
    samples_per_class: int = 10,
    steps: int = 800,
    gamma: float = 2.0,
    noise: float = 0.07,
    as_published: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> Figure2:
    r"""Trains a teacher on a toy data set, then a flow without data and one with a few samples.

    Both flows minimise eq. (1) in nats (:class:`~freia_kd.objectives.Exact`), with a standard
    Gaussian as :math:`p_X`: what it knows of the data is that they lie within a few units of 0.
    The second adds gamma times the negative log-likelihood of the samples (eq. 9).

    Departures from the paper, whose toy code has weights of its own: all terms are in nats; the
    teacher's sharpness rises to 1 in the first half of training, for else a flow may miss whole
    regions of a class; the samples are smoothed by noise, for else twenty points are learned by
    heart. With `as_published` there is none of this, and the objective is that code's,
    :math:`10\,\mathrm{CLS} + \mathrm{Jacobian} - 0.01\,\|x\|^2`, with gamma times the samples'
    log-likelihood added in every step as eq. (9) says (the code takes the two in turn). Its data
    are about five times as wide as ours, so that 0.01 is 0.25 here.

    Arguments:
        name: A name in :data:`freia_kd.data.toy.TOYS`.
        generator: The source of all random numbers.
        points: The number of true data the teacher sees.
        samples_per_class: The real samples that the second flow sees.
        steps: Training steps of each flow.
        gamma: The weight of the real samples.
        noise: The standard deviation of the noise that smooths them.
        as_published: Whether the flows learn by the objective of the paper's toy code.
        on_stage: Called with the title of each stage as it starts.

    Raises:
        UsageError: If there is no such data set.
        ValueError: If a class has too few points for its samples.
        TrainingError: If training does not go on.

    References:
        | Data-free Knowledge Distillation with Bi-directional Normalizing Flow (Kim), section 5.1
    """
    say = on_stage or (lambda title: None)
    began = time.monotonic()
    say("teacher")
    data, test = toy(name, points, generator), toy(name, points, generator)
    classes = int(data.labels.max()) + 1
    samples = _choose(data, classes, samples_per_class)
    teacher = _train_teacher(data, classes, generator)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    flows: dict[str, ConditionalFlow] = {}
    sampled, numbers = {}, {}
    for panel in ("data_free", "with_samples"):
        say(panel)
        with torch.random.fork_rng(devices=[]):  # both flows start from the same weights
            torch.manual_seed(seed)
            flow = NICE((2,), classes, hidden_features=64)
        weight = gamma if panel == "with_samples" else 0.0
        make = _published(weight) if as_published else _in_nats(weight, noise, steps)
        _train_flow(flow, teacher, samples, steps, generator, make)
        flows[panel] = flow
        sampled[panel] = _sample(flow, points, generator)
        numbers[panel] = _measure(flow, teacher, sampled[panel], test)
    before, after = (numbers[panel]["energy_distance"] for panel in flows)
    report = {
        "data": name,
        "points": points,
        "classes": classes,
        "samples_per_class": samples_per_class,
        "steps": steps,
        "gamma": gamma,
        "noise": 0.0 if as_published else noise,
        "as_published": as_published,
        "teacher_accuracy": accuracy(teacher, test),
        **numbers,
        "distance_ratio": after / before,
        "seconds": round(time.monotonic() - began, 1),
    }
    return Figure2(data, teacher, samples, flows, sampled, report)


def time_flow(steps: int, as_published: bool = False) -> float:
    """About the seconds that a flow of :func:`figure2` takes to learn, after a few real steps.

    Arguments:
        steps: As there.
        as_published: As there.
    """
    generator, domain = torch.Generator().manual_seed(0), Domain((2,), 2)
    x, y = torch.randn(20, 2, generator=generator), torch.arange(20) % 2
    found = Rehearsal()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow, net = NICE((2,), 2, hidden_features=64), MLP(2, 2, hidden_features=(64, 64))
        teacher = Teacher(net, domain, "mlp")
        make = _published(1.0) if as_published else _in_nats(1.0, 0.07, steps)
        _train_flow(flow, teacher, (x, y), steps, generator, make, found)
    return found.seconds


def energy_distance(a: Tensor, b: Tensor) -> float:
    r"""How far two sets of points are apart as distributions; 0 on average if they are the same.

    .. math:: 2\,\mathbb{E}\|A - B\| - \mathbb{E}\|A - A'\| - \mathbb{E}\|B - B'\|

    estimated without bias, so that it may come out slightly negative.

    Arguments:
        a: Points with shape `(N, D)`, N at least 2.
        b: Points with shape `(M, D)`, M at least 2.

    References:
        | Energy statistics: A class of statistics based on distances (Szekely and Rizzo, 2013)

    Example:
        >>> energy_distance(torch.zeros(3, 2), torch.ones(4, 2))  # twice the square root of 2
        2.828...
    """
    a, b = a.double(), b.double()
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(2 * torch.cdist(a, b).mean() - within[0] - within[1])


def _choose(data: LabelledData, classes: int, n: int) -> tuple[Tensor, Tensor]:
    """The first `n` points of each class."""
    rows = [torch.nonzero(data.labels == k).flatten()[:n] for k in range(classes)]
    if n < 1 or min(map(len, rows)) < n:
        raise ValueError(
            f"Expected at least 1 sample of each class, and no more than there are; got {n} "
            f"for {len(data)} points of {classes} classes."
        )
    index = torch.cat(rows)
    return data.inputs[index], data.labels[index]


def _train_teacher(data: LabelledData, classes: int, generator: torch.Generator) -> Teacher:
    domain = Domain((2,), classes, name=data.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31 - 1, (), generator=generator)))
        net = MLP(2, classes, hidden_features=(64, 64))  # two hidden layers, as in the paper
    train_classifier(net, data, domain, 40, 100, learning_rate=1e-2, generator=generator)
    return Teacher(net, domain, "mlp")


def _in_nats(gamma: float, noise: float, steps: int) -> Callable[[int], Objective]:
    """This package's objective at each step; without samples for a gamma of 0."""

    def at(step: int) -> Objective:
        exact = Exact(sharpness=min(1.0, 0.05 + 2 * step / steps))
        return Bidirectional(exact, gamma, ReverseLikelihood(noise=noise)) if gamma else exact

    return at


def _published(gamma: float) -> Callable[[int], Objective]:
    """The toy code's objective, divided by the ten that it gives CLS."""
    prior = GaussianPrior(2**0.5)  # whose log-density falls by 0.25 |x|^2
    distill = Distill(alpha=0.1, prior=prior, prior_weight=0.1)
    objective = Bidirectional(distill, gamma / 10) if gamma else distill
    return lambda step: objective


def _train_flow(
    flow: ConditionalFlow,
    teacher: Teacher,
    samples: tuple[Tensor, Tensor],
    steps: int,
    generator: torch.Generator,
    objective_at: Callable[[int], Objective],
    checkpoints: Checkpoints | None = None,
) -> None:
    optimizer = torch.optim.Adam(flow.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parts: dict[str, Stateful] = {"flow": flow, "optimizer": optimizer, "schedule": schedule}
    x, y = (value.repeat(-(-128 // len(value)), *(1,) * (value.ndim - 1)) for value in samples)
    loop = TrainingLoop("toy", steps, parts, generator, optimizer, checkpoints)
    for step in loop:
        objective = objective_at(step)
        c = torch.randint(flow.classes, (256,), generator=generator)
        z = flow.sample_base(c, generator=generator)
        terms = objective(flow, teacher, Batch(z, c, x, y, generator))
        if not loop.accept(terms.total, terms.items()):
            continue
        optimizer.zero_grad()
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _sample(flow: ConditionalFlow, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    c = torch.arange(n) % flow.classes
    return flow.sample(c, generator=generator), c


@torch.no_grad()
def _measure(
    flow: ConditionalFlow, teacher: Teacher, made: tuple[Tensor, Tensor], test: LabelledData
) -> dict[str, float]:
    x, c = made
    distances = [
        energy_distance(x[c == k], test.inputs[test.labels == k]) for k in range(flow.classes)
    ]
    z, _ = flow.encode(x, c)
    return {
        "energy_distance": sum(distances) / len(distances),
        "right_side": share_equal(teacher(x).argmax(1), c),
        "divergence_nats": Exact()(flow, teacher, Batch(z, c)).total.item(),
    }


def plot(result: Figure2) -> Figure:
    """Plots three panels: true data, data-free flow, flow with samples.

    Behind each are the teacher's regions and boundary. Lines enclose the densest 50 and 90 percent
    of each class of a flow; crosses are the real samples it saw.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.9), layout="constrained")
    numbers = result.numbers
    published = ", as published" if numbers["as_published"] else ""
    shown = {f"{numbers['data']}: true data": (result.data.inputs, result.data.labels)}
    few = f"{numbers['samples_per_class']} samples a class"
    for panel, title in (("data_free", "data-free"), ("with_samples", few)):
        distance, side = (numbers[panel][key] for key in ("energy_distance", "right_side"))
        title += f"{published}\nenergy distance {distance:.3f}, right side {side:.0%}"
        shown[title] = result.sampled[panel]
    everything = torch.cat([x for x, _ in shown.values()])
    limit = 1.1 * everything.abs().max(1).values.quantile(0.995).item()
    axes = figure.subplots(1, 3)
    for index, (ax, (title, (x, y))) in enumerate(zip(axes, shown.items(), strict=True)):
        _plot_teacher(ax, result.teacher, limit)
        ax.scatter(*x.T, c=[COLORS[k % len(COLORS)] for k in y], s=3, linewidths=0, alpha=0.6)
        if index:
            _plot_density(ax, list(result.flows.values())[index - 1], result.sampled, index, limit)
        ax.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes[2].scatter(*result.samples[0].T, c="black", marker="x", s=28, linewidths=1.2, zorder=3)
    return figure


def _grid(limit: float) -> tuple[Tensor, Tensor, Tensor]:
    steps = torch.linspace(-limit, limit, 160)
    first, second = torch.meshgrid(steps, steps, indexing="xy")
    return first, second, torch.stack([first, second], -1).reshape(-1, 2)


@torch.no_grad()
def _plot_teacher(ax: Axes, teacher: Teacher, limit: float) -> None:
    first, second, points = _grid(limit)
    seen = teacher(points).argmax(1).reshape(first.shape)
    levels = [k - 0.5 for k in range(teacher.domain.classes + 1)]
    colors = [COLORS[k % len(COLORS)] for k in range(teacher.domain.classes)]
    ax.contourf(first, second, seen, levels=levels, colors=colors, alpha=0.13)
    ax.contour(first, second, seen, levels=levels[1:-1], colors="black", linewidths=0.8)


@torch.no_grad()
def _plot_density(
    ax: Axes,
    flow: ConditionalFlow,
    sampled: dict[str, tuple[Tensor, Tensor]],
    index: int,
    limit: float,
) -> None:
    first, second, points = _grid(limit)
    x, c = list(sampled.values())[index - 1]
    for k in range(flow.classes):
        own = x[c == k]
        levels = flow.log_prob(own, torch.full((len(own),), k)).quantile(torch.tensor([0.1, 0.5]))
        density = flow.log_prob(points, torch.full((len(points),), k)).reshape(first.shape)
        ax.contour(
            first,
            second,
            density,
            levels=sorted(set(levels.tolist())),
            colors=COLORS[k % len(COLORS)],
            linewidths=1.2,
            linestyles="solid",  # else dashed where the log-density is negative
        )
