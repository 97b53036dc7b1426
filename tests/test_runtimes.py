"""A runtime gives what torch gives, of several nets in one export, and changes none of them."""

import pytest
import torch
from torch import nn

from freia_kd.errors import ExportError
from freia_kd.runtimes import InOnnxRuntime, in_runtime


def nets():
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.ReLU())
    return [norm, nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 8, 3))]


@pytest.mark.parametrize("batch", [1, 5])
def test_onnxruntime_gives_what_torch_gives(batch):
    own = nets()
    forms = in_runtime("onnxruntime", own, (3, 8, 8))
    x = torch.randn(batch, 3, 8, 8)
    for net, form in zip(own, forms, strict=True):
        assert isinstance(form, InOnnxRuntime)
        assert net.training
        torch.testing.assert_close(form(x), net.eval()(x).detach(), rtol=1e-4, atol=1e-5)


def test_nets_of_other_types_are_run_in_float32_and_left_as_they_are():
    net = nn.Linear(3, 2).double()
    (form,) = in_runtime("onnxruntime", [net], (3,))
    x = torch.randn(4, 3)
    torch.testing.assert_close(form(x), net(x.double()).detach().float())
    assert net.weight.dtype == torch.float64


def test_torch_runs_the_nets_themselves():
    own = nets()
    assert all(a is b for a, b in zip(in_runtime("torch", own, (3, 8, 8)), own, strict=True))


class Undecided(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_a_net_that_cannot_be_exported_is_refused_in_one_line():
    with pytest.raises(ExportError, match=r"cannot export the net for a batch of any size \(.*\)"):
        in_runtime("onnxruntime", [Undecided()], (3,))
