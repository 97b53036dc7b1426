"""Small classifiers with batch normalisation whose statistics are not those of a new layer."""

import torch
from torch import nn

from freia_kd.domain import Domain
from freia_kd.teachers import Classifier, Teacher

DOMAIN = Domain((2, 8, 7), 3, (0.4, 0.5), (0.2, 0.3), "tiny")


def make_net(seed=0, channels=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),  # other sizes of images do not go through
            nn.Linear(6 * 3 * 3, 3),
        )
        for layer in (net[1], net[4]):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.3, 2)
            layer.weight.data.uniform_(0.5, 1.5)
        net[7].weight.data *= 12
    return net


def make_teacher(seed=0):
    return Teacher(make_net(seed), DOMAIN, "tiny")


def make_student(seed=1):
    return Classifier(make_net(seed), DOMAIN, "tiny")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(n=6, seed=3):
    """Normalised images and labels."""
    return torch.randn(n, *DOMAIN.shape, generator=generator(seed)), torch.arange(n) % 3


def features(net, x):
    """What the two layers of batch normalisation see, as numpy arrays `(C, N)`."""
    with torch.no_grad():
        first = net[0](x)
        second = net[3](net[2](net[1](first)))
    return [h.transpose(0, 1).flatten(1).double().numpy() for h in (first, second)]
