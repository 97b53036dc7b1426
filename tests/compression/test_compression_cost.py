"""Costs against hand-computed numbers."""

import io

import pytest
import torch
from torch import nn

from freia_kd.compression.cost import (
    count_macs,
    count_parameters,
    file_bytes,
    measure_latencies,
    measure_latency,
)
from freia_kd.compression.plans import LayerPlan, Plan
from freia_kd.compression.surgery import apply_plan
from freia_kd.teachers.lenet5 import LeNet5
from freia_kd.teachers.resnet14 import ResNet14

LENET_MACS = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 120 * 16 * 25 + 84 * 120 + 10 * 84


def test_lenet5_by_hand():
    net = LeNet5().requires_grad_(False)  # as a teacher is
    assert count_parameters(net) == 156 + 2416 + 48120 + 10164 + 850
    assert count_macs(net, (1, 32, 32)) == LENET_MACS
    small = apply_plan(net, Plan({"conv2": LayerPlan("tucker2", (3, 4))}))
    change = 14 * 14 * 6 * 3 + 100 * (3 * 4 * 25 + 4 * 16) - 100 * 16 * 6 * 25
    assert count_macs(small, (1, 32, 32)) == LENET_MACS + change
    assert count_parameters(small) == count_parameters(net) + 18 + 300 + 64 - 2400


@pytest.mark.parametrize(
    ("net", "shape", "macs"),
    [
        (nn.Conv2d(8, 8, 3, groups=8, stride=2, padding=1), (8, 8, 8), 16 * 8 * 9),
        (nn.Conv2d(8, 4, 3, groups=2, dilation=2), (8, 8, 8), 16 * 4 * 4 * 9),
        (nn.Conv1d(4, 6, 5), (4, 9), 5 * 4 * 6 * 5),
        (nn.Linear(7, 3, bias=False), (7,), 21),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), (3, 2, 2), 0),
    ],
)
def test_layers_by_hand(net, shape, macs):
    assert count_macs(net, shape) == macs


def test_counting_leaves_the_net_as_it_was():
    net = ResNet14().train()
    net.layers1.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    count_macs(net, (3, 32, 32))
    measure_latency(net, (3, 32, 32), seconds=0.0)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_shared_parameters_count_once_and_their_work_twice():
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, layer)
    assert count_parameters(net) == 20
    assert count_macs(net, (4,)) == 32


def test_file_bytes_is_the_size_of_the_file():
    net = nn.Linear(100, 10)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    assert file_bytes(net) == len(buffer.getvalue())


class Slow(nn.Module):
    """Does the same product several times."""

    def __init__(self, times):
        super().__init__()
        self.times, self.layer = times, nn.Linear(256, 256)

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x)
        return x


def test_latency_orders_nets_and_has_a_spread():
    fast, slow = measure_latencies([Slow(1), Slow(40)], (256,), batch=8, seconds=0.1)
    assert slow.median > 5 * fast.median
    for latency in (fast, slow):
        assert 0 < latency.low <= latency.median <= latency.high
        assert latency.batch == 8
        assert latency.repeats >= 5
    assert set(fast.to_dict()) == {"median", "low", "high", "batch", "repeats"}


@pytest.mark.parametrize("measure", [count_macs, measure_latency])
def test_a_shape_that_the_net_rejects(measure):
    with pytest.raises(ValueError, match=r"inputs with shape \(1, 3, 8, 8\); LeNet5 fails"):
        measure(LeNet5(), (3, 8, 8))
