"""The flow of the published code."""

import torch

from freia_kd.experiments.keflow import KeFlow


def test_it_has_the_published_weights():
    flow = KeFlow((1, 32, 32), 10)
    assert sum(p.numel() for p in flow.parameters()) == 36_732_288


def test_both_directions_are_exact():
    torch.manual_seed(0)
    flow = KeFlow((1, 2, 4), 3, transforms=3, hidden_features=7).double()
    z, c = torch.randn(4, 1, 2, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
    x, ladj = flow.decode(z, c)
    back, other = flow.encode(x, c)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(ladj, -other)
    for row in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, row=row: flow.decode(one[None], c[row : row + 1])[0][0], z[row]
        ).view(8, 8)
        torch.testing.assert_close(ladj[row], torch.linalg.slogdet(jacobian)[1])


def test_it_is_not_the_identity_at_the_start_and_knows_the_class():
    torch.manual_seed(0)
    flow = KeFlow((1, 4, 4), 3, hidden_features=16)
    z = torch.randn(5, 1, 4, 4)
    first, second = (flow.decode(z, torch.full((5,), c))[0] for c in (0, 1))
    assert (first - z.sigmoid()).abs().max() > 0.01
    assert not torch.equal(first, second)


def test_every_parameter_learns():
    torch.manual_seed(0)
    flow = KeFlow((1, 4, 4), 3, hidden_features=16)
    x, ladj = flow.decode(torch.randn(8, 1, 4, 4), torch.arange(8) % 3)
    (x.square().sum() + ladj.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())
