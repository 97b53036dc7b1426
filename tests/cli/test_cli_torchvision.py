"""torchvision's nets with random weights through the whole command, on tiny settings."""

import json

import pytest
import torch
from click.testing import CliRunner
from torchvision import models

import freia_kd
from freia_kd.cli.main import main

FACTORIES = """
from torch import nn
from torchvision import models

def resnet18():
    return models.resnet18(num_classes=10)

def mobilenet_v2():
    return models.mobilenet_v2(num_classes=10, width_mult=0.25)

def vgg11_bn():  # a quarter as wide, since a search passes images through it eighty times
    features = [16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"]
    net = models.VGG(models.vgg.make_layers(features, batch_norm=True), num_classes=10)
    net.classifier = nn.Sequential(nn.Linear(128 * 49, 32), nn.ReLU(), nn.Linear(32, 10))
    return net
"""
DOMAIN = ["--input-shape", "3,32,32", "--mean", ".5", "--std", ".25", "--classes", "10"]


@pytest.fixture
def distill(tmp_path, monkeypatch, quick):
    """Arguments of a run whose teacher is one of torchvision's nets."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torchvision_factories.py").write_text(FACTORIES)
    import torchvision_factories

    def arguments(name):
        torch.manual_seed(0)
        file = tmp_path / "teacher.pt"
        torch.save(getattr(torchvision_factories, name)().state_dict(), file)
        out = ["--out", tmp_path / "run", "--preset", "quick", "--device", "cpu", "--json"]
        synthesizer = ["--arch", f"torchvision_factories:{name}", "--synthesizer", "spectral"]
        return ["distill", "--teacher", file, *DOMAIN, *synthesizer, *out]

    return arguments


def report(arguments, folder):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    assert (folder / "report.html").exists()
    return json.loads(result.stdout)


def parameters(student):
    return [student["costs"][which]["parameters"] for which in ("after", "before")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn"])
def test_students_and_a_budget(name, distill, tmp_path):
    arguments = distill(name)
    found = report([*arguments, "--student", 2], tmp_path / "run")
    assert parameters(found["students"][0]) == sorted(parameters(found["students"][0]))
    found = report([*arguments, "--resume", "--target-params", 0.5], tmp_path / "run")
    after, before = parameters(found["students"][1])
    assert after <= 0.5 * before
    arch = f"torchvision_factories:{name}"
    student = freia_kd.load_student(tmp_path / "run/student-params-0.5.pt", arch)
    assert student(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_a_net_of_torchvision_by_its_own_name(tmp_path):
    torch.manual_seed(0)
    torch.save(models.mobilenet_v3_small().state_dict(), tmp_path / "teacher.pt")
    arguments = ["compress", "--teacher", tmp_path / "teacher.pt", "--out", tmp_path / "small.pt"]
    arguments += ["--arch", "torchvision.models:mobilenet_v3_small", *DOMAIN[:-1], "1000"]
    arguments += ["--layers", "classifier.*", "--ranks", "0.25", "--json"]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    student = freia_kd.load_student(tmp_path / "small.pt", "torchvision.models:mobilenet_v3_small")
    assert student(torch.rand(2, 3, 32, 32)).shape == (2, 1000)
