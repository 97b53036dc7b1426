"""EVBMF against planted ranks, and against a brute-force minimum of the free energy."""

import time

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from freia_kd.compression.tucker.evbmf import detection_threshold, evbmf, evbmf_rank, free_energy


def noisy(shape, rank, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    a = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    b = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    return a @ b + noise * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(12, 60), (60, 12), (40, 40), (100, 1000), (64, 576)])
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("noise", [1e-6, 0.05, 0.5])
def test_finds_the_planted_rank_and_the_noise(shape, rank, noise):
    for seed in range(3):
        found = evbmf(noisy(shape, rank, noise, seed))
        assert found.rank == rank
        assert found.noise_variance == pytest.approx(noise**2, rel=0.35)
        assert evbmf_rank(noisy(shape, rank, noise, seed).float()) == rank


def test_shrunken_factors_are_nearer_to_the_truth_than_the_truncated_svd():
    clean, seen = noisy((40, 200), 3, 0.0), noisy((40, 200), 3, 1.5)
    found = evbmf(seen)
    u, s, vh = torch.linalg.svd(seen, full_matrices=False)
    assert found.rank == 3
    assert (found.s < s[:3]).all()
    estimate = found.u * found.s @ found.v.T
    truncated = u[:, :3] * s[:3] @ vh[:3]
    assert (estimate - clean).norm() < (truncated - clean).norm()


@pytest.mark.parametrize("shape", [(20, 200), (200, 20), (50, 50), (1, 30), (30, 1)])
def test_pure_noise_has_rank_zero_before_the_minimum(shape):
    for seed in range(5):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        assert evbmf_rank(matrix, minimum=0) == 0
        assert evbmf_rank(matrix) == 1
        assert evbmf(matrix).s.shape == (0,)


def test_no_noise_and_no_signal():
    assert evbmf_rank(noisy((30, 90), 4, 0.0)) == 4
    assert evbmf_rank(torch.zeros(3, 4), minimum=0) == 0
    assert evbmf(torch.zeros(3, 4)).noise_variance == 0.0


def test_orientation_and_scale_change_nothing():
    matrix = noisy((20, 70), 4, 0.8)
    wide, tall, scaled = evbmf(matrix), evbmf(matrix.T), evbmf(1e-4 * matrix)
    assert wide.rank == tall.rank == scaled.rank
    assert tall.noise_variance == pytest.approx(wide.noise_variance)
    assert scaled.noise_variance == pytest.approx(1e-8 * wide.noise_variance)
    torch.testing.assert_close(wide.u * wide.s @ wide.v.T, (tall.u * tall.s @ tall.v.T).T)


def test_a_given_noise_variance_is_used():
    matrix = noisy((20, 70), 4, 0.1)
    assert evbmf(matrix, noise_variance=0.01).rank == 4
    assert evbmf(matrix, noise_variance=0.01).noise_variance == 0.01
    assert evbmf_rank(matrix, noise_variance=1e4, minimum=0) == 0


def brute_force(gamma, short, long, noise):
    """The least free energy of one component and its estimate, by numerical optimisation.

    Twice the variational free energy of a component with means a, b, variances va, vb and prior
    variances c (their scales are free, so that both priors share one), after Nakajima et al.,
    2013, eq. (27).
    """

    def energy(p):
        a, b = p[:2]
        va, vb, c = np.exp(p[2:])
        second_a, second_b = a**2 + long * va, b**2 + short * vb
        prior = long * np.log(c / va) + short * np.log(c / vb) + (second_a + second_b) / c
        return prior - (short + long) + (second_a * second_b - 2 * a * b * gamma) / noise

    root = np.sqrt(0.8 * gamma)
    start = [root, root, *np.log([noise / gamma, noise / gamma, gamma / np.sqrt(short * long)])]
    found = minimize(energy, start, method="BFGS", options={"gtol": 1e-7})
    return found.fun, found.x[0] * found.x[1]


@pytest.mark.parametrize(("short", "long"), [(6, 6), (5, 30), (10, 400)])
@pytest.mark.parametrize("x", [1.01, 1.5, 4.0])
def test_energy_and_shrinkage_agree_with_brute_force(short, long, x):
    noise = 0.37
    gamma = np.sqrt(long * noise * x * detection_threshold(short / long))
    energy, estimate = brute_force(gamma, short, long, noise)
    matrix = torch.zeros(short, long, dtype=torch.float64)
    matrix[0, 0] = gamma
    assert evbmf(matrix, noise).s.item() == pytest.approx(estimate, rel=1e-4)
    values = np.array([gamma, *[1e-3] * (short - 1)])
    x = values**2 / (long * noise)
    gain = free_energy(np.array([noise]), values, long)[0] - (x - np.log(x)).sum()
    assert energy < 0
    assert gain == pytest.approx(energy / long, rel=1e-4)


@pytest.mark.parametrize(("short", "long"), [(6, 6), (5, 30), (10, 400)])
def test_threshold_is_where_a_component_stops_to_pay(short, long):
    at = np.sqrt(long * detection_threshold(short / long))
    assert brute_force(1.002 * at, short, long, 1.0)[0] < 0
    assert brute_force(0.998 * at, short, long, 1.0)[0] > 0


def test_the_noise_found_has_the_least_free_energy():
    matrix = noisy((30, 120), 5, 1.0)
    values, found = torch.linalg.svdvals(matrix).numpy(), evbmf(matrix).noise_variance
    grid = np.geomspace(found / 20, values.max() ** 2, 20_000)
    assert (
        free_energy(np.array([found]), values, 120) <= free_energy(grid, values, 120).min() + 1e-9
    )


def test_a_large_layer_takes_less_than_a_second():
    matrix = torch.randn(512, 4608, generator=torch.Generator().manual_seed(0))
    evbmf_rank(matrix[:4, :4])  # imports
    start = time.process_time()
    evbmf_rank(matrix)
    assert time.process_time() - start < 1.0


def test_the_gram_matrix_of_large_layers_gives_the_same_rank(monkeypatch):
    for noise in (0.01, 0.5):
        matrix = noisy((40, 200), 5, noise).float()
        exact = evbmf(matrix)
        monkeypatch.setattr("freia_kd.compression.tucker.evbmf.GRAM_FROM", 0)
        assert evbmf_rank(matrix) == evbmf_rank(matrix.T) == exact.rank == 5
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("matrix", "noise", "message"),
    [
        (torch.full((2, 2), torch.nan), None, "finite numbers"),
        (torch.tensor([[1.0, torch.inf]]), None, "finite numbers"),
        (torch.zeros(2, 2, 2), None, r"\(rows, columns\); got \(2, 2, 2\)"),
        (torch.zeros(0, 3), None, r"got \(0, 3\)"),
        (torch.ones(2, 2), 0.0, "positive noise variance; got 0.0"),
        (torch.ones(2, 2), float("nan"), "positive noise variance"),
    ],
)
def test_bad_input(matrix, noise, message):
    with pytest.raises(ValueError, match=message):
        evbmf_rank(matrix, noise)
