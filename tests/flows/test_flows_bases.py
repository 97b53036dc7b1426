import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from freia_kd.domain import DOMAINS, Domain
from freia_kd.flows import bases
from freia_kd.flows.bases import GaussianBase, SpectralBase, dct_matrix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bases_to_test():
    means = [[0.3, -0.5]] * 8
    return {
        "gaussian": GaussianBase((5,)),
        "scaled": GaussianBase((3,), (1.0, -2.0, 750.0), (0.1, 3.0, 300.0)),
        "grey": SpectralBase((1, 6, 5)),
        "colour": SpectralBase((3, 4, 4)),
        "means": SpectralBase((2, 3, 4), weights=range(1, 9), means=means),
        "one row": SpectralBase((1, 1, 4)),
        "fitted": SpectralBase.for_domain(DOMAINS["mnist"]),
    }


@pytest.mark.parametrize("name", list(bases_to_test()))
def test_whiten_is_undone_by_unwhiten(name):
    base = bases_to_test()[name].double()
    z = base.sample(4, generator=generator())
    assert z.shape == (4, *base.shape)
    # The constants are those of the default dtype.
    assert torch.allclose(base.unwhiten(base.whiten(z)), z, atol=1e-5)


def test_dct_is_orthonormal_and_starts_with_the_mean():
    matrix = dct_matrix(7)
    assert torch.allclose(matrix @ matrix.T, torch.eye(7, dtype=torch.float64))
    assert torch.allclose(matrix[0], torch.full((7,), 1 / math.sqrt(7), dtype=torch.float64))


def test_gaussian_against_torch():
    z = torch.randn(3, 5)
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    assert torch.allclose(GaussianBase((5,)).log_prob(z), expected)


def test_a_gaussian_of_a_domain_has_its_statistics():
    domain = Domain((2,), 3, (750.0, -1.0), (300.0, 0.1))
    base, normal = (
        GaussianBase.for_domain(domain),
        torch.distributions.Normal(torch.tensor(domain.mean), torch.tensor(domain.std)),
    )
    z = base.sample(4000, generator=generator())
    assert torch.allclose(base.log_prob(z), normal.log_prob(z).sum(1), atol=1e-4)
    assert torch.allclose(domain.normalize(z).mean(0), torch.zeros(2), atol=0.05)
    assert torch.allclose(domain.normalize(z).std(0), torch.ones(2), atol=0.05)
    assert torch.allclose(base.whiten(z), domain.normalize(z), atol=1e-4)
    cold = base.sample(4000, temperature=0.1, generator=generator())
    assert torch.allclose(domain.normalize(cold), 0.1 * domain.normalize(z), atol=1e-4)
    for one in (Domain((3,), 2, (5.0,), (2.0,)), Domain((3,), 2, (5.0,) * 3, (2.0,) * 3)):
        x = torch.tensor([[5.0, 7.0, 3.0]])
        expected = torch.distributions.Normal(5.0, 2.0).log_prob(x).sum(1)
        assert torch.allclose(GaussianBase.for_domain(one).log_prob(x), expected)
    with pytest.raises(ValueError, match="Expected a domain of vectors"):
        GaussianBase.for_domain(DOMAINS["mnist"])


def test_spectral_density_is_the_mixture_it_says():
    """Against torch's own mixture of full-covariance Gaussians in pixel space."""
    means = torch.tensor([[0.5, -1.0], [0.0, 2.0]], dtype=torch.float64)
    base = SpectralBase(
        (2, 2, 3),
        exponents=(2.0, 3.0),
        contrasts=(1.0, 4.0),
        weights=(0.2, 0.8),
        means=means.tolist(),
    ).double()
    z = base.sample(6, generator=generator())
    inverse = torch.stack(
        [
            base.inverse_dct(e.view(1, 2, 2, 3)).flatten()
            for e in torch.eye(12, dtype=torch.float64)
        ],
        1,
    )
    components = []
    for std in base.std:
        for contrast, weight, mean in zip(base.contrasts, base.weights, means, strict=True):
            covariance = contrast**2 * inverse @ torch.diag(std.flatten() ** 2) @ inverse.T
            centre = mean.repeat_interleave(6)
            normal = torch.distributions.MultivariateNormal(centre, covariance)
            components.append(normal.log_prob(z.flatten(1)) + (weight / 2).log())
    assert torch.allclose(base.log_prob(z), torch.logsumexp(torch.stack(components), 0), atol=1e-8)


def test_spectral_density_integrates_to_one():
    base = SpectralBase((1, 1, 1)).double()

    def density(value):
        return base.log_prob(torch.full((1, 1, 1, 1), value, dtype=torch.float64)).exp().item()

    total, _ = quad(density, -200, 200, points=[-5, 0, 5], limit=200)
    assert total == pytest.approx(1, abs=1e-4)


def test_samples_have_the_spectrum_and_the_contrast():
    base = SpectralBase((1, 8, 8), exponents=(2.0,), contrasts=(3.0,), offset=0.5).double()
    z = base.sample(20_000, generator=generator())
    power = base.dct(z).square().mean(0)[0]
    assert power[0, 4] / power[0, 2] == pytest.approx(2.0**-2, rel=0.1)
    assert power[4, 0] / power[2, 0] == pytest.approx(2.0**-2, rel=0.1)
    assert (z - z.mean((2, 3), keepdim=True)).square().mean().sqrt().item() == pytest.approx(
        3, rel=0.03
    )
    assert z.mean((1, 2, 3)).std().item() == pytest.approx(0.5 * 3, rel=0.05)


def test_temperature_scales_around_the_mean():
    base = SpectralBase((1, 4, 4), means=[[2.0]] * 8)
    hot, cold = base.sample(3, 1.0, generator()), base.sample(3, 0.25, generator())
    assert torch.allclose((hot - 2) / 4, cold - 2, atol=1e-5)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_fitted_pixels_have_the_mean_and_std_of_the_domain(name):
    domain = DOMAINS[name]
    x = torch.sigmoid(SpectralBase.for_domain(domain).sample(6_000, generator=generator()))
    assert x.mean((0, 2, 3)).tolist() == pytest.approx(domain.mean, abs=0.015)
    assert x.std((0, 2, 3)).tolist() == pytest.approx(domain.std, abs=0.015)


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0,)), ((0.5,), (0.5,))])
def test_statistics_that_were_not_measured_are_ignored(mean, std):
    base = SpectralBase.for_domain(Domain((1, 4, 4), 10, mean, std))
    assert base.means.abs().max() == 0
    assert torch.allclose(base.weights, torch.full((8,), 1 / 8))


def test_largest_entropy_weights():
    values = np.array([0.0, 1.0, 3.0])
    weights = bases._largest_entropy_weights(values, 1.0)
    assert weights @ values == pytest.approx(1.0, abs=1e-4)
    ratio = np.log(weights[1:] / weights[:-1]) / np.diff(values)
    assert ratio[0] == pytest.approx(ratio[1], abs=1e-6)  # log-weights are linear in the values
    assert bases._largest_entropy_weights(values, 99.0).min() > 0.01  # out of reach: the bound


def test_the_same_seed_gives_the_same_sample():
    base = SpectralBase((1, 4, 4))
    assert torch.equal(
        base.sample(3, generator=generator(1)), base.sample(3, generator=generator(1))
    )
    assert not torch.equal(
        base.sample(3, generator=generator(1)), base.sample(3, generator=generator(2))
    )


def test_faults():
    with pytest.raises(ValueError, match="shape"):
        SpectralBase((4,))
    with pytest.raises(ValueError, match="weights"):
        SpectralBase((1, 4, 4), weights=[1.0])
    with pytest.raises(ValueError, match="positive"):
        SpectralBase((1, 4, 4), contrasts=(1.0, -1.0))


@pytest.mark.parametrize("name", list(bases_to_test()))
def test_autocast_does_not_cost_precision(name):
    base = bases_to_test()[name]
    z = base.sample(4, generator=generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = base.log_prob(z), base.sample(4, generator=generator()), base.whiten(z)
    outside = base.log_prob(z), base.sample(4, generator=generator()), base.whiten(z)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
