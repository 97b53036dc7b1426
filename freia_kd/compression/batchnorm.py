"""Batch normalisation in a compressed net: statistics that fit its features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modes import evaluating
from .modules import hooked

PRIOR = 0.01  # the share of a channel's variance below which inputs tell little of it
Layers = Mapping[str, tuple[Any, Any]]  # of a compressed net and of its origin


def batchnorm_layers(net: nn.Module) -> Iterator[_BatchNorm]:
    """The batch-normalisation layers of a net that keep running statistics."""
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            yield module


def match_batchnorm(net: nn.Module, origin: nn.Module, inputs: Tensor, batch: int = 256) -> None:
    r"""Moves a compressed net's running statistics by what compression did to its features.

    Compression changes what a layer gives, so the statistics that normalise it no longer fit.
    Taking those of synthetic inputs instead would replace the training data's by those of another
    distribution. Both nets are shown the same inputs, and each channel s of the compressed one is
    regressed on the channel t of its origin, :math:`s \approx m_s + b (t - m_t)`. Under that, the
    training data, of which the origin keeps :math:`\mu` and :math:`\sigma^2`, have

    .. math:: \mu' = m_s + b\,(\mu - m_t), \qquad \sigma'^2 = \sigma^2 v_s / v_t, \qquad
              b = \mathrm{cov}(s, t) / v_t

    with the means m and variances v over the inputs. A hundredth of :math:`\sigma^2` is added to
    the covariance and to both variances, so that channels which the inputs hardly move keep what
    they have. Where nothing was changed this gives :math:`\mu` and :math:`\sigma^2` back, whatever
    the inputs are. Layers are taken in the order in which the net runs them, each seeing what the
    matched ones before it give. Ours; it resembles bias correction and REPAIR.

    Arguments:
        net: The compressed net, modified in place. Its layers match those of the same name and
            width; others (of pruned channels) keep what they have.
        origin: The net that it was made of.
        inputs: What both take, with shape `(N, *shape)`.
        batch: How many inputs to run at once; statistics are averaged over batches, and the last
            one is left out if it is smaller.

    Raises:
        ValueError: If there are fewer than 2 inputs, or a net rejects them.

    References:
        | Data-Free Quantization through Weight Equalization and Bias Correction (Nagel et al.,
        | 2019), https://arxiv.org/abs/1906.04721
        | REPAIR: REnormalizing Permuted Activations for Interpolation Repair (Jordan et al.,
        | 2022), https://arxiv.org/abs/2211.08403
    """
    batches = _batches(inputs, batch)
    layers = _same_layers(net, origin)
    if not layers:
        return
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    with evaluating(net, origin), _matching(layers, found):
        _run(batches, origin, net)
    for name, (layer, _) in layers.items():
        if found[name]:
            means, variances = zip(*found[name], strict=True)
            layer.running_mean.copy_(torch.stack(means).mean(0))
            layer.running_var.copy_(torch.stack(variances).mean(0))


def _batches(inputs: Tensor, size: int) -> Sequence[Tensor]:
    """Batches of one size, without a smaller rest."""
    if len(inputs) < 2:
        raise ValueError(f"Expected at least 2 inputs for batch statistics; got {len(inputs)}.")
    size = min(size, len(inputs))
    return inputs[: len(inputs) // size * size].split(size)


def _run(batches: Sequence[Tensor], *nets: nn.Module) -> None:
    """Runs the nets in turn on each batch."""
    try:
        for x in batches:
            for net in nets:
                net(x)
    except RuntimeError as error:
        raise ValueError(
            f"Expected inputs that {'the net takes' if len(nets) == 1 else 'both nets take'}; got "
            f"batches of {tuple(batches[0].shape)} ({error})."
        ) from error


def _same_layers(net: nn.Module, origin: nn.Module) -> Layers:
    """The batch normalisations that both nets have by the same name and with the same width."""
    theirs = dict(origin.named_modules())
    layers: dict[str, tuple[Any, Any]] = {}
    for name, layer in net.named_modules():
        pair: tuple[Any, Any] = (layer, theirs.get(name))
        kept = all(isinstance(m, _BatchNorm) and m.track_running_stats for m in pair)
        if kept and pair[0].num_features == pair[1].num_features:
            layers[name] = pair
    return layers


@contextmanager
def _matching(layers: Layers, found: dict[str, list[tuple[Tensor, Tensor]]]) -> Iterator[None]:
    """Matches each layer whenever its net runs, which the origin must have done before."""
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen[name] = _by_channel(arguments[0])

        return hook

    def match(name: str) -> Any:
        def hook(layer: Any, arguments: tuple[Any, ...]) -> None:
            if name in seen:
                matched = _matched(_by_channel(arguments[0]), seen.pop(name), layers[name][1])
                layer.running_mean.copy_(matched[0])
                layer.running_var.copy_(matched[1])
                found[name].append(matched)

        return hook

    before = (o.register_forward_pre_hook(remember(n)) for n, (_, o) in layers.items())
    after = (layer.register_forward_pre_hook(match(n)) for n, (layer, _) in layers.items())
    with hooked(before), hooked(after):
        yield


def _by_channel(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)


def _matched(s: Tensor, t: Tensor, origin: Any) -> tuple[Tensor, Tensor]:
    """The mean and variance of the training data's channels, see :func:`match_batchnorm`."""
    mean_s, mean_t = s.mean(1), t.mean(1)
    s, t = s - mean_s[:, None], t - mean_t[:, None]
    prior = PRIOR * origin.running_var + origin.eps
    scale = t.square().mean(1) + prior
    slope = ((s * t).mean(1) + prior) / scale
    mean = mean_s + slope * (origin.running_mean - mean_t)
    return mean, origin.running_var * (s.square().mean(1) + prior) / scale
