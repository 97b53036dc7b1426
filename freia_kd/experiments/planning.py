"""What teachers take that an experiment trains first, and what stands in their place till then."""

from __future__ import annotations

import torch

from ..data.datasets import LabelledData
from ..domain import Domain
from ..job.planning import PlannedStage
from ..teachers import Teacher, build_net, train_new
from ..training import Rehearsal


def plan_teachers(
    stage: str,
    count: int,
    arch: str,
    train: LabelledData,
    domain: Domain,
    epochs: int,
    device: str = "cpu",
) -> PlannedStage:
    """The training of some teachers, of which one takes a few real steps.

    Arguments:
        stage: What it is called.
        count: How many there are to be.
        arch: Their architecture.
        train: What they learn from.
        domain: Its domain.
        epochs: How often they see it.
        device: Where to compute.
    """
    found = Rehearsal()
    with torch.random.fork_rng():
        train_new(arch, train, domain, epochs, device=device, checkpoints=found)
    return PlannedStage(stage, count, count * found.seconds if found.steps else None)


def stand_in(arch: str, domain: Domain) -> Teacher:
    """An untrained net in place of a teacher, which takes as much time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Teacher(build_net(arch, domain), domain, arch)
