import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.stats import norm
from tiny_flows import IMAGE, Sigmoid, TinyFlow

from freia_kd.flows.bases import GaussianBase, SpectralBase
from freia_kd.objectives import BasePrior, GaussianPrior, SpectralPrior, TotalVariation


@pytest.fixture
def image_flow():
    return TinyFlow(IMAGE, squash=Sigmoid()).double()


@pytest.fixture
def images():
    return torch.rand(
        5, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()


def evaluate(prior, x, flow=None):
    return prior(flow, x, x, x.new_zeros(len(x)))


def test_total_variation(images):
    x = images.detach().numpy()
    expected = [
        sum(
            abs(image[c, i, j] - image[c, k, m])
            for c in range(2)
            for i in range(6)
            for j in range(8)
            for k, m in ((i + 1, j), (i, j + 1))
            if k < 6 and m < 8
        )
        for image in x
    ]
    log_prob = evaluate(TotalVariation(weight=0.7), images)
    np.testing.assert_allclose(log_prob.detach(), -0.7 * np.array(expected))


def test_spectral_prior(images):
    y = dctn(images.detach().numpy(), axes=(2, 3), norm="ortho")
    f = np.hypot(np.arange(6)[:, None] / 6, np.arange(8)[None, :] / 8)
    f[0, 0] = np.inf
    power = f**-3.0
    variance = power / power.sum() * 0.2**2 * 48
    variance[0, 0] = np.inf  # the mean is free
    expected = -0.5 * (y**2 / variance).sum((1, 2, 3))
    log_prob = evaluate(SpectralPrior(exponent=3.0, std=0.2), images)
    np.testing.assert_allclose(log_prob.detach(), expected)


def test_spectral_prior_expects_its_own_samples():
    """Samples of the density have -2 log p of one per dimension, and the std given."""
    prior = SpectralPrior(exponent=2.0, std=0.2)
    std = prior._precision(16, 16).pow(-0.5)
    std[0, 0] = 0.0
    generator = torch.Generator().manual_seed(0)
    y = std * torch.randn(400, 1, 16, 16, generator=generator, dtype=torch.float64)
    x = torch.from_numpy(idctn(y.numpy(), axes=(2, 3), norm="ortho"))
    assert 0.19 < x.std() < 0.21
    np.testing.assert_allclose(-2 * evaluate(prior, x).mean().item(), 255, rtol=0.02)


def test_gaussian_prior():
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
    expected = norm(scale=1.7).logpdf(x.numpy()).sum(1)
    np.testing.assert_allclose(evaluate(GaussianPrior(1.7), x), expected)


def test_base_prior_is_a_density_of_pixels():
    """It integrates to 1 over the unit square of two pixels."""
    shape = (1, 1, 2)
    flow = TinyFlow(shape, squash=Sigmoid()).double()
    steps = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    x = torch.cartesian_prod(steps, steps).reshape(-1, *shape)
    u = x.logit()
    log_prob = BasePrior(GaussianBase(shape).double())(flow, u, *flow.to_input(u))
    np.testing.assert_allclose(log_prob.exp().mean().item(), 1.0, rtol=1e-3)


def test_base_prior_takes_the_flows_own_base(image_flow):
    u = torch.randn(3, *IMAGE, dtype=torch.float64)
    x, ladj = image_flow.to_input(u)
    own = BasePrior()(image_flow, u, x, ladj)
    assert torch.equal(own, BasePrior(image_flow.base)(image_flow, u, x, ladj))
    other = BasePrior(SpectralBase(IMAGE).double())(image_flow, u, x, ladj)
    assert not torch.allclose(own, other)


@pytest.mark.parametrize("prior", [TotalVariation(0.5), SpectralPrior(), GaussianPrior(2.0)])
def test_gradients(prior, images):
    assert torch.autograd.gradcheck(lambda x: evaluate(prior, x), images[:1, :1, :3, :3])


@pytest.mark.parametrize("prior", [TotalVariation(), SpectralPrior()])
def test_smooth_images_are_likelier(prior):
    ramp = torch.linspace(0, 1, 16, dtype=torch.float64).expand(1, 1, 16, 16)
    shuffled = ramp[..., torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    assert evaluate(prior, ramp) > evaluate(prior, shuffled)
