"""A flow and teachers small enough to be checked by hand, in float64."""

import torch
from torch import nn

from freia_kd.flows.bases import GaussianBase
from freia_kd.flows.contract import ConditionalFlow


class Sigmoid(nn.Module):
    """A squash with FrEIA's signature: forward is the logit, reverse the sigmoid."""

    def forward(self, x_or_z, c=None, rev=False, jac=True):
        (value,) = x_or_z
        u = value if rev else torch.logit(value)
        ladj = nn.functional.logsigmoid(u) + nn.functional.logsigmoid(-u)  # log dx/du
        ladj = ladj.flatten(1).sum(1)
        return ((torch.sigmoid(u),), ladj) if rev else ((u,), -ladj)


class TinyFlow(ConditionalFlow):
    """u = asinh(A (z exp(s_c) + t_c)): conditional, mixes all dimensions, changes volumes."""

    def __init__(self, shape=(2,), classes=3, squash=None, seed=0):
        super().__init__(shape, classes, GaussianBase(shape), squash)
        generator = torch.Generator().manual_seed(seed)
        dims = self.base.sample(1).numel()
        self.mix = nn.Parameter(
            torch.eye(dims) + 0.3 * torch.randn(dims, dims, generator=generator) / dims**0.5
        )
        self.scale = nn.Parameter(0.3 * torch.randn(classes, dims, generator=generator))
        self.shift = nn.Parameter(torch.randn(classes, dims, generator=generator))

    def decode_unbounded(self, z, c):
        soft = self.soft(c, z.dtype)
        scale = soft @ self.scale
        v = (z.flatten(1) * scale.exp() + soft @ self.shift) @ self.mix.T
        u = torch.asinh(v)
        ladj = scale.sum(1) + torch.linalg.slogdet(self.mix)[1] - 0.5 * (1 + v**2).log().sum(1)
        return u.reshape(z.shape), ladj

    def encode_unbounded(self, u, c):
        soft = self.soft(c, u.dtype)
        scale = soft @ self.scale
        v = torch.sinh(u.flatten(1))
        z = ((v @ torch.linalg.inv(self.mix).T) - soft @ self.shift) * (-scale).exp()
        ladj = scale.sum(1) + torch.linalg.slogdet(self.mix)[1] - 0.5 * (1 + v**2).log().sum(1)
        return z.reshape(u.shape), -ladj


IMAGE = (1, 3, 4)


def make_teacher(shape, classes=3, normalized=True, seed=1):
    """A frozen classifier in eval mode, with two normalisation layers or none."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if len(shape) == 3:
            layers = [nn.Conv2d(shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
            layers += [nn.Flatten(), nn.Linear(4 * shape[1] * shape[2], 5), nn.BatchNorm1d(5)]
            layers += [nn.Tanh(), nn.Linear(5, classes)]
        else:
            layers = [nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.Tanh()]
            layers += [nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, classes)]
        if not normalized:
            layers = [layer for layer in layers if not hasattr(layer, "running_mean")]
        teacher = nn.Sequential(*layers).double().eval().requires_grad_(False)
        for layer in teacher:
            if hasattr(layer, "running_mean"):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    return teacher
