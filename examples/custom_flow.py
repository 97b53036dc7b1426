"""A flow that is written in Python and found by its path, or by a name of its own.

    python examples/custom_flow.py
    PYTHONPATH=examples freiakd distill --teacher lenet5.pt --flow custom_flow:make_flow

A package of yours can give it a name, `--flow shear`, by one line in its pyproject.toml:

    [project.entry-points."freia_kd.flows"]
    shear = "custom_flow:make_flow"
"""

import math

import torch
from torch import Tensor, nn

from freia_kd.domain import Domain
from freia_kd.flows import Base, ConditionalFlow, GaussianBase, build_flow
from freia_kd.flows.squash import BoundedLogit


class ClassShear(ConditionalFlow):
    """u_2 = z_2 exp(s_c) + W_c tanh(z_1): any bijection will do, FrEIA's or not."""

    def __init__(self, domain: Domain, base: Base) -> None:
        squash = BoundedLogit([domain.shape]) if domain.is_image else None
        super().__init__(domain.shape, domain.classes, base, squash)
        self.half = math.prod(domain.shape) // 2
        rest = math.prod(domain.shape) - self.half
        self.weight = nn.Parameter(torch.zeros(domain.classes, self.half, rest))
        self.log_scale = nn.Parameter(torch.zeros(domain.classes, rest))

    def parts(self, value: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, last = value.flatten(1).tensor_split([self.half], dim=1)
        labels = self.soft(c, value.dtype)
        shift = torch.einsum("bk,kij,bi->bj", labels, self.weight, torch.tanh(first))
        return first, last, shift, labels @ self.log_scale

    def decode_unbounded(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        first, last, shift, log_scale = self.parts(z, c)
        last = last * log_scale.exp() + shift
        return torch.cat([first, last], 1).reshape(z.shape), log_scale.sum(1)

    def encode_unbounded(self, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        first, last, shift, log_scale = self.parts(u, c)
        last = (last - shift) * (-log_scale).exp()
        return torch.cat([first, last], 1).reshape(u.shape), -log_scale.sum(1)


def make_flow(domain: Domain, base: Base | None = None) -> ConditionalFlow:
    """What `--flow custom_flow:make_flow` calls."""
    return ClassShear(domain, GaussianBase(domain.shape) if base is None else base)


def main() -> None:
    flow = build_flow(f"{__name__}:make_flow", Domain((2,), classes=3))
    c = torch.tensor([0, 1, 2])
    x = flow.sample(c, generator=torch.Generator().manual_seed(0))
    print(f"{type(flow).__name__}: log_prob of three samples {flow.log_prob(x, c).tolist()}")


if __name__ == "__main__":
    main()
