"""The known architectures: keys, formula, gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from freia_kd.domain import Domain
from freia_kd.errors import UsageError
from freia_kd.teachers import ARCHITECTURES, build_net, recognise_arch
from freia_kd.teachers.lenet5 import LeNet5
from freia_kd.teachers.mlp import MLP
from freia_kd.teachers.resnet14 import ResidualBlock, ResNet14

LENET_KEYS = [
    f"{layer}.{kind}"
    for layer in ("conv1", "conv2", "conv3", "fc1", "fc2")
    for kind in ("weight", "bias")
]

DOMAINS = {
    "lenet5": Domain((1, 32, 32), 7),
    "resnet14": Domain((3, 20, 20), 7),
    "mlp": Domain((2, 4, 4), 7),
}


@pytest.mark.parametrize("arch", DOMAINS)
def test_net_gives_logits_and_a_gradient_to_every_parameter_and_the_input(arch):
    torch.manual_seed(0)
    domain = DOMAINS[arch]
    net = build_net(arch, domain)
    x = torch.randn(3, *domain.shape, requires_grad=True)
    logits = net(x)
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert x.grad.abs().sum() > 0
    dead = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("arch", DOMAINS)
def test_recognised_from_its_own_weights(arch):
    assert recognise_arch(build_net(arch, DOMAINS[arch]).state_dict()) == arch


def test_table_of_cases_holds_every_builtin_architecture():
    assert set(DOMAINS) == set(ARCHITECTURES.builtin)


def test_lenet5_has_the_published_keys_and_shapes():
    state = LeNet5(1, 10).state_dict()
    assert list(state) == LENET_KEYS
    shapes = [tuple(v.shape) for k, v in state.items() if k.endswith("weight")]
    assert shapes == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 16, 5, 5), (84, 120), (10, 84)]


def test_lenet5_equals_the_formula():
    torch.manual_seed(0)
    net, x = LeNet5(1, 10).double(), torch.randn(2, 1, 32, 32, dtype=torch.float64)
    features = nn.Sequential(
        net.conv1, nn.ReLU(), nn.MaxPool2d(2), net.conv2, nn.ReLU(), nn.MaxPool2d(2), net.conv3,
        nn.ReLU(), nn.Flatten(), net.fc1, nn.ReLU(), net.fc2,
    )  # fmt: skip
    assert torch.equal(net(x), features(x))


def test_resnet14_has_the_published_keys_and_shapes():
    state = ResNet14(3, 10).state_dict()
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {"conv1.weight", "conv1.bias", "linear.weight", "linear.bias"}
    expected |= {f"norm1.{kind}" for kind in norm}
    for block in (f"layers{s}.{b}" for s in (1, 2, 3) for b in (0, 1)):
        for i in (1, 2):
            expected |= {f"{block}.conv{i}.weight", f"{block}.conv{i}.bias"}
            expected |= {f"{block}.bn{i}.{kind}" for kind in norm}
    assert set(state) == expected
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["layers2.0.conv1.weight"].shape == (32, 16, 3, 3)
    assert state["layers3.1.conv2.weight"].shape == (64, 64, 3, 3)
    assert state["linear.weight"].shape == (10, 64)


def test_widening_shortcut_subsamples_and_appends_zeros():
    block = ResidualBlock(2, 5, stride=2).eval()
    for norm in (block.bn1, block.bn2):
        nn.init.zeros_(norm.weight)  # the residual branch gives zero
    x = torch.rand(1, 2, 6, 6)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert torch.equal(out[:, 2:], torch.zeros(1, 3, 3, 3))


def test_residual_block_equals_the_formula():
    torch.manual_seed(0)
    block = ResidualBlock(4, 4).eval()
    for norm in (block.bn1, block.bn2):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 4, 6, 6)
    inner = F.relu(block.bn1(block.conv1(x)))
    assert torch.allclose(block(x), F.relu(block.bn2(block.conv2(inner)) + x))


def test_resnet14_pools_globally_as_the_published_8x8_pooling_does_at_32x32():
    torch.manual_seed(0)
    net = ResNet14(3, 10).eval()
    features = {}
    net.layers3.register_forward_hook(lambda _m, _i, out: features.update(out=out))
    logits = net(torch.randn(2, 3, 32, 32))
    expected = net.linear(F.avg_pool2d(features["out"], 8).flatten(1))
    assert torch.allclose(logits, expected, atol=1e-6)


def test_mlp_flattens_images_and_reads_its_widths_off_the_weights():
    torch.manual_seed(0)
    net = MLP(12, 4, (9, 5))
    x = torch.randn(2, 3, 2, 2)
    expected = nn.Sequential(
        nn.Flatten(), net.layers[0], nn.ReLU(), net.layers[1], nn.ReLU(), net.layers[2]
    )(x)
    assert torch.equal(net(x), expected)
    built = build_net("mlp", Domain((3, 2, 2), 4), net.state_dict())
    assert [layer.out_features for layer in built.layers] == [9, 5, 4]


@pytest.mark.parametrize(
    ("arch", "domain", "message"),
    [
        ("lenet5", Domain((1, 28, 28), 10), r"Expected inputs of shape \(C, 32, 32\)"),
        ("lenet5", Domain((2,), 10), r"Expected inputs of shape \(C, 32, 32\)"),
        ("resnet14", Domain((2,), 10), r"Expected images of shape \(C, H, W\)"),
        ("lenet6", Domain((2,), 10), "Unknown architecture 'lenet6'; did you mean 'lenet5'?"),
        ("torch.nn:Linear", Domain((2,), 10), "without arguments failed"),
        ("math:pi", Domain((2,), 10), "Expected an nn.Module.*got float"),
        ("collections:OrderedDict", Domain((2,), 10), "Expected an nn.Module.*got OrderedDict"),
    ],
)
def test_build_net_refuses(arch, domain, message):
    with pytest.raises(UsageError, match=message):
        build_net(arch, domain)


def test_build_net_takes_a_class_a_function_and_a_net(monkeypatch, tmp_path):
    (tmp_path / "own_nets_for_test.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 3)\n"
        "def make():\n    return nn.Linear(2, 4)\n"
        "net = nn.Linear(2, 5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    domain = Domain((2,), 3)
    widths = [
        build_net(f"own_nets_for_test:{name}", domain).out_features
        for name in ("Net", "make", "net")
    ]
    assert widths == [3, 4, 5]
    import own_nets_for_test

    assert build_net("own_nets_for_test:net", domain) is not own_nets_for_test.net


def two_layers(width=3, out=7):
    """A constructor that takes no number of classes by a name that is known."""
    return nn.Sequential(nn.Flatten(), nn.Linear(32, width), nn.Linear(width, out))


def with_classes(num_classes, width=3):
    return two_layers(width, num_classes)


def test_arguments_reach_every_constructor():
    domain = DOMAINS["mlp"]
    assert build_net(f"{__name__}:two_layers(width=5)", domain)[1].out_features == 5
    net = build_net(f"{__name__}:with_classes(width=5)", domain)
    assert (net[1].out_features, net[2].out_features) == (5, 7)
    net = build_net(f"{__name__}:with_classes(num_classes=4, width=6)", domain)
    assert (net[1].out_features, net[2].out_features) == (6, 4)
