"""Plans and their nets: the papers' students, patterns, any net, and the teacher left as it was."""

import copy
import json
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from freia_kd.compression.modules import candidates
from freia_kd.compression.tucker.papers import student_plan
from freia_kd.compression.tucker.plan import (
    LayerPlan,
    Plan,
    apply_plan,
    make_plan,
    read_rules,
    restructure,
)
from freia_kd.teachers.lenet5 import LeNet5
from freia_kd.teachers.mlp import MLP
from freia_kd.teachers.resnet14 import ResNet14


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def low_rank(net, rank=3, noise=0.02):
    """Plants a low rank in every layer, as training does; random weights are noise to EVBMF."""
    for layer in candidates(net)[0].values():
        with torch.no_grad():
            outs, ins = layer.weight.shape[:2]
            kernel = layer.weight.shape[2:]
            core = torch.randn(rank, rank, *kernel) / rank
            weight = torch.einsum(
                "op,pq...,iq->oi...", torch.randn(outs, rank), core, torch.randn(ins, rank)
            )
            weight = weight / weight.std() * layer.weight.std()
            layer.weight.copy_(weight + noise * weight.std() * torch.randn_like(weight))
    return net


class Shared(nn.Module):
    """One layer in three places and under two names, buffers, functional calls."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.middle = nn.Conv2d(12, 12, 3, padding=1)
        self.again = nn.ModuleList([self.middle, nn.Sequential(self.middle)])
        self.head = nn.Linear(12, 4)
        self.register_buffer("scale", torch.full((1,), 0.5))
        self.register_buffer("draft", torch.ones(1), persistent=False)

    def forward(self, x):
        x = F.relu(self.first(x)) * self.scale
        x = x + torch.tanh(self.middle(x))
        for layer in self.again:
            x = x + torch.tanh(layer(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)) * self.draft


class Signal(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(4, 16, 5, stride=2), nn.ReLU(), nn.Conv1d(16, 16, 3))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(-1))


NETS = {
    "lenet5": (LeNet5, (1, 32, 32)),
    "resnet14": (ResNet14, (3, 32, 32)),
    "mlp": (lambda: MLP(16, 5, (32, 32)), (16,)),
    "shared": (Shared, (3, 8, 8)),
    "signal": (Signal, (4, 30)),
    "single": (lambda: nn.Linear(32, 32), (32,)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("student", ["1", "2", "3"])
def test_students_run_train_save_and_load(name, student, tmp_path):
    build, shape = NETS[name]
    net = low_rank(build())
    before = copy.deepcopy(net.state_dict())
    plan = student_plan(net, name, student)
    assert plan.layers
    small = apply_plan(net, plan)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())

    x = torch.randn(4, *shape)
    small(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in small.parameters())

    torch.save(small.state_dict(), tmp_path / "student.pt")
    loaded = restructure(build(), plan.to_dict())
    loaded.load_state_dict(torch.load(tmp_path / "student.pt", weights_only=True))
    torch.testing.assert_close(loaded.eval()(x), small.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arch", "student", "expected"),
    [
        ("lenet5", "1", {"conv3"}),
        ("lenet5", "2", {"conv2", "conv3"}),
        ("lenet5", "3", {"conv2", "conv3"}),
        ("resnet14", "1", {"layers3.0.conv1", "layers3.1.conv1"}),
        ("resnet14", "2", {"layers3.0.conv2", "layers3.1.conv2"}),
        ("resnet14", "3", {f"layers3.{b}.conv{c}" for b in (0, 1) for c in (1, 2)}),
    ],
)
def test_the_papers_students(arch, student, expected):
    net = low_rank(NETS[arch][0]())
    plan = student_plan(net, arch, student)
    assert set(plan.layers) == expected
    forced = {"conv3": (5, 8)} if (arch, student) == ("lenet5", "3") else {}
    for name, layer in plan.layers.items():
        assert layer == LayerPlan("tucker2", forced.get(name, (3, 3)))


# (in, out) of each layer, by hand from the ratios of BDNF's published code, rounded down.
BDNF_STUDENTS = {
    ("lenet5", "bdnf-1"): {"conv3": (2, 18)},
    ("lenet5", "bdnf-2"): {"conv2": (3, 8), "conv3": (2, 18)},
    ("lenet5", "bdnf-3"): {"conv2": (1, 4), "conv3": (2, 18)},
    ("resnet14", "bdnf-1"): {
        "layers2.0.conv1": (14, 28), "layers2.1.conv1": (28, 28),
        "layers3.0.conv1": (19, 38), "layers3.1.conv1": (38, 38),
    },
    ("resnet14", "bdnf-2"): {
        "layers2.0.conv2": (19, 19), "layers2.1.conv2": (19, 19),
        "layers3.0.conv2": (19, 19), "layers3.1.conv2": (19, 19),
    },
}  # fmt: skip


@pytest.mark.parametrize(("arch", "student"), BDNF_STUDENTS)
def test_the_students_of_bdnfs_code(arch, student):
    net = low_rank(LeNet5() if arch == "lenet5" else ResNet14(1))
    plan = student_plan(net, arch, student)
    expected = BDNF_STUDENTS[arch, student]
    assert plan.layers == {n: LayerPlan("tucker2", ranks) for n, ranks in expected.items()}
    assert not plan.skipped


def test_bdnfs_students_of_a_resnet_in_colour_have_svhns_ratios():
    grey, colour = (student_plan(ResNet14(n), "resnet14", "bdnf-3") for n in (1, 3))
    both = BDNF_STUDENTS["resnet14", "bdnf-1"] | BDNF_STUDENTS["resnet14", "bdnf-2"]
    assert {n: layer.ranks for n, layer in grey.layers.items()} == both
    last = {"layers3.0.conv1": (12, 25), "layers3.1.conv1": (25, 25)}
    last |= dict.fromkeys(("layers3.0.conv2", "layers3.1.conv2"), (12, 12))
    assert {n: layer.ranks for n, layer in colour.layers.items()} == both | last


@pytest.mark.parametrize("arch", ["lenet5", "resnet14"])
@pytest.mark.parametrize("number", ["1", "2", "3"])
def test_kegnets_students_by_their_full_name(arch, number):
    net = low_rank(NETS[arch][0]())
    assert student_plan(net, arch, f"kegnet-{number}") == student_plan(net, arch, number)


@pytest.mark.parametrize("student", ["bdnf-1", "kegnet-2"])
def test_other_nets_have_no_student_of_a_paper(student):
    with pytest.raises(
        ValueError, match=rf"lenet5 and resnet14 for the student {student}; got mlp"
    ):
        student_plan(MLP(16, 5, (64, 32)), "mlp", student)


def test_students_of_other_nets_shrink():
    net = low_rank(MLP(16, 5, (64, 32)), rank=4)
    plans = [student_plan(net, "custom", s) for s in "123"]
    assert set(plans[0].layers) == {"layers.1"}
    assert set(plans[1].layers) == {"layers.0", "layers.1", "layers.2"}
    sizes = [sum(p.numel() for p in apply_plan(net, plan).parameters()) for plan in plans]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(("student", "ranks"), [("1", (16, 8)), ("2", (8, 4)), ("3", (4, 2))])
def test_students_of_a_perceptron_have_shares_of_the_widths(student, ranks):
    plan = student_plan(MLP(100, 5, (64, 32)), "mlp", student)
    assert {name: layer.ranks for name, layer in plan.layers.items()} == {
        "layers.0": ranks[:1],
        "layers.1": ranks[1:],
    }


def test_students_of_a_small_perceptron():
    plan = student_plan(MLP(3, 2, (16, 16)), "mlp", "3")  # 1/16 of 16 units would be rank 1
    assert plan.layers == {
        "layers.0": LayerPlan("svd", (2,)),
        "layers.1": LayerPlan("svd", (2,)),
    }
    with pytest.raises(ValueError, match="the last layer stays"):
        student_plan(MLP(16, 5, ()), "mlp", "1")


def test_student_keeps_what_the_low_rank_explains():
    net = low_rank(LeNet5(), rank=3, noise=1e-4)
    x = torch.randn(8, 1, 32, 32)
    small = apply_plan(net, student_plan(net, "lenet5", "2"))
    torch.testing.assert_close(small(x), net(x), atol=1e-3, rtol=1e-2)


def test_patterns_ratios_and_explicit_ranks():
    net = ResNet14()
    plan = make_plan(net, ["layers3.*", "linear"], ranks=0.25)
    assert plan.layers["layers3.0.conv1"] == LayerPlan("tucker2", (8, 16))
    assert plan.layers["linear"] == LayerPlan("svd", (2,))
    assert len(plan.layers) == 5
    assert make_plan(net, "layers3.1.conv1", (5, 8)).layers == {
        "layers3.1.conv1": LayerPlan("tucker2", (5, 8))
    }
    assert make_plan(net, "linear", 3).layers == {"linear": LayerPlan("svd", (3,))}


def test_layers_that_would_not_gain_are_left_alone_with_the_reason():
    plan = make_plan(LeNet5(), ranks=0.95)
    assert set(plan.skipped) == {"conv1", "conv2", "conv3", "fc1", "fc2"}
    assert "would not gain: ranks 1, 6 need 150 weights, not 150" in plan.skipped["conv1"]


def test_layers_that_cannot_be_compressed_are_skipped_with_the_reason():
    net = nn.ModuleDict(
        {
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "up": nn.ConvTranspose2d(8, 8, 2),
            "deep": nn.Conv3d(8, 8, 2),
            "attention": nn.MultiheadAttention(8, 2),
            "tied": nn.Linear(8, 8),
            "tie": nn.Embedding(8, 8),
            "hooked": nn.Linear(8, 8),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
            "fine": nn.Linear(8, 8),
        }
    )
    net["tie"].weight = net["tied"].weight
    net["hooked"].register_forward_hook(lambda *_: None)
    found, reasons = candidates(net)
    assert set(found) == {"fine"}
    assert reasons["depthwise"] == "depthwise"
    assert "2 groups" in reasons["grouped"]
    assert "ConvTranspose2d" in reasons["up"]
    assert "Conv3d" in reasons["deep"]
    assert "NonDynamicallyQuantizableLinear" in reasons["attention.out_proj"]
    assert "tied (tied.weight, tie.weight)" in reasons["tied"]
    assert "hooks" in reasons["hooked"]
    assert "Parametrized" in reasons["normed"]
    with pytest.raises(ValueError, match=r"'depthwise' can be compressed \(depthwise: depthwise\)"):
        make_plan(net, "depthwise")


def test_a_shared_layer_is_replaced_everywhere():
    net = low_rank(Shared())
    small = apply_plan(net, make_plan(net, "middle", 3))
    assert small.middle is small.again[0] is small.again[1][0]
    assert isinstance(small.middle, nn.Sequential)
    assert torch.equal(small.scale, net.scale)
    assert torch.equal(small.draft, net.draft)
    assert isinstance(net.middle, nn.Conv2d)


def test_frozen_parameters_and_modes_are_kept():
    net = LeNet5().eval().requires_grad_(False)
    small = apply_plan(net, make_plan(net, "conv3", 2))
    assert not small.conv3.training
    assert not any(p.requires_grad for p in small.parameters())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layers": []},
        {"layers": {"a": {"method": "cp", "ranks": [1]}}},
        {"layers": {"a": {"method": "svd", "ranks": [1, 2]}}},
        {"layers": {"a": {"method": "tucker2", "ranks": [0, 2]}}},
        {"layers": {"a": {"method": "tucker2", "ranks": [1.5, 2]}}},
        {"layers": {"a": {"method": "tucker2"}}},
        {"layers": {"a": {"method": "svd", "ranks": [1], "color": 3}}},
    ],
)
def test_malformed_plans(fields):
    with pytest.raises(ValueError, match=r"Not a compression plan|Expected (the method|ranks)"):
        Plan.from_dict(fields)


class Undeepcopyable(nn.Linear):
    def __init__(self):
        super().__init__(8, 8)
        self.body = nn.Linear(8, 8)
        self.lock = threading.Lock()


def damaged():
    net = LeNet5()
    nn.init.constant_(net.conv2.weight, float("nan"))
    return net


def lazy():
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: student_plan(MLP(2, 2), "lenet5", "1"), "No layer matches 'conv3'"),
        (lambda: make_plan(nn.Sequential(nn.ReLU())), "Conv2d, Conv1d or Linear layers"),
        (lambda: make_plan(nn.Conv2d(4, 4, 3, groups=4)), "can be compressed; Conv2d has none"),
        (lambda: make_plan(damaged()), "finite weights; 'conv2.weight' holds NaN"),
        (lambda: make_plan(lazy()), "'0.weight' is lazy"),
        (lambda: make_plan(LeNet5(), "conv9"), "No layer matches 'conv9'; the net has conv1"),
        (lambda: make_plan(LeNet5(), "conv3", (17, 8)), r"at most 16, 120; got 17, 8"),
        (
            lambda: make_plan(LeNet5(), "conv3", (1, 2, 3)),
            r"or .in, out.; got \(1, 2, 3\)",
        ),
        (lambda: make_plan(LeNet5(), ranks=1.5), "a ratio between 0 and 1.*; got 1.5"),
        (lambda: make_plan(LeNet5(), ranks="vbmf"), "ranks 'evbmf', .* got 'vbmf'"),
        (lambda: student_plan(nn.Linear(2, 2), "x", "2"), "gains by compression; found none"),
        (
            lambda: apply_plan(LeNet5(), Plan({"conv9": LayerPlan("svd", (1,))})),
            "'conv9' of the plan cannot be compressed: the net has conv1",
        ),
        (
            lambda: apply_plan(LeNet5(), Plan({"fc1": LayerPlan("tucker2", (1, 1))})),
            "'fc1': expected the method svd",
        ),
        (
            lambda: apply_plan(LeNet5(), Plan({"conv1": LayerPlan("tucker2", (2, 1))})),
            "'conv1': Expected an integer input rank from 1 to 1; got 2",
        ),
        (
            lambda: restructure(LeNet5(), {"layers": {"conv2": {"method": "svd", "ranks": [1]}}}),
            "'conv2'.*kernel size 1",
        ),
        (
            lambda: apply_plan(Undeepcopyable(), Plan({"body": LayerPlan("svd", (1,))})),
            "copy.deepcopy can copy; Undeepcopyable cannot be.*lock",
        ),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


RULES = """
all: 0.25
layers1.*: keep
layers3.*.conv1: [8, 12]
linear: 3
layers2.0.conv1: evbmf
"""


def test_rules_from_yaml_where_the_last_match_counts(tmp_path):
    (tmp_path / "plan.yaml").write_text(RULES)
    plan = make_plan(low_rank(ResNet14()), read_rules(tmp_path / "plan.yaml"))
    assert not any(name.startswith("layers1") for name in plan.layers)
    assert plan.layers["layers3.1.conv1"] == LayerPlan("tucker2", (8, 12))
    assert plan.layers["layers3.1.conv2"] == LayerPlan("tucker2", (16, 16))
    assert plan.layers["layers2.0.conv1"] == LayerPlan("tucker2", (3, 3))
    assert plan.layers["linear"] == LayerPlan("svd", (3,))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "Expected layer patterns and their ranks"),
        ("", "Expected layer patterns"),
        ("a: [1, 2", "Not a YAML file"),
        (
            "a: 1.5\nb: evbmf\nc: [0, 3]\nd: fast\ne: true",
            "got a: 1.5; c: .0, 3.; d: 'fast'; e: True",
        ),
    ],
)
def test_malformed_rules_are_reported_together(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rules(tmp_path / "plan.yaml")


class Tricky(nn.Module):
    """Uses one weight directly, never uses another, and widens pixels by a stride."""

    def __init__(self):
        super().__init__()
        self.direct, self.unused, self.fine = (nn.Linear(16, 16) for _ in range(3))
        self.strided = nn.Conv2d(16, 16, 3, stride=4)

    def forward(self, x):
        x = self.fine(self.strided(x).flatten(1))
        return F.linear(x, self.direct.weight)


def test_a_shape_tells_which_layers_are_called_and_gain_in_macs():
    net = Tricky()
    assert set(make_plan(net, ranks=0.25).layers) == {"direct", "unused", "fine", "strided"}
    plan = make_plan(net, {"all": 0.25, "strided": (15, 2)}, shape=(16, 4, 4))
    assert set(plan.layers) == {"fine"}
    reasons = plan.skipped
    assert "never calls it" in reasons["direct"]
    assert "never calls it" in reasons["unused"]
    # 16 pixels go through the first layer, one comes out.
    after = 16 * 16 * 15 + 15 * 2 * 9 + 2 * 16
    assert f"need {after} multiply-accumulates, not {16 * 16 * 9}" in reasons["strided"]
    assert apply_plan(net, plan)(torch.randn(2, 16, 4, 4)).isfinite().all()


@pytest.mark.parametrize("student", ["1", "2", "3"])
def test_students_of_nets_with_weights_used_directly(student):
    net = low_rank(Tricky())
    small = apply_plan(net, student_plan(net, "tricky", student, shape=(16, 4, 4)))
    assert small(torch.randn(2, 16, 4, 4)).isfinite().all()
