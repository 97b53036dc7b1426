"""Teachers in miniature, and what the tests of the job share."""

import torch
from torch import nn

from freia_kd.config import DistillationOptions, Preset
from freia_kd.data.datasets import LabelledData
from freia_kd.domain import Domain
from freia_kd.teachers import Teacher, build_net

SMALL = Domain((1, 8, 8), 4, (0.3,), (0.3,), "small")
TINY = Preset("quick", 48, 24, DistillationOptions(steps=4, batch_size=16))
NOISE = {"synthesizer": "spectral", "preset": TINY, "device": "cpu"}


def make_teacher(seed=0):
    """One of an architecture without a name, which lives in memory alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
            nn.Linear(32, 4),
        )
        net[-1].weight.data *= 20
        with torch.no_grad():  # so that it does not say the same to all noise
            net[-1].bias -= net(torch.rand(64, *SMALL.shape)).mean(0)
        return Teacher(net, SMALL, "nameless")


def make_resnet(side=8):
    """A teacher with batch normalisation whose statistics are not those of a new layer."""
    domain = Domain((3, side, side), 4, (0.4,), (0.2,), "colour")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_net("resnet14", domain)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
        return Teacher(net, domain, "resnet14")


def make_data(domain=SMALL, count=40, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (count, *domain.shape), generator=generator, dtype=torch.uint8)
    return LabelledData(x, torch.arange(count) % domain.classes, "real")


def students_in(folder):
    """The bytes of all students of a run, by the names of their files."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("student-*"))}
