"""Eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Puts nets into eval mode without gradients, and every module back into its own mode.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.Linear(1, 1).eval()).train()
        >>> with evaluating(net):
        ...     print(net.training, torch.is_grad_enabled())
        False False
        >>> net.training, net[1].training
        (True, True)
    """
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
