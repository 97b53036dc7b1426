"""Pruned nets compute what the net does without those channels; what cannot be pruned is listed."""

import json
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from freia_kd.compression import Prune, Quantize, apply_plan, count_macs, make_plan
from freia_kd.errors import UsageError
from freia_kd.teachers.lenet5 import LeNet5
from freia_kd.teachers.mlp import MLP
from freia_kd.teachers.resnet14 import ResNet14


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lived_in(net):
    """Batch normalisation that does something."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return net.eval()


def prune(net, x, keep_ratio=0.5, **options):
    made = Prune(keep_ratio, **options).apply(net, x)
    return made.net, made.step


def modules_of(net):
    return {n: (type(m), len(m._forward_hooks), m.training) for n, m in net.named_modules()}


def shapes_of(state):
    return {name: value.shape for name, value in state.items()}


def reasons(step):
    return step["skipped"]


OUTPUT = "no layer reads its channels: they are the net's output"


def test_the_least_important_neurons_go_and_the_rest_is_exact():
    net, x = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)), torch.randn(32, 6)
    net[2].weight.data[:, [1, 4, 5, 7, 8]] *= 1e-3
    student, step = prune(net, x, 0.5, importance="taylor")
    kept = [0, 2, 3, 6, 9]
    assert step["shapes"] == {
        "0.weight": [[10, 6], [5, 6]],
        "0.bias": [[10], [5]],
        "2.weight": [[3, 10], [3, 5]],
    }
    torch.testing.assert_close(student[0].weight, net[0].weight[kept], rtol=0, atol=0)
    hidden = torch.tanh(x @ net[0].weight[kept].T + net[0].bias[kept])
    torch.testing.assert_close(student(x), hidden @ net[2].weight[:, kept].T + net[2].bias)
    assert step["macs"] == [90, 45]
    assert reasons(step) == {"2": OUTPUT}


def test_magnitude_ranks_by_the_weights_that_make_and_read_a_neuron():
    net, x = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)), torch.randn(32, 6)
    norms = net[0].weight.square().sum(1) + net[2].weight.square().sum(0)
    kept = norms.argsort()[5:].sort().values
    student, _ = prune(net, x, 0.5, importance="magnitude")
    torch.testing.assert_close(student[0].weight, net[0].weight[kept], rtol=0, atol=0)


def test_taylor_sees_what_the_inputs_never_use():
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(64, 4)
    net[0].bias.data[:4] = -100.0  # never fire, however large their weights
    net[0].weight.data[:4] *= 10
    taylor, magnitude = (
        prune(net, x, 0.5, importance=i)[0][0].bias.min() for i in ("taylor", "magnitude")
    )
    assert taylor > -1
    assert magnitude == -100


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("make", [LeNet5, lambda: ResNet14(1, 10)])
def test_the_share_is_met_and_the_teacher_untouched(make, share):
    net, x = lived_in(make()), torch.randn(16, 1, 32, 32)
    net.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kinds = modules_of(net)
    random = torch.get_rng_state()
    student, step = prune(net, x, share)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert kinds == {
        n: (type(m), len(m._forward_hooks), m.training) for n, m in net.named_modules()
    }
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert all(p.grad is None and not p.requires_grad for p in student.parameters())
    assert not any(m.training or m._forward_hooks for m in student.modules())
    macs = [count_macs(n, (1, 32, 32)) for n in (net, student)]
    assert step["macs"] == macs
    assert 0.9 * share < macs[1] / macs[0] <= share
    assert json.loads(json.dumps(step)) == step
    rebuilt = Prune.rebuild(make(), step).eval()
    rebuilt.load_state_dict(student.state_dict())
    assert torch.equal(rebuilt(x), student(x))


def test_resnet14_loses_channels_through_its_padded_shortcuts():
    net, x = lived_in(ResNet14(1, 10)), torch.randn(16, 1, 32, 32)
    student, step = prune(net, x, 0.3)
    widths = [student.conv1.out_channels, *(s[0].conv2.out_channels for s in stages(student))]
    assert widths[0] == widths[1] < 16  # the stream is 16, 32 and 64 wide, of which 16 can go
    assert widths[1] - 16 == widths[2] - 32 == widths[3] - 64
    assert reasons(step) == {"linear": OUTPUT}
    student.train()
    student.requires_grad_(True)
    student(x).square().sum().backward()
    assert all(p.grad is not None for p in student.parameters())


def stages(net):
    return net.layers1, net.layers2, net.layers3


def test_only_inner_channels_go_where_the_stream_is_kept():
    net, x = lived_in(ResNet14(1, 10)), torch.randn(16, 1, 32, 32)
    student, step = prune(net, x, 0.5, keep=("conv1",))
    assert student.conv1.out_channels == 16
    assert "layers1.0.conv1.weight" in step["shapes"]
    assert reasons(step)["conv1"] == "it is to be kept"
    # By hand: what is left of the inner channels, in the order of the teacher's.
    block, teacher = student.layers1[0], net.layers1[0]
    kept = [
        next(i for i in range(16) if torch.equal(teacher.conv1.weight[i], row))
        for row in block.conv1.weight
    ]
    assert kept == sorted(kept)
    torch.testing.assert_close(block.bn1.running_mean, teacher.bn1.running_mean[kept])
    torch.testing.assert_close(block.conv2.weight, teacher.conv2.weight[:, kept])


class Mirrored(nn.Module):
    """Turns channels around, which torch-pruning takes to be element-wise."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.second(torch.tanh(self.first(x)).flip(1))
        return self.head(x.relu().mean((2, 3)))


def test_what_torch_pruning_gets_wrong_is_left_alone():
    student, step = prune(Mirrored(), torch.randn(8, 1, 8, 8), 0.7)
    assert "would compute something else" in reasons(step)["first"]
    assert student.first.out_channels == 8
    assert student.second.out_channels < 8


class Kinds(nn.Module):
    """Layers whose channels must stay, each for its reason."""

    def __init__(self):
        super().__init__()
        self.free, self.inner = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 1, groups=3)
        self.norm, self.normed = nn.GroupNorm(2, 8), nn.Conv2d(12, 8, 1)
        self.scaled, self.scale = nn.Conv2d(8, 6, 1), nn.Parameter(torch.rand(6, 1, 1))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.grouped(F.relu(self.inner(F.relu(self.free(x)))))
        x = self.norm(self.normed(x))
        return self.head((self.scaled(x) * self.scale).mean((2, 3)))


def test_layers_that_stay_are_listed_with_reasons():
    student, step = prune(Kinds(), torch.randn(8, 1, 6, 6), 0.8)
    expected = {
        "inner": "convolution of 3 groups",
        "grouped": "convolution of 3 groups",
        "normed": "a GroupNorm",
        "scaled": "a parameter that belongs to no layer",
        "head": "the net's output",
    }
    assert reasons(step).keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons(step).items())
    assert student.free.out_channels < 16


def taylor(net, x, seed):
    return prune(net, x, 0.4, importance="taylor", seed=seed)


def test_the_same_seed_gives_the_same_net():
    net, x = LeNet5(), torch.randn(8, 1, 32, 32)
    first, again, other = (taylor(net, x, seed)[0].state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(first[k].shape == other[k].shape and first[k].equal(other[k]) for k in first)
    assert taylor(net, x, 5)[1] == taylor(net, x, 5)[1]


def test_low_rank_layers_can_be_pruned():
    net, x = LeNet5(), torch.randn(8, 1, 32, 32)
    low = apply_plan(net, make_plan(net, "conv3", ranks=0.5))
    student, step = prune(low, x, 0.5)
    assert any(name.startswith("conv3.1.") for name in step["shapes"])
    assert count_macs(student, (1, 32, 32)) <= 0.5 * count_macs(low, (1, 32, 32))


@pytest.mark.parametrize(
    "shapes",
    [
        3,
        {"fc1.weight": 3},
        {"fc1.weight": [[84, 120]]},
        {"fc1.weight": [[84, 120], [84]]},
        {"fc1.weight": [[84, 120], [85, 120]]},
        {"fc1.weight": [[84, 120], [0, 120]]},
        {"fc1.weight": [[84, 120], [True, 120]]},
        {"fc1.weight": [[84.0, 120], [84, 120]]},
        {"fc1.weight": [["84", 120], [84, 120]]},
        {"fc1.weight": [[10**9, 120], [84, 120]]},
        {"fc9.weight": [[84, 120], [10, 120]]},
        {"fc1.weight": [[85, 120], [10, 120]]},
    ],
)
def test_malformed_steps_are_refused(shapes):
    with pytest.raises(ValueError, match=r"Not a pruning|Expected shapes|Expected a net whose"):
        Prune.rebuild(LeNet5(), {"shapes": shapes})


def test_steps_without_shapes_or_for_other_layers_are_refused():
    with pytest.raises(ValueError, match="Not a pruning"):
        Prune.rebuild(LeNet5(), {})
    step = {"shapes": {"weight": [[4], [2]]}}
    with pytest.raises(ValueError, match="a LayerNorm cannot be pruned"):
        Prune.rebuild(nn.LayerNorm(4), step)


def test_shapes_before_pruning_are_believed_only_as_far_as_pruning_goes():
    net, x = MLP(20, 3, (48, 40)), torch.randn(8, 20)
    student, step = prune(net, x, 0.5)
    state = Prune.original_state(student.state_dict(), step)
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    assert MLP.sizes(state)["hidden_features"] == (48, 40)
    huge = {"shapes": {"layers.0.weight": [[10**6, 20], [40, 20]]}}
    with pytest.raises(ValueError, match="at least 1/100"):
        Prune.original_state(student.state_dict(), huge)


class Unique(nn.Linear):
    def __deepcopy__(self, memo):
        raise TypeError("there is only one")


class Untraceable(nn.Sequential):
    def forward(self, x):
        return super().forward(x).detach()


def quantised():
    return Quantize().apply(nn.Linear(3, 2), torch.rand(4, 3)).net


def broken():
    net = nn.Linear(3, 2)
    net.weight.data[0, 0] = torch.inf
    return net


@pytest.mark.parametrize(
    ("net", "inputs", "message"),
    [
        (nn.Sequential(nn.ReLU()), torch.rand(4, 3), "share that can be reached"),
        (nn.Linear(3, 2), torch.rand(4, 3), "share that can be reached"),
        (broken(), torch.rand(4, 3), "finite weights"),
        (nn.LazyLinear(2), torch.rand(4, 3), "is lazy"),
        (Unique(3, 2), torch.rand(4, 3), "copy.deepcopy"),
        (nn.Linear(3, 2), torch.rand(4, 5), r"rejects those of shape \(2, 5\)"),
        (Untraceable(nn.Linear(3, 2)), torch.rand(4, 3), "share that can be reached"),
        (quantised(), torch.rand(4, 3), "before you quantise"),
    ],
)
def test_bad_nets_and_inputs_are_refused(net, inputs, message):
    with pytest.raises(ValueError, match=message):
        prune(net, inputs)


@pytest.mark.parametrize("share", [0, 1, -0.5, True, "half", float("nan")])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(ValueError, match=r"prune.keep_ratio: expected (more than 0|less than 1|a)"):
        prune(LeNet5(), torch.randn(2, 1, 32, 32), share)


def test_shares_that_cannot_be_reached_are_refused_with_the_least():
    with pytest.raises(ValueError, match=r"got 0.001, but at least 0\.\d+ .*fc2: no layer"):
        prune(LeNet5(), torch.randn(2, 1, 32, 32), 0.001)


def test_unknown_importances_are_refused():
    with pytest.raises(ValueError, match="'taylor' or 'magnitude'; got 'luck'"):
        prune(LeNet5(), torch.randn(2, 1, 32, 32), importance="luck")


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UsageError, match=r"freia_kd\[prune\]"):
        prune(LeNet5(), torch.randn(2, 1, 32, 32))


def vgg11_bn():
    """VGG11-BN without the two layers that hold nine tenths of its 129 million weights."""
    net = models.vgg11_bn(num_classes=10)
    net.classifier[0], net.classifier[3] = nn.Linear(25088, 32), nn.Linear(32, 64)
    net.classifier[6] = nn.Linear(64, 10)
    return net


TORCHVISION = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=10, width_mult=0.5),
    "vgg11_bn": vgg11_bn,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_nets_are_pruned(name):
    net, x = lived_in(TORCHVISION[name]()), torch.randn(4, 3, 32, 32)
    student, step = prune(net, x, 0.5)
    assert 0.49 < step["macs"][1] / step["macs"][0] <= 0.5
    assert list(reasons(step).values()) == [OUTPUT]
    student.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in student.parameters())
