"""What loops do with weights: the best of them kept, and a layout that trains faster."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Best:
    """The weights with the highest score on held-out inputs so far.

    Arguments:
        net: The net while it trains.
        score: That of its present weights, if they are a candidate as well.
    """

    def __init__(self, net: nn.Module, score: float = -1.0) -> None:
        self.net = net
        self.score, self.weights = score, copy.deepcopy(net.state_dict())
        self.stale = 0  # checks since the score was last better

    def offer(self, score: float) -> None:
        """Takes the net's present weights if they are at least as good."""
        self.stale = 0 if score > self.score else self.stale + 1
        if score >= self.score:
            self.score, self.weights = score, copy.deepcopy(self.net.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"score": self.score, "weights": dict(self.weights), "stale": self.stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.score, self.weights = state_dict["score"], state_dict["weights"]
        self.stale = state_dict["stale"]


class MovingAverage(AveragedModel):
    r"""The moving average of weights, :math:`\bar w \leftarrow d\,\bar w + (1 - d)\,w`.

    The first update takes the weights as they are; buffers are always those of the net. (Torch's
    own sends a count to the device in each step, and waits until it is there.)

    Arguments:
        net: The net, of which it has a copy.
        decay: The decay d, from 0 to less than 1.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__(net)
        self.decay, self._is_fresh = decay, True

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes in the net's present weights."""
        share = 1.0 if self._is_fresh else 1 - self.decay
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), share)
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        self.n_averaged += 1
        self._is_fresh = False

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As of any module."""
        found = super().load_state_dict(*arguments, **options)
        self._is_fresh = not self.n_averaged
        return found


@contextmanager
def channels_last(net: nn.Module) -> Iterator[None]:
    """Keeps weights of two-dimensional convolutions with their channels last within the block.

    A training step of the nets here then takes half the time or less; the values are the same but
    for rounding.

    Arguments:
        net: The net, whose optimizer is to be made within the block.
    """
    kernels = [p for p in net.parameters() if p.ndim == 4]
    try:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous()


def keep_layout(optimizer: torch.optim.Optimizer) -> None:
    """Gives moments read from a file the memory layout of their parameters, as if never stopped."""

    def rearrange(optimizer: torch.optim.Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    optimizer.register_load_state_dict_post_hook(rearrange)
