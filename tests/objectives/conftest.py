"""Flows, teachers and batches small enough to be checked by hand, in float64."""

import pytest
import torch
from tiny_flows import IMAGE, Sigmoid, TinyFlow, make_teacher

from freia_kd.objectives import Batch


@pytest.fixture(params=["vector", "image"])
def flow(request):
    if request.param == "vector":
        return TinyFlow((2,)).double()
    return TinyFlow(IMAGE, squash=Sigmoid()).double()


@pytest.fixture
def teacher(flow):
    return make_teacher(flow.shape)


@pytest.fixture
def plain_teacher(flow):
    return make_teacher(flow.shape, normalized=False)


@pytest.fixture
def batch(flow):
    generator = torch.Generator().manual_seed(2)
    options = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(4, *flow.shape, **options)
    if len(flow.shape) == 3:
        x = torch.rand(4, *flow.shape, **options).mul(255).round() / 255
    return Batch(
        z=torch.randn(6, *flow.shape, **options),
        c=torch.tensor([0, 1, 2, 2, 1, 0]),
        x=x,
        y=torch.tensor([0, 1, 2, 1]),
        generator=generator,
    )
