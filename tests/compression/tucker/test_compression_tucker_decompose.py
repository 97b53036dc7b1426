"""Low-rank layers: exact at full rank, and with the error that singular values predict."""

import pytest
import tensorly
import torch
from torch import nn

from freia_kd.compression.tucker.decompose import evbmf_ranks, svd_linear, tucker2

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(6, 10, 3),
    "stride": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1),
    "uneven": lambda: nn.Conv2d(6, 10, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "same": lambda: nn.Conv2d(6, 10, 3, padding="same"),
    "reflect": lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="circular"),
    "no bias": lambda: nn.Conv2d(6, 10, 5, bias=False),
    "one input": lambda: nn.Conv2d(1, 6, 5),
    "pointwise": lambda: nn.Conv2d(6, 10, 1, stride=2),
    "pointwise padded": lambda: nn.Conv2d(6, 10, 1, padding=1),
    "more outputs than the core can fill": lambda: nn.Conv2d(2, 30, (1, 3)),
    "1d": lambda: nn.Conv1d(6, 10, 5, stride=2, padding=2),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def example(conv):
    return torch.randn(2, conv.in_channels, *(12,) * (conv.weight.ndim - 2), dtype=torch.float64)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_tucker2_is_exact_at_full_rank(name):
    conv = CONVOLUTIONS[name]().double()
    layers, x = tucker2(conv, (conv.in_channels, conv.out_channels)), example(conv)
    torch.testing.assert_close(layers(x), conv(x), atol=1e-10, rtol=1e-10)
    layers, x = layers.float(), x.float()
    torch.testing.assert_close(layers(x), conv.float()(x), atol=1e-5, rtol=1e-5)


def recomposed(layers):
    total = layers[0].weight.detach().flatten(2)
    for layer in layers[1:]:
        weight = layer.weight.detach().flatten(2)
        if weight.shape[2] == 1:
            total = torch.einsum("po,oik->pik", weight[..., 0], total)
        else:
            total = torch.einsum("pqk,qi->pik", weight, total[..., 0])
    return total


def test_a_factor_of_full_rank_is_merged_into_the_core():
    conv = nn.Conv2d(6, 10, 3)
    shapes = {
        (3, 4): [(3, 6, 1, 1), (4, 3, 3, 3), (10, 4, 1, 1)],
        (6, 4): [(4, 6, 3, 3), (10, 4, 1, 1)],
        (3, 10): [(3, 6, 1, 1), (10, 3, 3, 3)],
        (6, 10): [(10, 6, 3, 3)],
    }
    for ranks, expected in shapes.items():
        assert [tuple(layer.weight.shape) for layer in tucker2(conv, ranks)] == expected


@pytest.mark.parametrize("ranks", [(2, 3), (6, 2), (2, 9)])
def test_tucker2_error_is_within_what_the_singular_values_allow(ranks):
    conv = nn.Conv2d(6, 10, 3).double()
    weight = conv.weight.detach().flatten(2)
    error = (recomposed(tucker2(conv, ranks)) - weight).square().sum()
    # The tails of the two unfoldings: their larger is a lower bound, their sum an upper bound
    # (De Lathauwer et al., 2000, property 10), which the iteration improves on.
    tails = [
        torch.linalg.svdvals(weight.transpose(0, mode).flatten(1))[rank:].square().sum()
        for mode, rank in ((1, ranks[0]), (0, ranks[1]))
    ]
    assert max(tails) - 1e-9 <= error <= sum(tails) + 1e-9


@pytest.mark.parametrize("ranks", [(2, 18), (5, 8)])
def test_tucker2_is_the_iteration_of_the_papers_code(ranks):
    """Whatever tensorly does by itself: both codes call it with an SVD to begin and no more."""
    conv = nn.Conv2d(16, 120, 5).double()
    weight = conv.weight.detach().flatten(2)

    def leading(values, rank):
        return torch.linalg.svd(values.flatten(1), full_matrices=False)[0][:, :rank]

    first, last = leading(weight.transpose(0, 1), ranks[0]), leading(weight, ranks[1])
    errors = []
    while len(errors) < 3 or abs(errors[-2] - errors[-1]) >= 1e-4:
        last = leading(torch.einsum("oik,iq->oqk", weight, first), ranks[1])
        first = leading(torch.einsum("oik,op->ipk", weight, last), ranks[0])
        core = torch.einsum("oik,op,iq->pqk", weight, last, first)
        errors.append((1 - (core.norm() / weight.norm()).square()).sqrt())
    assert len(errors) < 100  # the most that it takes
    expected = torch.einsum("pqk,op,iq->oik", core, last, first)
    torch.testing.assert_close(recomposed(tucker2(conv, ranks)), expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("ranks", [(6, 3), (2, 10)])
def test_tucker2_of_one_mode_has_the_truncated_error(ranks):
    conv = nn.Conv2d(6, 10, 3).double()
    weight = conv.weight.detach().flatten(2)
    mode, rank = (0, ranks[1]) if ranks[0] == 6 else (1, ranks[0])
    tail = torch.linalg.svdvals(weight.transpose(0, mode).flatten(1))[rank:].square().sum()
    error = (recomposed(tucker2(conv, ranks)) - weight).square().sum()
    torch.testing.assert_close(error, tail)


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 5), nn.Linear(5, 8, bias=False), nn.Conv2d(8, 5, 1), nn.Conv1d(5, 8, 1)]
)
def test_svd_is_exact_at_full_rank_and_has_the_truncated_error(layer):
    layer = layer.double()
    x = torch.randn(3, 5 if layer.weight.shape[1] == 5 else 8, dtype=torch.float64)
    x = x.reshape(*x.shape, *(1,) * (layer.weight.ndim - 2))
    torch.testing.assert_close(svd_linear(layer, 5)(x), layer(x))
    weight = layer.weight.detach().flatten(1)
    first, last = svd_linear(layer, 2)
    error = last.weight.flatten(1) @ first.weight.flatten(1) - weight
    torch.testing.assert_close(error.norm(), torch.linalg.svdvals(weight)[2:].norm())


def test_pointwise_svd_keeps_stride_and_padding():
    conv = nn.Conv2d(6, 8, 1, stride=2, padding=1, padding_mode="replicate").double()
    x = example(conv)
    torch.testing.assert_close(svd_linear(conv, 6)(x), conv(x))


def test_dtype_mode_and_trainability_are_the_original_ones():
    conv = nn.Conv2d(4, 6, 3).to(torch.bfloat16).eval().requires_grad_(False)
    before = conv.weight.clone()
    layers = tucker2(conv, (2, 3))
    assert {p.dtype for p in layers.parameters()} == {torch.bfloat16}
    assert not layers.training
    assert not any(p.requires_grad for p in layers.parameters())
    assert torch.equal(conv.weight, before)


def test_weights_of_zero_stay_zero():
    conv = nn.Conv2d(4, 6, 3)
    nn.init.zeros_(conv.weight)
    assert torch.equal(recomposed(tucker2(conv, (2, 3))), torch.zeros(6, 4, 9))


def test_tensorlys_backend_is_left_as_it_was():
    conv = nn.Conv2d(4, 6, 3)
    expected = recomposed(tucker2(conv, (2, 3)))
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        torch.testing.assert_close(recomposed(tucker2(conv, (2, 3))), expected)
        assert tensorly.get_backend() == "pytorch"
    assert tensorly.get_backend() == "numpy"


def test_evbmf_ranks_of_a_planted_convolution():
    conv = nn.Conv2d(16, 32, 3)
    with torch.no_grad():
        a, b = torch.randn(32, 4), torch.randn(16, 2)
        weight = torch.einsum("op,pqhw,iq->oihw", a, torch.randn(4, 2, 3, 3), b)
        conv.weight.copy_(weight + 0.01 * torch.randn_like(weight))
    assert evbmf_ranks(conv) == (2, 4)
    assert evbmf_ranks(nn.Linear(30, 20)) == (1,)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tucker2(nn.Conv2d(8, 8, 3, groups=8), (1, 1)), "one group.*depthwise"),
        (lambda: tucker2(nn.Conv2d(8, 8, 3, groups=2), (1, 1)), "one group.*2 groups"),
        (lambda: tucker2(nn.Conv2d(8, 6, 3), (9, 6)), "input rank from 1 to 8; got 9"),
        (lambda: tucker2(nn.Conv2d(8, 6, 3), (8, 7)), "output rank from 1 to 6; got 7"),
        (lambda: tucker2(nn.Conv2d(8, 6, 3), (0, 6)), "input rank from 1 to 8; got 0"),
        (lambda: svd_linear(nn.Linear(8, 6), 7), "rank from 1 to 6; got 7"),
        (lambda: svd_linear(nn.Conv2d(8, 6, 3), 2), "kernel size 1"),
        (lambda: svd_linear(nn.Conv2d(8, 8, 1, groups=2), 2), "one group"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_weights_that_are_not_finite():
    linear = nn.Linear(3, 3)
    nn.init.constant_(linear.weight, float("nan"))
    with pytest.raises(ValueError, match="finite weights"):
        svd_linear(linear, 2)
