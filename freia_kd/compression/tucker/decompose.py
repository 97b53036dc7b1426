"""Low-rank layers: Tucker-2 of convolutions, SVD of linear layers, as plain `nn.Sequential`s."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .evbmf import evbmf_rank

Convolution = nn.Conv1d | nn.Conv2d


def tucker2(conv: Convolution, ranks: tuple[int, int]) -> nn.Sequential:
    r"""Splits a convolution into a 1x1, a core and a 1x1 convolution by Tucker-2.

    .. math:: W_{oi\kappa} \approx \sum_{pq} A_{op}\, G_{pq\kappa}\, B_{iq}

    where `q` runs over the input rank and `p` over the output rank. The first layer is
    :math:`B^\top`; the core :math:`G` has the stride, padding and dilation of the original; the
    last is `A` with the original's bias. Found by tensorly's higher-order orthogonal iteration.
    At full ranks the layers compute what the original does. A 1x1 convolution of full rank would
    only cost time: it is merged into the core.

    Arguments:
        conv: A `Conv1d` or `Conv2d` of one group. It is not modified.
        ranks: The input rank and the output rank, lowered where that loses nothing
            (:func:`usable_ranks`).

    Raises:
        ValueError: If the convolution has groups, a rank does not fit, or a weight is not finite.

    References:
        | Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
        | Applications (Kim et al., 2016) https://arxiv.org/abs/1511.06530

    Example:
        >>> conv = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        >>> [tuple(layer.weight.shape) for layer in tucker2(conv, (4, 8))]
        [(4, 16, 1, 1), (8, 4, 3, 3), (32, 8, 1, 1)]
    """
    layers = tucker2_layers(conv, ranks)
    in_rank, out_rank = usable_ranks(conv, ranks)
    core, (out_factor, in_factor) = _partial_tucker(_finite(conv.weight), (out_rank, in_rank))
    point = (..., *(None,) * (conv.weight.ndim - 2))
    weights = []
    if in_rank < conv.in_channels:
        weights.append(in_factor.T[point])
    else:
        core = torch.einsum("pq...,iq->pi...", core, in_factor)
    if out_rank < conv.out_channels:
        weights += [core, out_factor[point]]
    else:
        weights.append(torch.einsum("pi...,op->oi...", core, out_factor))
    for layer, weight in zip(layers, weights, strict=True):
        _set(layer, weight)
    _set(layers[-1], weights[-1], conv.bias)
    return layers


def tucker2_layers(conv: Convolution, ranks: tuple[int, int]) -> nn.Sequential:
    """The layers of :func:`tucker2` with fresh weights, to load a state dict into.

    Raises:
        ValueError: If the convolution has groups or a rank does not fit.
    """
    if conv.groups != 1:
        kind = "depthwise" if conv.groups == conv.in_channels else f"{conv.groups} groups"
        raise ValueError(
            f"Expected a convolution of one group; got {conv} ({kind}), whose channels are hardly "
            "connected, so that a low rank saves nothing. Leave this layer alone."
        )
    _check_rank("input rank", ranks[0], conv.in_channels)
    _check_rank("output rank", ranks[1], conv.out_channels)
    in_rank, out_rank = usable_ranks(conv, ranks)
    make, place, bias = type(conv), _place(conv), conv.bias is not None
    first, last = in_rank < conv.in_channels, out_rank < conv.out_channels
    core: dict[str, Any] = {
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "padding_mode": conv.padding_mode,
    }
    layers: list[nn.Module] = []
    if first:
        layers.append(make(conv.in_channels, in_rank, 1, bias=False, **place))
    layers.append(make(in_rank, out_rank, bias=bias and not last, **core, **place))
    if last:
        layers.append(make(out_rank, conv.out_channels, 1, bias=bias, **place))
    return _like(conv, *layers)


def usable_ranks(conv: Convolution, ranks: tuple[int, int]) -> tuple[int, int]:
    """The ranks, each at most the other times the kernel's area: the core has no more.

    Example:
        >>> usable_ranks(nn.Conv2d(3, 64, 2), (1, 64))
        (1, 4)
    """
    area = math.prod(conv.kernel_size)
    in_rank = min(ranks[0], ranks[1] * area)
    return in_rank, min(ranks[1], in_rank * area)


def svd_linear(linear: nn.Linear | Convolution, rank: int) -> nn.Sequential:
    r"""Splits a linear layer, or a 1x1 convolution, into two by a truncated SVD.

    :math:`W \approx U_r S_r V_r^\top`, as :math:`S_r^{1/2} V_r^\top` and then
    :math:`U_r S_r^{1/2}` with the original's bias. The squared error is the sum of the squared
    singular values left out. Only the eigenvectors of the smaller Gram matrix are computed, and
    the weight is projected on them, which is exact at full rank all the same.

    Arguments:
        linear: A `Linear`, or a `Conv1d` or `Conv2d` of one group and kernel size 1 (the stride
            moves to the first layer, where it saves most). It is not modified.
        rank: The number of singular values kept.

    Raises:
        ValueError: If the layer is a larger or grouped convolution, the rank does not fit, or a
            weight is not finite.

    Example:
        >>> [tuple(layer.weight.shape) for layer in svd_linear(nn.Linear(120, 84), 10)]
        [(10, 120), (84, 10)]
    """
    layers = svd_layers(linear, rank)
    weight = _finite(linear.weight)
    first, last = _split(weight.flatten(1), rank)
    point = (..., *(None,) * (weight.ndim - 2))
    _set(layers[0], first[point])
    _set(layers[1], last[point], linear.bias)
    return layers


def svd_layers(linear: nn.Linear | Convolution, rank: int) -> nn.Sequential:
    """The layers of :func:`svd_linear` with fresh weights, to load a state dict into.

    Raises:
        ValueError: If the layer is a larger or grouped convolution or the rank does not fit.
    """
    place, bias = _place(linear), linear.bias is not None
    if isinstance(linear, nn.Linear):
        _check_rank("rank", rank, min(linear.in_features, linear.out_features))
        return _like(
            linear,
            nn.Linear(linear.in_features, rank, bias=False, **place),
            nn.Linear(rank, linear.out_features, bias=bias, **place),
        )
    if linear.groups != 1 or math.prod(linear.kernel_size) != 1:
        raise ValueError(
            f"Expected a linear layer, or a convolution of one group and kernel size 1; got "
            f"{linear}. Use tucker2 for larger kernels."
        )
    _check_rank("rank", rank, min(linear.in_channels, linear.out_channels))
    core: dict[str, Any] = {
        "stride": linear.stride,
        "padding": linear.padding,
        "padding_mode": linear.padding_mode,
    }
    kind = type(linear)
    return _like(
        linear,
        kind(linear.in_channels, rank, 1, bias=False, **core, **place),
        kind(rank, linear.out_channels, 1, bias=bias, **place),
    )


def evbmf_ranks(layer: nn.Linear | Convolution) -> tuple[int, ...]:
    """The ranks that EVBMF finds in a layer, at least 1.

    Returns:
        `(rank,)` for a linear layer or a 1x1 convolution, else `(in_rank, out_rank)` from the
        unfoldings of the weight along its input and output channels.

    Raises:
        ValueError: If a weight is not finite.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> evbmf_ranks(nn.Conv2d(16, 32, 3))  # random weights are noise
        (1, 1)
    """
    weight = layer.weight
    if is_matrix(layer):
        return (evbmf_rank(weight.flatten(1)),)
    return evbmf_rank(weight.transpose(0, 1).flatten(1)), evbmf_rank(weight.flatten(1))


def is_matrix(layer: nn.Module) -> bool:
    """Whether a layer is a matrix in disguise: a linear layer or a 1x1 convolution."""
    return isinstance(layer, nn.Linear) or math.prod(getattr(layer, "kernel_size", (0,))) == 1


def left_factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The left singular vectors `(rows, rows)` and squared singular values of a matrix, descending.

    Of a matrix with more rows than columns, those beyond the columns are orthonormal, with 0.
    """
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors.flip(1), squares.flip(0).clamp(min=0)


def _split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors `(rank, columns)` and `(rows, rank)` of the best approximation, equally large."""
    if len(matrix) > matrix.shape[1]:
        first, last = _split(matrix.T, rank)
        return last.T, first.T
    u = left_factor(matrix)[0][:, :rank]
    projected = u.T @ matrix
    root = projected.norm(dim=1).clamp(min=1e-150).sqrt()
    return projected / root[:, None], u * root


def _partial_tucker(weight: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """tensorly's partial Tucker of the first two modes, without changing its backend for others.

    Where the iteration starts takes the largest matrices, of which only one side is wanted.
    """
    import tensorly
    from tensorly.decomposition import partial_tucker

    # torch's SVD takes a quarter of the time of numpy's.
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        (core, factors), _ = partial_tucker(weight, rank=ranks, modes=[0, 1], svd=_truncated_svd)
    return core, list(factors)


def _truncated_svd(matrix: Tensor, n_eigenvecs: int, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The first singular vectors and values of a matrix, as tensorly wants them.

    With k of them `(rows, k)`, `(k)` and `(k, columns)`.
    """
    vectors, squares = left_factor(matrix)
    u, s = vectors[:, :n_eigenvecs], squares[:n_eigenvecs].sqrt()
    return u, s, u.T @ matrix / s.clamp(min=1e-150)[:, None]


def _finite(weight: Tensor) -> Tensor:
    weight = weight.detach().to("cpu", torch.float64)
    if not bool(weight.isfinite().all()):
        raise ValueError("Expected finite weights; got NaN or infinite ones.")
    return weight


def _check_rank(name: str, rank: int, largest: int) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest:
        raise ValueError(f"Expected an integer {name} from 1 to {largest}; got {rank}.")


def _place(layer: nn.Linear | Convolution) -> dict[str, Any]:
    return {"device": layer.weight.device, "dtype": layer.weight.dtype}


def _like(original: nn.Linear | Convolution, *layers: nn.Module) -> nn.Sequential:
    """The layers in sequence, trainable and in training mode as the original."""
    sequence = nn.Sequential(*layers).train(original.training)
    return sequence.requires_grad_(original.weight.requires_grad)


@torch.no_grad()
def _set(layer: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
