"""What becomes of batch normalisation in a compressed net: frozen, re-estimated or trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .cost import evaluating

BatchNorm = Literal["freeze", "reestimate", "train"]


def batchnorm_layers(net: nn.Module) -> Iterator[_BatchNorm]:
    """The batch-normalisation layers of a net that keep running statistics."""
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            yield module


def prepare_batchnorm(net: nn.Module, mode: BatchNorm, inputs: Tensor | None = None) -> None:
    """Readies a compressed net's batch normalisation before it is trained.

    Arguments:
        net: The compressed net, modified in place where the mode is `"reestimate"`.
        mode: `"freeze"` keeps the teacher's statistics, `"reestimate"` takes those of the
            inputs and keeps them; `"train"` lets them follow the training batches.
        inputs: What the net eats, with shape `(N, *shape)`, for `"reestimate"`.

    Raises:
        ValueError: If the mode is unknown, or inputs are missing.
    """
    if mode not in ("freeze", "reestimate", "train"):
        raise ValueError(f"Expected batch-norm mode freeze, reestimate or train; got {mode!r}.")
    if mode == "reestimate":
        if inputs is None:
            raise ValueError("Expected inputs, from which to re-estimate batch statistics.")
        reestimate_batchnorm(net, inputs)


def train_mode(net: nn.Module, mode: BatchNorm = "freeze") -> None:
    """Puts a net into training mode; batch normalisation only if the mode is `"train"`.

    To be called wherever `net.train()` would be. The scale and shift of a frozen layer stay
    trainable; only its running statistics are fixed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> train_mode(net)
        >>> net[0].training, net[1].training
        (True, False)
    """
    net.train()
    if mode != "train":
        for layer in batchnorm_layers(net):
            layer.eval()


def reestimate_batchnorm(net: nn.Module, inputs: Tensor, batch: int = 256) -> None:
    """Replaces the running statistics by the averages over all batches of the inputs.

    In one pass, each layer seeing what the layers before it give in training mode; all other
    modules (dropout) are in eval mode, and everything is put back into its own mode.

    Arguments:
        net: The net, modified in place.
        inputs: What the net eats, with shape `(N, *shape)`.
        batch: How many inputs to run at once. The last batch is left out if it is smaller.

    Raises:
        ValueError: If there are fewer than 2 inputs, or the net rejects them.

    Example:
        >>> net = nn.BatchNorm1d(1, affine=False)
        >>> reestimate_batchnorm(net, Tensor([[0.0], [2.0]]))
        >>> net.running_mean.item(), net.running_var.item()
        (1.0, 2.0)
    """
    if len(inputs) < 2:
        raise ValueError(f"Expected at least 2 inputs for batch statistics; got {len(inputs)}.")
    layers = list(batchnorm_layers(net))
    momenta = [layer.momentum for layer in layers]
    batch = min(batch, len(inputs))
    with evaluating(net):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the average of all batches
            layer.train()
        try:
            for i in range(0, len(inputs) - batch + 1, batch):
                net(inputs[i : i + batch])
        except RuntimeError as error:
            raise ValueError(
                f"Expected inputs that the net takes; got {tuple(inputs.shape)} ({error})."
            ) from error
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
