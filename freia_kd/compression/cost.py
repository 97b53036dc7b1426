"""What a net costs: parameters, multiply-accumulates, bytes and measured milliseconds."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Latency:
    """Measured milliseconds of one forward pass.

    Arguments:
        median: The median of the repeats.
        low: The 10th percentile.
        high: The 90th percentile.
        batch: The number of inputs in the pass.
        repeats: How many passes were timed.
    """

    median: float
    low: float
    high: float
    batch: int
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)


def count_parameters(net: nn.Module) -> int:
    """The number of parameters, those that are shared counted once.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: nn.Module, shape: Sequence[int]) -> int:
    """The multiply-accumulates of the convolutions and matrix products for one input.

    Half of what torch's own `FlopCounterMode` counts; biases, activations, normalisation and
    pooling are not counted.

    Arguments:
        net: The net, evaluated in eval mode and put back into the mode it was in.
        shape: The shape of one input, without the batch.

    Raises:
        ValueError: If the net rejects inputs of that shape.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32)) == 8 * 3 * 9 * 32 * 32
        True
    """
    from torch.utils.flop_counter import FlopCounterMode

    x = example_input(net, shape)
    with evaluating(net), FlopCounterMode(display=False) as counter:
        _run(net, x)
    return counter.get_total_flops() // 2


def measure_latency(
    net: nn.Module, shape: Sequence[int], batch: int = 1, seconds: float = 0.5
) -> Latency:
    """Times forward passes in eval mode, after warming up.

    Arguments:
        net: The net, put back into the mode it was in.
        shape: The shape of one input, without the batch.
        batch: The number of inputs in a pass.
        seconds: About how long to measure (at least 5 passes are timed).

    Raises:
        ValueError: If the net rejects inputs of that shape.
    """
    return measure_latencies([net], shape, batch, seconds)[0]


def measure_latencies(
    nets: Sequence[nn.Module], shape: Sequence[int], batch: int = 1, seconds: float = 0.5
) -> list[Latency]:
    """Times several nets in turn, so that a busy machine slows all of them alike.

    Arguments:
        nets: The nets, put back into the modes they were in.
        shape: The shape of one input, without the batch.
        batch: The number of inputs in a pass.
        seconds: About how long to measure each net (at least 5 passes are timed).

    Raises:
        ValueError: If a net rejects inputs of that shape.
    """
    inputs = [example_input(net, shape, batch) for net in nets]
    times: list[list[float]] = [[] for _ in nets]
    with _evaluating_all(nets):
        for net, x in zip(nets, inputs, strict=True):
            for _ in range(2):
                _run(net, x)
        start = time.perf_counter()
        while len(times[0]) < 5 or time.perf_counter() - start < seconds * len(nets):
            for net, x, measured in zip(nets, inputs, times, strict=True):
                measured.append(_timed(net, x))
    return [_latency(measured, batch) for measured in times]


def file_bytes(net: nn.Module) -> int:
    """The size in bytes of a file that holds the net's state dict.

    Example:
        >>> file_bytes(nn.Linear(1000, 10)) > 40_000
        True
    """
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    return buffer.getbuffer().nbytes


def example_input(net: nn.Module, shape: Sequence[int], batch: int = 1) -> torch.Tensor:
    """A batch in the net's device and dtype; zeros, since no cost here depends on the values."""
    parameter = next((p for p in net.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return torch.zeros(batch, *shape)
    return torch.zeros(batch, *shape, device=parameter.device, dtype=parameter.dtype)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Puts a net into eval mode without gradients, and every module back into its own mode."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _evaluating_all(nets: Sequence[nn.Module]) -> Iterator[None]:
    """Puts several nets into eval mode at once."""
    with ExitStack() as stack:
        for net in nets:
            stack.enter_context(evaluating(net))
        yield


def _run(net: nn.Module, x: torch.Tensor) -> Any:
    try:
        return net(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"Expected a net that takes inputs with shape {tuple(x.shape)}; "
            f"{type(net).__name__} fails: {error}"
        ) from error


def _timed(net: nn.Module, x: torch.Tensor) -> float:
    """Milliseconds of one pass, until the device is done."""
    _synchronize(x)
    start = time.perf_counter()
    net(x)
    _synchronize(x)
    return 1e3 * (time.perf_counter() - start)


def _synchronize(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _latency(times: Sequence[float], batch: int) -> Latency:
    low, median, high = np.percentile(times, [10, 50, 90])
    return Latency(float(median), float(low), float(high), batch, len(times))
