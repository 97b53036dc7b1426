"""`examples/custom_compression.py`: a method of one's own, from a file to a student and back."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from freia_kd.compression import get_compression, load_classifier, method_of
from freia_kd.domain import Domain
from freia_kd.errors import ConfigError, UsageError
from freia_kd.teachers import Classifier, save_classifier
from freia_kd.teachers.mlp import MLP

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_compression.py"
PATH = "custom_compression:Responses"
TABLE = Domain((20,), 6)


@pytest.fixture
def responses(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    yield get_compression(PATH)
    sys.modules.pop("custom_compression", None)


@pytest.fixture
def net():
    """Inputs with 3 components of note, of which a layer's outputs have no more."""
    torch.manual_seed(0)
    return MLP(20, 6, (30, 24)).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    return x + 1e-3 * torch.randn(300, 20, generator=generator)


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_it_keeps_what_the_inputs_use(responses, net, inputs):
    before = net(inputs)
    made = responses(energy=0.999).apply(net, inputs)
    assert made.step["layers"]["layers.0"]["ranks"] == [3]
    assert (made.net(inputs) - before).norm() < 0.1 * before.norm()
    tight = responses(energy=0.5).apply(net, inputs)
    assert tight.step["layers"]["layers.0"]["ranks"] < [3]
    assert torch.equal(net(inputs), before)


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_exact_at_full_rank_of_what_is_seen(responses, inputs, bias):
    few = inputs[:4]
    net = nn.Linear(20, 16, bias=bias).eval()
    made = responses(energy=1 - 1e-12).apply(net, few)
    assert made.step["layers"][""]["ranks"] == [4]
    torch.testing.assert_close(made.net(few), net(few), rtol=1e-4, atol=1e-5)


def test_files_load_if_the_code_is_trusted(responses, net, inputs, tmp_path):
    made = responses().apply(net, inputs)
    assert made.step["method"] == PATH
    assert method_of(made.step, [PATH]).describe(made.step).endswith("at lower ranks")
    path = tmp_path / "student.safetensors"
    student = Classifier(made.net, TABLE, "mlp")
    save_classifier(path, student, {"compression": [made.step]})
    with pytest.raises(UsageError, match=f"{PATH}', which is code of its own"):
        load_classifier(path)
    assert torch.equal(load_classifier(path, trusted=[PATH])(inputs), student(inputs))


@pytest.mark.parametrize("rank", [0, 10**9])
def test_steps_that_lie_are_refused(responses, net, rank):
    step = {"layers": {"layers.0": {"method": "svd", "ranks": [rank]}}}
    with pytest.raises(ValueError, match="rank"):
        responses.rebuild(net, step)


def test_its_options_are_checked(responses):
    with pytest.raises(ConfigError, match=r"responses\.energy: expected less than 1"):
        responses(energy=1.5)
