"""Recipes: what a student is to be, and what is refused before any work."""

import copy
import json
import sys
from functools import partial

import pytest
import torch
from torch import nn

from freia_kd.compression import (
    Recipe,
    apply_plan,
    as_recipes,
    count_macs,
    count_parameters,
    parse_ranks,
    search_plan,
    student_plan,
)
from freia_kd.compression.budget import expect_reachable
from freia_kd.errors import UsageError
from freia_kd.teachers.lenet5 import LeNet5

SHAPE = (1, 32, 32)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return LeNet5().eval()


RECIPES = {
    "1": Recipe(student="1"),
    "custom": Recipe(rules={"conv*": 0.25, "conv1": "keep", "fc1": 8, "conv3": (5, 8)}),
    "macs-0.5": Recipe(target="macs", goal=0.5, bn="reestimate"),
    "drop-1": Recipe(target="drop", goal=1.0),
    "prune-quantize": Recipe(methods=("prune", "quantize"), prune_share=0.6),
    "tight": Recipe("tight", target="params", goal=0.3),
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_have_names_and_are_json(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    fields = json.loads(json.dumps(recipe.to_dict()))
    again = Recipe.from_dict(fields)
    assert again.to_dict() == recipe.to_dict()
    assert again.name == name


WRONG = {
    "nothing": ({}, "one of a paper's student, rules and a target; got none"),
    "both": ({"student": "1", "rules": {"all": 8}}, "got student and rules"),
    "goal alone": ({"student": "1", "goal": 0.5}, "target together with its goal"),
    "target alone": ({"target": "macs"}, "target together with its goal"),
    "share": ({"target": "macs", "goal": 1.5}, "share between 0 and 1"),
    "drop": ({"target": "drop", "goal": -1.0}, "0 to 100 percentage points"),
    "target": ({"target": "beauty", "goal": 0.5}, "target of params, macs, latency, drop"),
    "student": ({"student": "7"}, "student 1, 2 or 3; got '7'"),
    "method": ({"student": "1", "methods": ("glue",)}, "methods of tucker.*; got glue"),
    "no method": ({"student": "1", "methods": ()}, "got none"),
    "order": ({"methods": ("quantize", "prune")}, "Quantisation comes last; got the methods"),
    "target later": (
        {"target": "macs", "goal": 0.5, "methods": ("prune", "tucker")},
        "tucker must be the first method",
    ),
    "student without": ({"student": "1", "methods": ("prune",)}, "no student without the method"),
    "prune share": ({"methods": ("prune",), "prune_share": 1.0}, "share between 0 and 1"),
    "twice": ({"student": "1", "methods": ("tucker", "tucker")}, "tucker twice"),
    "bn": ({"student": "1", "bn": "melt"}, "freeze, reestimate, train; got 'melt'"),
    "name": ({"student": "1", "name": "../x"}, "name of letters"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_contradictions_are_refused(case):
    fields, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        Recipe(**fields)


def test_unknown_fields_are_refused():
    with pytest.raises(UsageError, match="Not a student's recipe"):
        Recipe.from_dict({"student": "1", "colour": "red"})


def test_students_by_number_and_recipe():
    recipe = Recipe(rules={"all": 0.5})
    assert [r.name for r in as_recipes(["3", recipe, 1, "3"])] == ["3", "custom", "1"]
    with pytest.raises(UsageError, match="named 'custom'"):
        as_recipes([recipe, Recipe(rules={"all": 0.25})])


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


def test_plans_are_those_of_the_library(net):
    assert Recipe(student="2").plan(net, "lenet5", SHAPE) == student_plan(net, "lenet5", "2")
    plan = RECIPES["custom"].plan(net, "lenet5", SHAPE)
    assert {n: p.ranks for n, p in plan.layers.items()} == {
        "conv2": (2, 4),  # a quarter of 6 and 16 channels
        "conv3": (5, 8),
        "fc1": (8,),
    }
    assert Recipe(target="macs", goal=0.5).plan(net, "lenet5", SHAPE) is None


IMPOSSIBLE = {
    "pattern": ({"rules": {"conv9": 0.5}}, "No layer matches 'conv9'; the net has conv1"),
    "rank": ({"rules": {"conv3": (17, 8)}}, "'conv3' 2 rank.* at most 16, 120; got 17, 8"),
    "no gain": ({"rules": {"fc2": 10}}, "No layer would gain at these ranks .*fc2"),
    "all kept": ({"rules": {"all": "keep"}}, "all are kept"),
    "parameters": ({"target": "params", "goal": 0.001}, "Cannot reach 0.1% of the parameters"),
    "macs": ({"target": "macs", "goal": 0.001}, "Cannot reach 0.1% of the multiply-accumulates"),
}


@pytest.mark.parametrize("case", list(IMPOSSIBLE))
def test_what_this_net_cannot_be_is_refused_before_any_work(case, net):
    fields, message = IMPOSSIBLE[case]
    with pytest.raises(UsageError, match=message):
        Recipe(**fields).plan(net, "lenet5", SHAPE)


def test_other_methods_are_tried_before_any_work(net):
    pytest.importorskip("torch_pruning", reason="the extra freia_kd[prune] is not installed")
    Recipe(student="2", methods=("tucker", "prune", "quantize")).check(net, "lenet5", SHAPE)
    with pytest.raises(UsageError, match=r"got 0\.001, but at least"):
        Recipe(methods=("prune",), prune_share=0.001).check(net, "lenet5", SHAPE)


def test_checks_leave_no_trace_in_the_random_numbers(net):
    before = torch.get_rng_state()
    Recipe(student="2", methods=("tucker", "quantize")).check(net, "lenet5", SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_pruning_without_its_library_names_the_extra(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UsageError, match=r"freia_kd\[prune\]"):
        Recipe(methods=("prune",)).check(net, "lenet5", SHAPE)


def nan(net):
    net.conv2.weight.data[0] = float("nan")
    return net


UNSOUND = {
    "NaN": (nan, "'conv2.weight' holds NaN"),
    "lazy": (lambda _: nn.Sequential(nn.LazyLinear(4)), "lazy"),
    "nothing to compress": (lambda _: nn.Sequential(nn.PReLU()), "Conv2d, Conv1d or Linear"),
}


@pytest.mark.parametrize("recipe", ["1", "custom", "macs-0.5"])
@pytest.mark.parametrize("case", list(UNSOUND))
def test_unsound_nets_are_refused_before_any_work(case, recipe, net):
    spoil, message = UNSOUND[case]
    with pytest.raises(ValueError, match=message):
        RECIPES[recipe].plan(spoil(copy.deepcopy(net)), "lenet5", SHAPE)


def test_a_budget_is_met_or_said_to_be_out_of_reach(net):
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    for recipe, count in (
        ("macs-0.5", partial(count_macs, shape=SHAPE)),
        ("tight", count_parameters),
    ):
        found = RECIPES[recipe].search(net, x)
        assert count(apply_plan(net, found.plan)) <= RECIPES[recipe].goal * count(net)
    with pytest.raises(UsageError, match="the best found is"):
        Recipe(target="latency", goal=0.001).search(net, x[:2])


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


def test_the_net_is_not_modified(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    Recipe(target="macs", goal=0.5).search(net, x)
    RECIPES["custom"].plan(net, "lenet5", SHAPE)
    expect_reachable(net, SHAPE, "params", 0.5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not net.training
