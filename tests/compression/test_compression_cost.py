"""Costs against hand-computed numbers."""

import copy
import io
import json
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from freia_kd.compression import comparison
from freia_kd.compression.comparison import Costs, LayerCosts, compare_costs
from freia_kd.compression.cost import (
    MIN_ROUNDS,
    Latency,
    Speed,
    count_macs,
    count_parameters,
    file_bytes,
    measure_latencies,
    peak_bytes,
    time_rounds,
    trace_layers,
    undisturbed_clock,
)
from freia_kd.compression.tucker.plan import LayerPlan, Plan, apply_plan
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
    measure_latencies([net], (3, 32, 32), seconds=0.0)
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
    """Takes some milliseconds, and as long wherever its weights lie.

    Seen to fail: a copy of a net that multiplied was faster than it by a tenth, in 621 rounds.
    """

    def __init__(self, milliseconds):
        super().__init__()
        self.milliseconds, self.layer = milliseconds, nn.Linear(256, 256)

    def forward(self, x):
        time.sleep(self.milliseconds / 1e3)
        return self.layer(x)


def test_latency_orders_nets_and_has_a_spread():
    fast, slow = measure_latencies([Slow(1), Slow(20)], (256,), batch=8, seconds=0.1)
    assert slow.median > 5 * fast.median
    for latency in (fast, slow):
        assert 0 < latency.low <= latency.median <= latency.high
        assert latency.batch == 8
        assert latency.repeats >= 5
    assert set(asdict(fast)) == {"median", "low", "high", "batch", "repeats"}


def time_one(net, shape):
    return measure_latencies([net], shape)


@pytest.mark.parametrize("measure", [count_macs, time_one])
def test_a_shape_that_the_net_rejects(measure):
    with pytest.raises(ValueError, match=r"inputs with shape \(1, 3, 8, 8\); LeNet5 fails"):
        measure(LeNet5(), (3, 8, 8))


def test_peak_bytes_by_hand():
    relu = nn.Sequential(*[nn.ReLU() for _ in range(5)])  # each frees the one before the last
    assert peak_bytes(relu, (100,), batch=3) == 3 * 1200
    inplace = nn.Sequential(*[nn.ReLU(inplace=True) for _ in range(5)], nn.Flatten())
    assert peak_bytes(inplace, (100,), batch=3) == 1200
    net = nn.Sequential(nn.Linear(100, 10, bias=False), nn.Linear(10, 100, bias=False))
    assert peak_bytes(net, (100,)) == 4 * (2000 + 100 + 10 + 100)


def test_a_shared_layer_traces_every_call():
    layer = nn.Conv2d(2, 2, 3)
    uses = trace_layers(nn.Sequential(layer, layer), (2, 8, 8))
    assert uses["0"].positions == ((64, 36), (36, 16))
    assert uses["0"].macs == (36 + 16) * 36 == count_macs(nn.Sequential(layer, layer), (2, 8, 8))


@pytest.mark.parametrize("net", [LeNet5(), ResNet14(1)])
def test_traced_layers_add_up_to_the_net(net):
    assert sum(use.macs for use in trace_layers(net, (1, 32, 32)).values()) == count_macs(
        net, (1, 32, 32)
    )


def test_comparison_of_a_student():
    net = LeNet5()
    plan = Plan({"conv2": LayerPlan("tucker2", (3, 4)), "fc1": LayerPlan("svd", (10,))})
    small = apply_plan(net, plan)
    (compared,) = compare_costs(net, [small], (1, 32, 32), batches=(1, 4), seconds=0.02)
    assert compared.after.parameters == count_parameters(small)
    assert compared.after.macs == count_macs(small, (1, 32, 32))
    assert set(compared.before.latency) == set(compared.after.peak_bytes) == {1, 4}
    conv2, fc1 = compared.layers
    assert (conv2.name, conv2.ranks, fc1.name, fc1.ranks) == ("conv2", (3, 4), "fc1", (10,))
    saved = sum(row.macs[0] - row.macs[1] for row in compared.layers)
    assert compared.before.macs - compared.after.macs == saved
    saved = sum(row.parameters[0] - row.parameters[1] for row in compared.layers)
    assert compared.before.parameters - compared.after.parameters == saved
    json.dumps(compared.to_dict())


def test_students_share_the_teacher_that_they_are_compared_with():
    net = LeNet5()
    plans = [Plan({"conv2": LayerPlan("tucker2", (k, 4))}) for k in (2, 3)]
    both = compare_costs(net, [apply_plan(net, plan) for plan in plans], (1, 32, 32), (1,), 0.01)
    first, second = both
    assert first.before == second.before
    assert first.layers[0].latency[0] == second.layers[0].latency[0]
    assert first.after != second.after
    assert (first.layers[0].ranks, second.layers[0].ranks) == ((2, 4), (3, 4))
    assert first.speed[1].rounds == first.before.latency[1].repeats >= MIN_ROUNDS


def test_a_net_is_not_faster_than_itself():
    net, slow = Slow(2), Slow(20)
    itself, other = compare_costs(net, [copy.deepcopy(net), slow], (256,), (8,), seconds=0.3)
    assert itself.speed[8].low <= 1.05
    assert itself.speed[8].high >= 0.95
    assert other.speed[8].is_measurable
    assert other.speed[8].high < 0.5


def test_the_interval_of_a_speed_covers_its_median_as_often_as_it_says():
    generator, covered, trials = np.random.default_rng(0), 0, 1_000
    for _ in range(trials):
        noise = generator.lognormal(0, 0.3, (2, 25))
        speed = Speed.of(3.0 * noise[0], noise[1])
        covered += speed.low <= 3.0 <= speed.high
    assert 0.95 <= covered / trials < 0.99
    drift = generator.lognormal(0, 2, 25)  # which both feel alike
    assert Speed.of(3.0 * drift, drift) == Speed(pytest.approx(3), *[pytest.approx(3)] * 2, 25)


def test_rounds_in_which_the_clock_stood_still_do_not_count():
    still = Speed.of([2.0] * 20 + [0.0, 2.0, 0.0], [1.0] * 20 + [0.5, 0.0, 0.0])
    assert still == Speed.of([2.0] * 20, [1.0] * 20)
    none = Speed.of([2.0] * 20, [0.0] * 20)
    assert (none.rounds, none.is_measurable) == (0, False)


def costs(macs):
    return Costs(1, macs, 1, {1: 1}, {1: Latency(1.0, 0.9, 1.1, 1, 50)})


def test_an_interval_that_says_nothing_is_no_measurement():
    assert Speed(473, 1.1, 2475, 11).is_measurable is False
    assert Speed(3, 1.6, 6, 11).is_measurable is True


EQUAL, FASTER, SLOWER = (Speed(r, r - 0.1, r + 0.1, 50) for r in (1.02, 1.5, 0.7))


@pytest.mark.parametrize(
    ("macs", "speed", "message"),
    [
        (40, SLOWER, "40% of the multiply-accumulates but is slower here at batch 1: 0.60 to 0.80"),
        (40, EQUAL, "shows no measurable gain in speed here at batch 1: 0.92 to 1.12 times"),
        (40, FASTER, None),
        (130, FASTER, "130% of the teacher's multiply-accumulates: more"),
    ],
)
def test_warnings_in_plain_words(macs, speed, message):
    found = comparison._warnings(costs(100), costs(macs), {1: speed}, [])
    assert [message in w for w in found] == ([True] if message else [])


def test_a_cause_is_named_where_a_measurement_shows_it():
    times = Latency(1.0, 0.9, 1.1, 1, 5), Latency(2.0, 1.9, 2.1, 1, 5)
    row = LayerCosts("conv1", (1, 1), "low rank", (9, 3), (9, 3), times, SLOWER)
    (warning,) = comparison._warnings(costs(9), costs(9), {}, [row])
    assert "conv1 (1.000 to 2.000 ms)" in warning
    for same in (EQUAL, FASTER):
        assert not comparison._warnings(costs(9), costs(9), {}, [replace(row, speed=same)])


def test_what_other_processes_take_is_no_part_of_a_latency():
    class Waiting(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    clock = undisturbed_clock("torch", torch.device("cpu"))  # the tests have one thread
    waited, told = (
        time_rounds([Waiting()], [(2,)], 1, 0.0, c)[0] for c in (time.perf_counter, clock)
    )
    assert min(waited) >= 20
    assert max(told) < 10
    assert undisturbed_clock("torch", torch.device("cuda")) is time.perf_counter
    assert undisturbed_clock("onnxruntime", torch.device("cuda")) is time.thread_time


@pytest.mark.parametrize(
    ("low", "high", "measurable"),
    [(1.06, 1.2, True), (1.04, 1.2, False), (0.98, 1.2, False), (0.8, 0.95, True),
     (0.8, 0.96, False), (0.8, 1.0, False), (1.1, 5, False)],
)  # fmt: skip
def test_a_gain_is_measurable_where_the_whole_interval_says_so(low, high, measurable):
    for middle in (low, high):  # wherever the median lies
        assert Speed(middle, low, high, 99).is_measurable is measurable
