"""Batch normalisation of a batch that processes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import ranks


class WholeBatchNorm(TorchFunctionMode):
    r"""Lets layers that learn batch statistics normalise by those of the whole batch.

    .. math:: \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}

    with the moments :math:`\mu, \sigma^2` of all processes' rows (:func:`freia_kd.ranks.moments`),
    through which gradients flow. `torch.nn.SyncBatchNorm` does that on GPUs only, and is another
    module, where this leaves nets, their copies and their states as they are: what
    `torch.nn.functional.batch_norm` does within the block is replaced. Layers in eval mode
    are not concerned.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        function = _normalise if func is F.batch_norm else func
        return function(*args, **(kwargs or {}))


def _normalise(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, by the statistics of all processes' rows."""
    if not training or ranks.count() == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    mean, variance = ranks.moments(x)
    if running_mean is not None and running_var is not None:
        number = ranks.count() * x.numel() / x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * number / (number - 1)).to(running_var), momentum)
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    view = (1, -1) + (1,) * (x.ndim - 2)
    y = (x - mean.view(view)) * scale.view(view)
    return (y if bias is None else y + bias.view(view)).to(x)
