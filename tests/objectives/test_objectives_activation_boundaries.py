import numpy as np
import pytest
import torch
from torch import nn

from freia_kd.objectives import ActivationBoundaries, boundary_layers


def make_net(channels, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, channels, 3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(channels * 4, 6),
            nn.ReLU(inplace=True),
            nn.Linear(6, 3),
        ).double()


@pytest.fixture
def nets():
    return make_net(2, 0), make_net(5, 1).requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def make_loss(nets, x, **options):
    options = {"generator": torch.Generator().manual_seed(3)} | options
    return ActivationBoundaries(*nets, {"0": "0", "3": "3"}, x, **options)


def observe(loss, nets, x):
    with loss.observe(*nets) as features:
        nets[0](x)
        nets[1](x)
    return features


def test_loss_is_the_paper_s(nets, x):
    loss = make_loss(nets, x, margin=0.7)
    expected = 0.0
    for connector, depth in zip(loss.connectors, (1, 4), strict=True):
        s = connector(nets[0][:depth](x)).detach().numpy()
        t = nets[1][:depth](x).numpy()
        summands = [
            max(0.0, 0.7 - a) ** 2 if b > 0 else max(0.0, 0.7 + a) ** 2
            for a, b in zip(s.ravel(), t.ravel(), strict=True)
        ]
        expected += np.mean(summands)
    np.testing.assert_allclose(loss(observe(loss, nets, x)).item(), expected)


def test_gradients_reach_student_and_connectors_only(nets, x):
    student, teacher = nets
    teacher.requires_grad_(True)
    loss = make_loss(nets, x)
    loss(observe(loss, nets, x)).backward()
    assert all(p.grad.abs().sum() > 0 for p in [*student[:4].parameters(), *loss.parameters()])
    assert all(p.grad is None for p in teacher.parameters())


def test_hooks_are_removed(nets, x):
    loss = make_loss(nets, x)
    observe(loss, nets, x)
    assert not any(m._forward_hooks for net in nets for m in net.modules())


def test_connectors_come_from_the_generator(nets, x):
    state = torch.get_rng_state()
    one, two = make_loss(nets, x), make_loss(nets, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.connectors[0].weight, two.connectors[0].weight)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ({}, {}, "at least one pair"),
        ({"conv9": "0"}, {}, "layer of the student, one of 0, 1, .*got 'conv9'"),
        ({"0": "conv9"}, {}, "layer of the teacher"),
        ({"0": "3"}, {}, "differ in channels only at '0'"),
        ({"0": "0"}, {"margin": 0.0}, "positive margin"),
    ],
)
def test_misuse_is_refused(nets, x, layers, options, message):
    with pytest.raises(ValueError, match=message):
        ActivationBoundaries(*nets, layers, x, **options)


def test_unobserved_layers_are_named(nets, x):
    loss = make_loss(nets, x)
    with loss.observe(*nets) as features:
        nets[0](x)
    with pytest.raises(ValueError, match="Run student and teacher inside observe"):
        loss(features)


def test_layers_of_equal_size_need_no_connector(nets, x):
    loss = make_loss(nets, x)
    assert [isinstance(c, nn.Identity) for c in loss.connectors] == [False, True]


def test_layers_before_a_relu_are_found_however_it_is_called(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
            self.plain = nn.Conv2d(2, 2, 1)
            self.inplace = nn.Sequential(nn.Linear(8, 5), nn.ReLU6(inplace=True))
            self.tail = nn.Linear(5, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = torch.relu(self.block(x))
            x = torch.relu(self.plain(x) + x)  # a sum is no layer's output
            return self.head(nn.functional.leaky_relu(self.tail(self.inplace(x.flatten(1)))))

    net = Net().double()
    found = boundary_layers(net, x)
    assert found == {"block.1": (2, 2, 2), "inplace.0": (5,), "tail": (4,)}
    assert list(found) == ["block.1", "inplace.0", "tail"]
    assert not any(m._forward_hooks for m in net.modules())


def test_nets_are_left_as_they_were():
    nets = [nn.Sequential(nn.Conv2d(1, k, 3), nn.BatchNorm2d(k), nn.ReLU()) for k in (2, 3)]
    nets[1][1].eval()
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    x = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert boundary_layers(nets[0], x) == {"1": (2, 3, 3)}
    ActivationBoundaries(*nets, {"1": "1"}, x)
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [[m.training for m in net] for net in nets] == [[True] * 3, [True, False, True]]
