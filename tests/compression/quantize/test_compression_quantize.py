"""Eight-bit layers against numpy, folding, calibration, int8 files, and what is left in float."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from freia_kd.compression import Quantize, apply_plan, make_plan
from freia_kd.compression.quantize import calibrate
from freia_kd.compression.quantize.folding import fold_batchnorm
from freia_kd.compression.quantize.layers import FakeQuantized, QuantizedConv2d
from freia_kd.teachers.lenet5 import LeNet5
from freia_kd.teachers.loading import file_state
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


def quantize(net, x, **options):
    made = Quantize(**options).apply(net, x)
    return made.net, made.step


def fingerprint(net):
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    kinds = {n: (type(m), m.training, len(m._forward_hooks)) for n, m in net.named_modules()}
    return state, flags, kinds


def same(before, after):
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    return before[1:] == after[1:]


def by_hand(x, low, high):
    """Uint8 affine rounding over a range, in numpy."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.round(-np.float32(low) / scale), 0, 255)
    return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


def int8_by_hand(w):
    scale = np.abs(w).reshape(len(w), -1).max(1).astype(np.float32) / 127
    scale = scale.reshape(-1, *[1] * (w.ndim - 1))
    return np.clip(np.round(w / scale), -128, 127) * scale


def test_a_linear_layer_computes_what_numpy_does():
    net, x = nn.Sequential(nn.Linear(6, 5)), torch.rand(64, 6) * 3 - 1
    got = quantize(net, x)[0](x).detach().numpy()
    rounded = by_hand(x.numpy(), x.min().item(), x.max().item())
    weight, bias = (p.detach().numpy() for p in net.parameters())
    np.testing.assert_allclose(got, rounded @ int8_by_hand(weight).T + bias, rtol=1e-5, atol=1e-6)
    assert np.abs(got - net(x).detach().numpy()).max() > 1e-4  # it did round


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "groups": 2, "dilation": 2}])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_convolution_computes_with_rounded_weights_and_inputs(options, mode):
    conv = nn.Conv2d(2, 4, 3, padding_mode=mode, **options)
    x = torch.randn(8, 2, 9, 9)
    got = quantize(conv, x)[0](x)
    reference = copy.deepcopy(conv)
    reference.weight.data = torch.from_numpy(int8_by_hand(conv.weight.detach().numpy()))
    rounded = by_hand(x.numpy(), x.min().item(), x.max().item())
    expected = reference(torch.from_numpy(rounded.astype(np.float32)))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_rounding_is_off_by_half_a_step_within_the_range_and_clips_beyond():
    layer = quantize(nn.Linear(2, 4), torch.tensor([[-1.0, 0.0], [2.0, 3.0]]))[0]
    inside, step = torch.linspace(-0.99, 2.99, 301), layer.input_scale.item()
    assert step == pytest.approx(4 / 255)
    assert (layer.quantised_input(inside) - inside).abs().max() <= step / 2 + 1e-6
    assert abs(layer.quantised_input(torch.tensor([9.0])).item() - 3) <= step / 2
    off = (layer.quantised_weight() - layer.weight).abs()
    assert (off <= layer.weight_scale[:, None] / 2 + 1e-7).all()


def test_gradients_pass_through_the_rounding_but_not_where_it_clips():
    layer = quantize(nn.Linear(2, 1), torch.rand(50, 2))[0]
    x = torch.tensor([[0.5, 0.5], [0.5, 7.0]], requires_grad=True)
    layer(x).sum().backward()
    weight = layer.quantised_weight().detach()[0]
    assert x.grad[0].tolist() == weight.tolist()
    assert x.grad[1].tolist() == [weight[0].item(), 0.0]
    expected = layer.quantised_input(x.detach()).sum(0)
    torch.testing.assert_close(layer.weight.grad[0], expected)


def test_training_a_quantised_net_brings_it_nearer_to_its_teacher():
    teacher, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(128, 8)
    student = quantize(teacher, x[:4] * 0.8)[0]  # ranges too small: there is something to learn
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = (student(x) - teacher(x).detach()).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("observer", ["minmax", "histogram"])
@pytest.mark.parametrize("make", [LeNet5, lambda: ResNet14(1, 10)])
def test_nets_stay_near_what_they_were_and_teachers_untouched(make, observer, monkeypatch):
    net, x = lived_in(make()), torch.randn(32, 1, 32, 32)
    net.requires_grad_(False)
    before, random = fingerprint(net), torch.get_rng_state()
    monkeypatch.setattr(calibrate, "BATCH", 20)
    student, step = quantize(net, x, observer=observer)
    assert same(before, fingerprint(net))
    assert torch.equal(random, torch.get_rng_state())
    off = (student(x) - net(x)).abs().max() / net(x).abs().max()
    assert 1e-4 < off < 0.05
    assert not step["skipped"]
    assert json.loads(json.dumps(step)) == step
    assert all(not p.requires_grad for p in student.parameters())


def test_ranges_are_those_of_all_inputs(monkeypatch):
    monkeypatch.setattr(calibrate, "BATCH", 7)
    x = torch.rand(50, 3)
    x[49] = torch.tensor([-1.0, 0.0, 4.0])
    layer = quantize(nn.Linear(3, 2), x)[0]
    assert layer.input_scale.item() == pytest.approx(5 / 255)
    assert layer.input_zero_point.item() == round(255 / 5)


def test_the_histogram_cuts_off_what_is_rare():
    x = torch.randn(4000, 2) ** 5
    wide, narrow = (quantize(nn.Linear(2, 2), x, observer=o)[0] for o in ("minmax", "histogram"))
    assert narrow.input_scale < wide.input_scale


class Branches(nn.Module):
    """Batch normalisation that may be folded (a), and some that may not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.ModuleDict({k: nn.Conv2d(2, 2, 3, padding=1, bias=False) for k in "abcde"})
        self.norm = nn.ModuleDict({k: nn.BatchNorm2d(2) for k in "abcd"})

    def forward(self, x):
        a = self.norm["a"](self.conv["a"](x))
        b = self.conv["b"](x)
        b = self.norm["b"](b) + b  # what it normalises is used again
        c = self.norm["c"](self.conv["c"](x).relu_())  # changed in place in between
        d = self.norm["d"](self.conv["d"](x)) + self.norm["d"](self.conv["e"](x))  # called twice
        return (a + b + c + d).mean((2, 3))


def test_only_batch_normalisation_that_can_be_folded_is():
    net, x = lived_in(Branches()), torch.randn(16, 2, 6, 6)
    student, step = quantize(net, x)
    assert step["folded"] == [["conv.a", "norm.a"]]
    assert list(step["skipped"]) == ["norm.b", "norm.c", "norm.d"]
    assert isinstance(student.norm["a"], nn.Identity)
    off = (student(x) - net(x)).abs().max() / net(x).abs().max()
    assert off < 0.05


def test_folding_is_exact():
    net, x = lived_in(ResNet14(1, 10)).double(), torch.randn(8, 1, 32, 32).double()
    folded, pairs = fold_batchnorm(net, [n for n, m in net.named_modules() if "conv" in n], x)
    assert len(pairs) == 13
    torch.testing.assert_close(folded(x), net(x), rtol=1e-9, atol=1e-9)


class Odd(nn.Module):
    """A net of layers that stay in floating point, each for its reason."""

    def __init__(self):
        super().__init__()
        self.plain, self.kept = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied, self.knot = nn.Linear(4, 4), nn.Linear(4, 4)
        self.knot.weight = self.tied.weight
        self.up, self.idle = nn.ConvTranspose1d(4, 4, 1), nn.Linear(4, 4)
        self.special, self.hooked = Special(4, 4), nn.Linear(4, 4)
        self.hooked.register_forward_hook(lambda *_: None)

    def forward(self, x):
        x = self.knot(self.tied(self.kept(self.plain(x))))
        return self.hooked(self.special(self.up(x[..., None])[..., 0]))


class Special(nn.Linear):
    pass


def test_layers_left_in_floating_point_are_listed_with_reasons():
    _, step = quantize(Odd(), torch.randn(8, 4), keep=("kep?",))
    reasons = step["skipped"]
    assert step["layers"] == ["plain"]
    expected = {
        "kept": "kept in floating point",
        "tied": "tied",
        "knot": "tied",
        "up": "ConvTranspose1d",
        "special": "more than its base class",
        "hooked": "hooks",
        "idle": "no input reaches it",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items())


def test_a_layer_used_twice_is_one_layer_with_the_range_of_both():
    layer = nn.Linear(4, 4)
    net, x = nn.Sequential(layer, nn.ReLU(), layer), torch.rand(64, 4)
    student, step = quantize(net, x)
    assert student[0] is student[2]
    assert step["layers"] == ["0"]
    rebuilt = Quantize.rebuild(net, step)
    rebuilt.load_state_dict(file_state(student))
    assert rebuilt[0] is rebuilt[2]
    assert torch.equal(rebuilt(x), student(x))


@pytest.mark.parametrize("compressed", [False, True])
def test_int8_states_load_exactly_and_are_a_quarter_of_the_bytes(compressed):
    net, x = LeNet5(), torch.randn(16, 1, 32, 32)
    net = apply_plan(net, make_plan(net, "conv3", ranks=0.25)) if compressed else net
    student, step = quantize(net, x)
    state = file_state(student)
    before, after = (
        sum(v.numel() * v.element_size() for v in s.values()) for s in (net.state_dict(), state)
    )
    assert after < 0.3 * before
    loaded = Quantize.rebuild(net, step)
    assert not torch.equal(loaded(x), student(x))
    loaded.load_state_dict(state)
    assert torch.equal(loaded(x), student(x))
    assert state["fc1.weight"].dtype == torch.int8
    floats = Quantize.rebuild(net, step)
    floats.load_state_dict(student.state_dict())
    assert torch.equal(floats(x), student(x))


def test_integer_weights_times_their_scale_are_the_rounded_ones_after_training_too():
    layer = quantize(nn.Conv2d(3, 4, 3), torch.randn(8, 3, 8, 8))[0]
    layer.weight.data *= 1.3  # beyond the range, which clips
    product = layer.integer_weight() * layer.weight_scale[:, None, None, None]
    assert torch.equal(product, layer.quantised_weight())
    assert layer.integer_weight().abs().max() == 128 or layer.integer_weight().max() == 127


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight_scale", torch.tensor([1.0, 0.0])),
        ("weight_scale", torch.tensor([1.0, torch.inf])),
        ("input_scale", torch.tensor(-1.0)),
        ("input_scale", torch.tensor(torch.nan)),
        ("input_zero_point", torch.tensor(256, dtype=torch.int32)),
        ("weight_scale", torch.ones(3)),
    ],
)
def test_states_that_cannot_be_meant_are_refused(key, value):
    layer, _ = quantize(nn.Linear(3, 2), torch.rand(8, 3))
    with pytest.raises(RuntimeError, match=r"scale|zero point"):
        layer.load_state_dict({**file_state(layer), key: value})


@pytest.mark.parametrize(
    "step",
    [
        {},
        {"layers": 3, "folded": []},
        {"layers": ["fc1"]},
        {"layers": ["fc9"], "folded": []},
        {"layers": ["fc1"], "folded": [["conv1", "fc1"]]},
        {"layers": ["fc1"], "folded": [["conv1"]]},
        {"layers": ["fc1"], "folded": [[["conv1"], {}]]},
        {"layers": [""], "folded": []},
    ],
)
def test_malformed_steps_are_refused(step):
    with pytest.raises(ValueError, match=r"Not a quantisation|cannot be"):
        Quantize.rebuild(LeNet5(), step)


class Unique(nn.Linear):
    def __deepcopy__(self, memo):
        raise TypeError("there is only one")


def broken():
    net = nn.Linear(3, 2)
    net.weight.data[0, 0] = torch.nan
    return net


@pytest.mark.parametrize(
    ("net", "inputs", "message"),
    [
        (nn.Sequential(nn.ReLU()), torch.rand(4, 3), "Sequential has none"),
        (broken(), torch.rand(4, 3), "finite weights"),
        (nn.LazyLinear(2), torch.rand(4, 3), "is lazy"),
        (Unique(3, 2), torch.rand(4, 3), "copy.deepcopy"),
        (nn.Linear(3, 2), torch.rand(4, 5), r"rejects those of shape \(2, 5\)"),
        (nn.Linear(3, 2), torch.rand(0, 3), r"N > 0; got \(0, 3\)"),
        (nn.Linear(3, 2), torch.zeros(4, 3, dtype=torch.uint8), "floating-point inputs"),
        (nn.Linear(3, 2), torch.full((4, 3), torch.nan), "finite inputs"),
        (nn.Linear(3, 2), [1.0], "got list"),
    ],
)
def test_bad_nets_and_inputs_are_refused(net, inputs, message):
    with pytest.raises(ValueError, match=message):
        quantize(net, inputs)


def test_unknown_observers_and_quantised_nets_are_refused():
    net, x = nn.Linear(3, 2), torch.rand(4, 3)
    with pytest.raises(ValueError, match="expected 'histogram' or 'minmax'; got 'best'"):
        quantize(net, x, observer="best")
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantize(net, x)[0], x)


def test_dead_channels_and_inputs_of_zeros_stay_finite():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].weight.data.zero_()
    net[0].bias.data.zero_()
    student, _ = quantize(net, torch.rand(8, 3))
    assert torch.equal(student(torch.rand(5, 3)), net[1].bias.expand(5, 2))


TORCHVISION = {
    "resnet18": (lambda: models.resnet18(num_classes=10), 21),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=10, width_mult=0.5), 53),
    "shufflenet": (lambda: models.shufflenet_v2_x0_5(num_classes=10), 57),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_nets_are_quantised_throughout(name):
    make, layers = TORCHVISION[name]
    net, x = lived_in(make()), torch.randn(8, 3, 32, 32)
    student, step = quantize(net, x)
    assert len(step["layers"]) == layers
    assert len(step["folded"]) == layers - 1
    assert not step["skipped"]
    assert (student(x) - net(x)).abs().max() < 0.1 * net(x).abs().max()
    kinds = [type(m) for m in student.modules() if isinstance(m, FakeQuantized)]
    assert len(kinds) == layers
    assert QuantizedConv2d in kinds
    student(x).sum().backward()
