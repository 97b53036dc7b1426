"""torchvision's nets with random weights: compressed, run, trained, saved and loaded."""

import pytest
import torch
from torch import nn
from torchvision import models

from freia_kd.compression import (
    apply_plan,
    count_macs,
    count_parameters,
    make_plan,
    student_plan,
)
from freia_kd.compression.tucker.plan import restructure
from freia_kd.compression.tucker.search import search_plan


def vgg11_bn():
    """VGG11-BN without the two layers that hold nine tenths of its 129 million weights.

    torchvision makes all of them first, which takes half a gigabyte.
    """
    net = models.vgg11_bn(num_classes=10, dropout=0.0)
    net.classifier[0], net.classifier[3] = nn.Linear(25088, 32), nn.Linear(32, 4096)
    return net


NETS = {
    "resnet18": (lambda: models.resnet18(num_classes=10), ["layer2.0.*", "fc"], (3, 32, 32)),
    "mobilenet_v2": (
        lambda: models.mobilenet_v2(num_classes=10, width_mult=0.5, dropout=0.0),
        ["all"],
        (3, 32, 32),
    ),
    "vgg11_bn": (vgg11_bn, ["features.4", "classifier.6"], (3, 32, 32)),
}


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", pytest.param("vgg11_bn", marks=pytest.mark.slow)]
)
def test_compressed_nets_run_train_save_and_load(name, tmp_path):
    torch.manual_seed(0)
    build, layers, shape = NETS[name]
    net = build()
    plan = make_plan(net, layers, ranks=0.25, shape=shape)
    small = apply_plan(net, plan)
    assert plan.layers
    assert count_parameters(small) < count_parameters(net)
    assert count_macs(small, shape) < count_macs(net, shape)

    small.train()
    x = torch.randn(2, *shape)
    small(x).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    new = [m for name in plan.layers for m in small.get_submodule(name)]
    assert all(layer.weight.grad.any() for layer in new)

    torch.save(small.state_dict(), tmp_path / "student.pt")
    loaded = restructure(build(), plan.to_dict())
    loaded.load_state_dict(torch.load(tmp_path / "student.pt", weights_only=True))
    torch.testing.assert_close(loaded.eval()(x), small.eval()(x), rtol=0, atol=0)


def test_mobilenet_leaves_depthwise_layers_alone():
    net = NETS["mobilenet_v2"][0]()
    plan = make_plan(net, ranks=0.25)
    depthwise = {n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert depthwise <= {name for name, reason in plan.skipped.items() if reason == "depthwise"}
    assert {plan.layers[n].method for n in plan.layers} == {"svd", "tucker2"}
    pointwise = plan.layers["features.2.conv.0.0"]
    assert pointwise.method == "svd"


def test_mobilenet_meets_a_budget():
    torch.manual_seed(0)
    net = NETS["mobilenet_v2"][0]()
    x = torch.randn(4, 3, 32, 32)
    found = search_plan(net, x, "params", 0.6, shares=(0.6, 0.3))
    assert count_parameters(apply_plan(net, found.plan)) <= 0.6 * count_parameters(net)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_students_of_whole_nets(name):
    torch.manual_seed(0)
    net = NETS[name][0]()
    plan = student_plan(net, name, "2", shape=(3, 32, 32))
    small = apply_plan(net, plan)
    assert count_parameters(small) < 0.5 * count_parameters(net)
    assert small.eval()(torch.randn(1, 3, 32, 32)).isfinite().all()
