"""Tucker: what a student is to be, and what is refused before any work."""

import copy
import json
from functools import partial

import pytest
import torch
from torch import nn

from freia_kd.compression import (
    Prune,
    Tucker,
    count_macs,
    count_parameters,
    parse_ranks,
    student_plan,
)
from freia_kd.compression.tucker import search, sensitivity
from freia_kd.compression.tucker.search import expect_reachable, search_plan
from freia_kd.errors import ConfigError, UsageError
from freia_kd.teachers.lenet5 import LeNet5

SHAPE = (1, 32, 32)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return LeNet5().eval()


METHODS = {
    "1": Tucker(student="1"),
    "custom": Tucker(layers={"conv*": 0.25, "conv1": "keep", "fc1": 8, "conv3": (5, 8)}),
    "macs-0.5": Tucker(target="macs", goal=0.5),
    "drop-1": Tucker(target="drop", goal=1.0),
    "params-0.3": Tucker(target="params", goal=0.3),
}


@pytest.mark.parametrize("label", list(METHODS))
def test_methods_have_labels_and_are_json(label):
    method = METHODS[label]
    assert method.label == label
    again = Tucker.from_dict(json.loads(json.dumps(method.to_dict())))
    assert again.to_dict() == method.to_dict()
    assert again.label == label


WRONG = {
    "nothing": ({}, "one of a paper's student, layers and a target; got none"),
    "both": ({"student": "1", "layers": {"all": 8}}, "got student and layers"),
    "goal alone": ({"student": "1", "goal": 0.5}, "target together with its goal"),
    "target alone": ({"target": "macs"}, "target together with its goal"),
    "share": ({"target": "macs", "goal": 1.5}, "share between 0 and 1 of the net's macs; got 1.5"),
    "no share": ({"target": "params", "goal": 0.0}, "between 0 and 1 of the net's params; got 0"),
    "latency": ({"target": "latency", "goal": 1.0}, "between 0 and 1 of the net's latency"),
    "drop": ({"target": "drop", "goal": -1.0}, "0 to 100 percentage points; got -1"),
    "infinite": ({"target": "drop", "goal": float("inf")}, "finite number; got inf"),
    "target": ({"target": "beauty", "goal": 0.5}, "'params', 'macs', 'latency' or 'drop'; got 'b"),
    "student": ({"student": "7"}, "expected '1', '2', '3', 'kegnet-1'"),
    "ranks": ({"layers": {"a": 1.5, "b": "evbmf", "c": [0, 3]}}, "for 'a'; got 1.5.*'c'; got .0,"),
    "no patterns": ({"layers": [8]}, "tucker.layers"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_contradictions_are_refused(case):
    fields, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        Tucker(**fields)


def test_unknown_fields_are_refused():
    with pytest.raises(ConfigError, match=r"'tucker\.colour'"):
        Tucker.from_dict({"student": "1", "colour": "red"})


@pytest.mark.parametrize(
    ("text", "ranks"), [("evbmf", "evbmf"), ("0.25", 0.25), ("8", 8), ("5,8", (5, 8))]
)
def test_ranks_from_text(text, ranks):
    assert parse_ranks(text) == ranks
    assert type(parse_ranks(text)) is type(ranks)


@pytest.mark.parametrize(
    "text", ["", "keep", "0", "1.5", "0.0", "a,b", "1,2,3", "0,4", "-3", "nan."]
)
def test_ranks_that_are_none(text):
    with pytest.raises(UsageError, match="Expected ranks evbmf"):
        parse_ranks(text)


def noise(count=8):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_plans_are_those_of_the_library(net):
    plan = student_plan(net, "lenet5", "2").to_dict()
    assert Tucker(student="2").apply(net, noise(), "lenet5").step == {"method": "tucker", **plan}
    layers = METHODS["custom"].apply(net, noise()).step["layers"]
    assert {name: layer["ranks"] for name, layer in layers.items()} == {
        "conv2": [2, 4],  # a quarter of 6 and 16 channels
        "conv3": [5, 8],
        "fc1": [8],
    }


IMPOSSIBLE = {
    "pattern": ({"layers": {"conv9": 0.5}}, "No layer matches 'conv9'; the net has conv1"),
    "rank": ({"layers": {"conv3": (17, 8)}}, "'conv3' 2 rank.* at most 16, 120; got 17, 8"),
    "no gain": ({"layers": {"fc2": 10}}, "No layer would gain at these ranks .*fc2"),
    "all kept": ({"layers": {"all": "keep"}}, "all are kept"),
    "parameters": ({"target": "params", "goal": 0.001}, "Cannot reach 0.1% of the parameters"),
    "macs": ({"target": "macs", "goal": 0.001}, "Cannot reach 0.1% of the multiply-accumulates"),
}


@pytest.mark.parametrize("case", list(IMPOSSIBLE))
def test_what_this_net_cannot_be_is_refused_before_any_work(case, net):
    fields, message = IMPOSSIBLE[case]
    with pytest.raises(UsageError, match=message):
        Tucker(**fields).check(net, noise(2), "lenet5")


def nan(net):
    net.conv2.weight.data[0] = float("nan")
    return net


UNSOUND = {
    "NaN": (nan, "'conv2.weight' holds NaN"),
    "lazy": (lambda _: nn.Sequential(nn.LazyLinear(4)), "lazy"),
    "nothing to compress": (lambda _: nn.Sequential(nn.PReLU()), "Conv2d, Conv1d or Linear"),
}


@pytest.mark.parametrize("label", ["1", "custom", "macs-0.5"])
@pytest.mark.parametrize("case", list(UNSOUND))
def test_unsound_nets_are_refused_before_any_work(case, label, net):
    spoil, message = UNSOUND[case]
    with pytest.raises(UsageError, match=message):
        METHODS[label].check(spoil(copy.deepcopy(net)), noise(2), "lenet5")


def test_a_budget_is_met_or_said_to_be_out_of_reach(net, monkeypatch):
    for label, count in (
        ("macs-0.5", partial(count_macs, shape=SHAPE)),
        ("params-0.3", count_parameters),
    ):
        made = METHODS[label].apply(net, noise())
        assert count(made.net) <= METHODS[label].goal * count(net)
        assert made.search["reached"] == pytest.approx(count(made.net) / count(net))
        assert {row["name"] for row in made.search["sensitivity"]} >= set(made.step["layers"])
        assert "plan" not in made.search
        json.dumps(made.search)

    def by_macs(nets, shapes, *_):  # no clock, which a busy machine disturbs
        return [[count_macs(n, shape)] * 6 for n, shape in zip(nets, shapes, strict=True)]

    monkeypatch.setattr(search, "time_rounds", by_macs)
    monkeypatch.setattr(sensitivity, "time_rounds", by_macs)
    with pytest.raises(UsageError, match="the best found is"):
        Tucker(target="latency", goal=0.001).apply(net, noise(2))


def test_what_can_be_told_without_inputs_is_told_before(net):
    with pytest.raises(UsageError, match=r"got 0\.001, but at least"):
        Prune(0.001).check(net, noise(2))
    assert METHODS["macs-0.5"].check(net, noise(2)) is net


@pytest.mark.parametrize(("target", "which"), [("params", 0), ("macs", 1)])
def test_the_check_before_the_search_is_exactly_as_strict(net, target, which):
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    low, high = 0.0, 1.0
    for _ in range(8):  # the lowest goal that the check lets pass
        middle = (low + high) / 2
        try:
            expect_reachable(net, SHAPE, target, middle)
            high = middle
        except ValueError:
            low = middle
    assert search_plan(net, x, target, high).reached <= high
    with pytest.raises(ValueError, match="Cannot reach"):
        search_plan(net, x, target, low)
