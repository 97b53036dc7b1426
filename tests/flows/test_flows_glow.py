"""Glow's start from data."""

import pytest
import torch

from freia_kd.flows import Glow
from freia_kd.flows.blocks import ClassAffine, Conv1x1


def images(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Dark images whose right halves hardly change, and labels."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 + 0.2 * torch.rand(n, 1, 8, 8, generator=generator)
    x[..., 4:] = 0.05 + 0.01 * x[..., 4:]
    return x, torch.arange(n) % 3


def test_every_scale_begins_with_channels_of_mean_0_and_variance_1() -> None:
    flow = Glow((1, 8, 8), classes=3, levels=2, steps=2, hidden_features=8, squash="linear")
    x, c = images()
    first = next(m for m in flow.modules() if isinstance(m, Conv1x1))
    start, found = first.matrix().detach(), []
    flow.initialize(x, c)
    with torch.no_grad():
        for module in flow.modules():
            if isinstance(module, Conv1x1):
                module.register_forward_hook(lambda m, _, out: found.append(out[0][0]))
        flow.log_prob(x, c)
    rotated = torch.einsum("ij,bjhw->bihw", start.inverse(), found[0])
    torch.testing.assert_close(rotated.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(rotated.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_a_start_from_data_is_nearer_to_them_and_still_exact() -> None:
    flow = Glow((1, 8, 8), classes=3, levels=2, steps=2, hidden_features=8, squash="linear")
    x, c = images()
    with torch.no_grad():
        before = flow.log_prob(x, c).mean()
        flow.initialize(x, c)
        after = flow.log_prob(x, c).mean()
        z, ladj = flow.encode(x, c)
        back, inverse = flow.decode(z, c)
    assert after > before + 64 * 0.5  # half a nat a pixel
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(ladj, -inverse, atol=1e-3, rtol=1e-5)
    shifts = [m.shift for m in flow.modules() if isinstance(m, ClassAffine)]
    assert all(shift.requires_grad and shift.any() for shift in shifts)


def test_vectors_and_flows_without_classes_begin_from_data() -> None:
    flow = Glow((4,), classes=None, steps=2, hidden_features=8)
    x = 5 + 0.1 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = flow.log_prob(x).mean()
        flow.initialize(x)
        assert flow.log_prob(x).mean() > before + 1


def test_one_input_has_no_variance() -> None:
    with pytest.raises(ValueError, match="at least 2 inputs"):
        Glow((1, 8, 8), classes=None).initialize(torch.rand(1, 1, 8, 8))
