"""Targets are met, by the layers that lose least, from agreement on the given inputs alone."""

import copy
import itertools
import json
import statistics
import time

import pytest
import torch
from torch import nn

from freia_kd.compression.cost import Speed, count_macs, count_parameters, time_rounds
from freia_kd.compression.method import showing
from freia_kd.compression.tucker import search, sensitivity
from freia_kd.compression.tucker.plan import LayerPlan, Plan, apply_plan, make_plan
from freia_kd.compression.tucker.search import search_plan
from freia_kd.compression.tucker.sensitivity import (
    Judge,
    LowRank,
    measure_sensitivity,
)
from freia_kd.runtimes import in_runtime
from freia_kd.training import Progress


class Net(nn.Module):
    """A small net whose layers have planted ranks, so that some bear compression better."""

    def __init__(self, ranks=(2, 12, 3)):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(96, 40)
        self.out = nn.Linear(40, 10)
        for layer, rank in zip((self.body[0], self.body[2], self.head), ranks, strict=True):
            weight = layer.weight.detach().flatten(1)
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            s[rank:] *= 0.02
            layer.weight.data = 3 * (u * s @ vh).reshape(layer.weight.shape)
        self.out.weight.data *= 5  # logits that differ from input to input
        for layer in (self.body[0], self.body[2], self.head, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.out(torch.relu(self.head(self.body(x))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    coarse = 3 * torch.randn(200, 3, 2, 2, generator=generator).repeat_interleave(4, -1)
    return coarse.repeat_interleave(4, -2) + torch.randn(200, 3, 8, 8, generator=generator)


def agreement(net, small, inputs):
    with torch.no_grad():
        return (net(inputs).argmax(1) == small(inputs).argmax(1)).float().mean().item()


@pytest.mark.parametrize(
    ("target", "count"),
    [("params", count_parameters), ("macs", lambda net: count_macs(net, (3, 8, 8)))],
)
@pytest.mark.parametrize("goal", [0.8, 0.5, 0.3])
def test_cost_targets_are_met_and_nearly_used_up(net, inputs, target, count, goal):
    found = search_plan(net, inputs, target, goal)
    small = apply_plan(net, found.plan)
    assert found.reached == pytest.approx(count(small) / count(net))
    assert goal - 0.06 < found.reached <= goal
    assert torch.equal(found.net(inputs), small(inputs))
    assert found.agreement == pytest.approx(agreement(net, small, inputs))
    json.dumps(found.to_dict())


def test_the_search_disturbs_less_than_one_ratio_for_all(net, inputs):
    found = search_plan(net, inputs, "params", 0.45)
    judge = Judge(net, inputs)
    small = apply_plan(net, found.plan)
    for ratio in (0.3, 0.4, 0.5, 0.6):
        uniform = apply_plan(net, make_plan(net, ranks=ratio))
        if count_parameters(uniform) >= count_parameters(small):
            assert judge.judge(small)[1] < 0.5 * judge.judge(uniform)[1]
            break
    else:
        raise AssertionError("no uniform plan of that size")


@pytest.mark.parametrize("goal", [2.0, 5.0, 20.0])
def test_a_bound_on_the_drop_is_kept(net, inputs, goal):
    found = search_plan(net, inputs, "drop", goal)
    small = apply_plan(net, found.plan)
    assert 100 * (1 - agreement(net, small, inputs)) <= goal + 1e-4
    assert found.reached == pytest.approx(100 * (1 - found.agreement), abs=1e-9)
    assert count_parameters(small) < count_parameters(net)


def test_the_planted_ranks_are_found(net, inputs):
    found = search_plan(net, inputs, "drop", 20.0)
    ranks = {name: plan.ranks for name, plan in found.plan.layers.items()}
    assert ranks == {"body.0": (3, 2), "body.2": (16, 14), "head": (3,)}  # 2, 12 and 3 planted


def test_a_larger_drop_buys_a_smaller_net(net, inputs):
    sizes = [
        count_parameters(apply_plan(net, search_plan(net, inputs, "drop", goal).plan))
        for goal in (2.0, 40.0)
    ]
    assert sizes[1] < 0.7 * sizes[0]


def latency_as_macs(monkeypatch, overhead):
    """Replaces the clock: milliseconds are multiply-accumulates plus a cost of every layer."""

    def measure(nets, shapes, batch, seconds, clock):
        times = [
            count_macs(net, shape) / 1e4
            + overhead * sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules())
            for net, shape in zip(nets, shapes, strict=True)
        ]
        return [[t] * 11 for t in times]

    monkeypatch.setattr(search, "time_rounds", measure)
    monkeypatch.setattr(sensitivity, "time_rounds", measure)


SLOWER = "no lower rank of it was measured to be faster"


def test_latency_target_compresses_only_what_becomes_faster(net, inputs, monkeypatch):
    latency_as_macs(monkeypatch, overhead=3.0)
    found = search_plan(net, inputs, "latency", 0.7)
    assert found.reached <= 0.7
    assert set(found.plan.layers) == {"body.2"}  # the others' new layers cost them more
    assert found.plan.skipped == dict.fromkeys(("body.0", "head", "out"), SLOWER)


def test_a_layer_that_is_not_surely_faster_stays_as_it_is(net, inputs, monkeypatch):
    latency_as_macs(monkeypatch, overhead=0.0)
    measure = sensitivity.time_rounds

    def now_and_then_slower(nets, shapes, batch, seconds, clock):
        before, *afters = measure(nets, shapes, batch, seconds, clock)
        if isinstance(nets[0], nn.Linear):
            afters = [[*own[:6], *(9 * t for t in own[6:])] for own in afters]
        return [before, *afters]

    monkeypatch.setattr(sensitivity, "time_rounds", now_and_then_slower)
    found = search_plan(net, inputs, "latency", 0.8)
    assert found.plan.skipped["head"] == found.plan.skipped["out"] == SLOWER


def test_a_latency_that_a_longer_look_does_not_find_leads_to_a_faster_plan(
    net, inputs, monkeypatch
):
    latency_as_macs(monkeypatch, overhead=0.0)
    hoped = search_plan(net, inputs, "latency", 0.7)
    measure = search.time_rounds

    def slower_when_looked_at_longer(nets, shapes, batch, seconds, clock):
        before, after = measure(nets, shapes, batch, seconds, clock)
        return [before, [1.5 * t for t in after] if seconds >= search.CONFIRM else after]

    monkeypatch.setattr(search, "time_rounds", slower_when_looked_at_longer)
    found = search_plan(net, inputs, "latency", 0.7)
    assert found.reached <= 0.7
    assert found.plan.layers != hoped.plan.layers
    shape = inputs.shape[1:]
    assert count_macs(apply_plan(net, found.plan), shape) <= 0.7 / 1.5 * count_macs(net, shape)


def test_a_margin_is_given_up_before_a_target_is(net, inputs, monkeypatch):
    latency_as_macs(monkeypatch, overhead=0.0)
    with pytest.raises(ValueError, match="best found is") as error:
        search_plan(net, inputs, "latency", 0.01)
    best = float(str(error.value).split("found is ")[1].split("%")[0]) / 100
    measure = search.time_rounds

    def slower_when_looked_at_longer(nets, shapes, batch, seconds, clock):
        before, after = measure(nets, shapes, batch, seconds, clock)
        return [before, [1.05 * t for t in after] if seconds >= search.CONFIRM else after]

    monkeypatch.setattr(search, "time_rounds", slower_when_looked_at_longer)
    goal = 1.08 * best
    assert search.MARGIN * goal < search_plan(net, inputs, "latency", goal).reached <= goal


def test_a_latency_is_that_of_the_runtime_asked_for(net, inputs, monkeypatch):
    monkeypatch.setattr(search, "in_runtime", lambda runtime, nets, shape: wrapped(runtime, nets))
    monkeypatch.setattr(sensitivity, "in_runtime", search.in_runtime)

    def wrapped(runtime, nets):
        return [(runtime, net) for net in nets]

    def measure(nets, shapes, batch, seconds, clock):
        """Fewer weights are worth something for one kind of layers, more layers cost always."""
        dear = {"onnxruntime": nn.Linear, "torch": nn.Conv2d}
        times = []
        for runtime, net in nets:
            layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            cost = [m.weight.numel() if isinstance(m, dear[runtime]) else 100 for m in layers]
            times.append([float(sum(cost))] * 11)
        return times

    monkeypatch.setattr(search, "time_rounds", measure)
    monkeypatch.setattr(sensitivity, "time_rounds", measure)
    for runtime, moved in (("onnxruntime", {"head"}), ("torch", {"body.0", "body.2"})):
        found = search_plan(net, inputs, "latency", 0.8, runtime=runtime)
        assert found.runtime == runtime
        assert found.plan.layers.keys() <= moved
        assert found.reached <= 0.8 * search.MARGIN
        with pytest.raises(ValueError, match=f"of the latency in {runtime}: the best found is"):
            search_plan(net, inputs, "latency", 0.01, runtime=runtime)


@pytest.mark.slow
def test_a_latency_in_onnxruntime_is_reached_there():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512))
    found = search_plan(net, torch.randn(64, 512), "latency", 0.5, runtime="onnxruntime")
    assert found.reached <= 0.5
    forms = in_runtime("onnxruntime", [net, apply_plan(net, found.plan)], (512,))
    before, after = time_rounds(forms, [(512,)] * 2, 1, 0.3, time.thread_time)
    assert Speed.of(before, after).ratio > 1.5  # half the time, on a machine that is busy
    for plan in found.plan.layers.values():
        assert all(rank % 16 == 0 or rank in (4, 8) for rank in plan.ranks)


@pytest.mark.parametrize("size", [(40, 7), (7, 40)])
def test_a_matrix_at_a_lower_rank_is_its_truncated_svd(size):
    layer = nn.Linear(*size)
    low_rank = LowRank(layer)
    held = [u.numel() for u in (low_rank.u_out, low_rank.u_in) if u is not None]
    assert held == [7 * 7]  # a square of the larger side would be gigabytes of a VGG16
    u, s, vh = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    expected = u[:, :3] * s[:3] @ vh[:3]
    torch.testing.assert_close(low_rank.at(LayerPlan("svd", (3,))), expected)


def test_a_net_of_many_layers_takes_a_bounded_number_of_batches(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(70) for layer in (nn.Linear(24, 24), nn.ReLU())))
    inputs, shown = torch.randn(600, 24), []

    class Watched(Progress):
        def stage(self, title, total):
            shown.append((title, total))
            return super().stage(title, total)

    with showing(Watched()):
        found = search_plan(net, inputs, "macs", 0.5)
    assert found.reached <= 0.5
    assert found.batches <= 200
    tried = [row for row in found.sensitivity if not row.is_estimated]
    assert shown == [("try layers at lower ranks", len(tried))]
    assert 70 <= len(tried) <= sensitivity.MAX_BATCHES < len(found.sensitivity)
    assert {row.name for row in tried} == {row.name for row in found.sensitivity}


def test_what_is_told_from_other_ranks_is_near_what_is_measured(net, inputs, monkeypatch):
    judge = Judge(net, inputs)
    measured = {(r.name, r.plan): r for r in measure_sensitivity(judge)}
    monkeypatch.setattr(sensitivity, "MAX_BATCHES", 3 * len(judge.layers))
    told = [row for row in measure_sensitivity(judge) if row.is_estimated]
    assert len(told) >= 8
    apart = [row.divergence / measured[row.name, row.plan].divergence for row in told]
    assert 0.7 < statistics.median(apart) < 1.4
    assert all(0.1 < ratio < 10 for ratio in apart), apart  # spectra with a step are the worst


def test_a_large_net_is_shown_few_inputs(net, inputs, monkeypatch):
    monkeypatch.setattr(sensitivity, "JUDGED_MACS", 20 * count_macs(net, inputs.shape[1:]))
    judge = Judge(net, inputs)
    rows = measure_sensitivity(judge, shares=(0.5,))
    seen = judge.judge_layers({rows[0].name: rows[0].plan}, 20)
    assert (rows[0].agreement, rows[0].divergence) == seen
    assert seen != judge.judge_layers({rows[0].name: rows[0].plan})


def test_latency_target_that_cannot_be_met(net, inputs, monkeypatch):
    latency_as_macs(monkeypatch, overhead=3.0)
    with pytest.raises(ValueError, match=r"reach 10.0% of the latency in torch: the best"):
        search_plan(net, inputs, "latency", 0.1)
    latency_as_macs(monkeypatch, overhead=100.0)
    with pytest.raises(ValueError, match="no layer of the net gains"):
        search_plan(net, inputs, "latency", 0.9)


def test_targets_that_cannot_be_met_say_the_best(net, inputs):
    with pytest.raises(ValueError, match=r"Cannot reach 1.0% of the parameters.* is (.*)%,") as e:
        search_plan(net, inputs, "params", 0.01)
    best = float(str(e.value).split("found is ")[1].split("%")[0])
    assert 3 < best < 15
    assert search_plan(net, inputs, "params", best / 100 + 0.001).reached <= best / 100 + 0.001
    with pytest.raises(ValueError, match=r"within 0 percentage points: the mildest"):
        search_plan(nn.Sequential(Net((16, 16, 16)), Sawtooth()), inputs, "drop", 0.0)


class Sawtooth(nn.Module):
    """Makes the class hang on the last digits of the logits."""

    def forward(self, x):
        return torch.sin(1e5 * x)


def test_the_net_is_left_as_it_was(net, inputs):
    net.train()
    before = copy.deepcopy(net.state_dict())
    search_plan(net, inputs, "params", 0.5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training


def test_sensitivity_is_that_of_the_layer_alone(net, inputs):
    rows = measure_sensitivity(Judge(net, inputs), ["head", "body.2"], shares=(0.5, 0.1))
    assert [row.name for row in rows] == ["head", "head", "body.2", "body.2"]
    for row in rows:
        small = apply_plan(net, Plan({row.name: row.plan}))
        found = Judge(net, inputs).judge(small)
        if row.name == "head":  # Tucker-2's iteration ends elsewhere than its truncation
            assert (row.agreement, row.divergence) == pytest.approx(found, rel=1e-3)
        assert row.parameters == count_parameters(net) - count_parameters(small)
        assert row.macs == count_macs(net, (3, 8, 8)) - count_macs(small, (3, 8, 8))
        assert row.share <= 0.5
    assert rows[0].divergence < rows[1].divergence
    assert rows[2].divergence < rows[3].divergence


def test_judging_layers_puts_their_weights_back(net, inputs):
    judge = Judge(net, inputs)
    assert judge.judge_layers({"head": LayerPlan("svd", (1,))})[1] > 0.01
    assert judge.judge(judge.net) == (1.0, pytest.approx(0.0, abs=1e-12))


@pytest.mark.parametrize("layer", [nn.Linear(6, 9), nn.Linear(9, 6), nn.Conv2d(6, 9, 1)])
def test_truncated_matrices_are_the_best_ones(layer):
    low_rank = LowRank(layer)
    weight = low_rank.weight.flatten(1)
    assert [plan.ranks for plan in low_rank.descent()] == [(5,), (4,), (3,), (2,), (1,)]
    for plan in low_rank.descent():
        error = (low_rank.at(plan).flatten(1) - weight).norm()
        torch.testing.assert_close(error, torch.linalg.svdvals(weight)[plan.ranks[0] :].norm())


def test_the_descent_of_a_convolution_drops_what_carries_least():
    net = Net(ranks=(2, 4, 3))
    low_rank = LowRank(net.body[2])
    errors = [(low_rank.at(p) - low_rank.weight).norm().item() for p in low_rank.descent()]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(errors))
    # Only the outputs have a planted rank: they are dropped first, down to it.
    assert LayerPlan("tucker2", (16, 4)) in low_rank.descent()


def test_bad_inputs(net, inputs):
    with pytest.raises(ValueError, match=r"inputs with shape \(N, ...\); got \(0, 3, 8, 8\)"):
        search_plan(net, inputs[:0], "params", 0.5)
    with pytest.raises(ValueError, match="Net fails: Given groups=1"):
        search_plan(net, inputs[:, :2], "params", 0.5)
    with pytest.raises(ValueError, match="no layer of the net gains"):
        search_plan(nn.Linear(2, 2), torch.randn(4, 2), "params", 0.5)


@pytest.mark.parametrize("goal", [0.35, 0.5, 0.65])
def test_no_layer_could_have_a_higher_rank(net, inputs, goal):
    budget = search_plan(net, inputs, "params", goal)
    judge = Judge(net, inputs)
    before = count_parameters(net)
    for name, plan in budget.plan.layers.items():
        plans = judge.low_rank[name].descent()
        higher = plans[: plans.index(plan)] if plan in plans else []
        for other in higher:
            larger = apply_plan(net, Plan({**budget.plan.layers, name: other}))
            assert count_parameters(larger) > goal * before
