import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from freia_kd.errors import UsageError
from freia_kd.objectives import DIVERGENCES, forward_kl


def mixture(p, q):
    return (rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)) / 2


def centred(logits):
    return logits - logits.mean(1, keepdims=True)


SUMMANDS = {
    "forward-kl": lambda s, t, p, q, T: T**2 * rel_entr(p, q).sum(1),
    "reverse-kl": lambda s, t, p, q, T: T**2 * rel_entr(q, p).sum(1),
    "js": lambda s, t, p, q, T: T**2 * mixture(p, q).sum(1),
    "l1": lambda s, t, p, q, T: np.abs(s - t).mean(1) / T,
    "centred-l1": lambda s, t, p, q, T: np.abs(centred(s) - centred(t)).mean(1) / T,
    "centred-mse": lambda s, t, p, q, T: ((centred(s) - centred(t)) ** 2).mean(1) / T**2,
}


def draw_logits(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return [3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 2, 2)])
@pytest.mark.parametrize("name", SUMMANDS)
def test_divergence(name, shape, temperature):
    student, teacher = draw_logits(*shape)
    s, t = student.numpy(), teacher.numpy()
    q, p = softmax(s / temperature, 1), softmax(t / temperature, 1)
    expected = SUMMANDS[name](s, t, p, q, temperature).mean()
    divergence = DIVERGENCES[name]
    np.testing.assert_allclose(divergence(student, teacher, temperature).item(), expected)
    assert abs(divergence(student, student, temperature).item()) < 1e-12
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: divergence(s, teacher, temperature), student)


@pytest.mark.parametrize("name", SUMMANDS)
def test_extreme_logits_stay_finite(name):
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = DIVERGENCES[name](student, torch.tensor([[-1e4, 1e4, 0.0]]))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_registry_knows_them_all():
    assert list(DIVERGENCES) == list(SUMMANDS)
    with pytest.raises(
        UsageError, match="Unknown divergence 'hellinger'; known ones are forward-kl"
    ):
        DIVERGENCES["hellinger"]


def test_misfits_are_refused():
    with pytest.raises(ValueError, match=r"same shape.*got \(2, 3\) and \(2, 4\)"):
        forward_kl(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="positive temperature"):
        forward_kl(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)


@pytest.mark.parametrize("name", SUMMANDS)
def test_all_but_l1_are_blind_to_a_constant_added_to_all_logits(name):
    student, teacher = draw_logits(5, 3)
    before = DIVERGENCES[name](student, teacher)
    after = DIVERGENCES[name](student + torch.arange(5.0)[:, None], teacher - 4.0)
    assert torch.isclose(before, after) == (name != "l1")


def test_kl_at_a_large_temperature_is_half_the_centred_squared_error():
    student, teacher = draw_logits(5, 3)
    kl, error = forward_kl(student, teacher, 1e4), DIVERGENCES["centred-mse"](student, teacher)
    np.testing.assert_allclose(kl.item(), error.item() * 1 / 2, rtol=1e-3)


def test_the_temperature_keeps_the_size_of_gradients():
    """Without the factor of T^2 they would fall as its inverse."""
    student, teacher = draw_logits(50, 10)
    student.requires_grad_()
    sizes = [
        torch.autograd.grad(forward_kl(student, teacher, T), student)[0].norm().item()
        for T in (8.0, 32.0)
    ]
    assert 0.8 < sizes[1] / sizes[0] < 1.25
