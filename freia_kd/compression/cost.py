"""What a net costs: parameters, multiply-accumulates, bytes and measured milliseconds."""

from __future__ import annotations

import io
import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..config import LARGEST, Runtime
from ..modes import evaluating
from ..teachers.loading import file_state
from .modules import hooked

VALUES = 2**24  # of inputs that a net is shown to be measured, 64 MB
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


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


WIDE = 4  # times as fast at one end of an interval as at the other: the machine was too busy
# Times as fast, up to which the next run may say the opposite: of one pair of nets two runs said
# 1.03 times slower (1.02 to 1.04) and faster. The interval of one run knows nothing of that.
REPEATABLE = 1.05
MIN_ROUNDS = 11  # of passes in turn; with fewer the interval of a median is hardly one
LONG_ROUND = 2.0  # seconds, from where `FEW_ROUNDS` are enough: the least that have an interval
FEW_ROUNDS = 6


@dataclass(frozen=True)
class Speed:
    """How many times faster one net is than another, from passes that took turns.

    Arguments:
        ratio: The median over rounds of its speed divided by the other's, above 1 if it is faster.
        low: The lower end of the 95 % interval of that median.
        high: The upper end.
        rounds: How many rounds there were.
    """

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def is_measurable(self) -> bool:
        """Whether the interval leaves out what may be equal speed, and is narrow enough."""
        differs = self.low > REPEATABLE or self.high < 1 / REPEATABLE
        return differs and self.high < WIDE * self.low

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> Speed:
        """From the times of both in each round; what slows a round down slows both alike.

        The interval holds for any distribution: its ends are order statistics of the ratios, which
        the median leaves on one side with a probability below 2.5 %. Rounds in which a clock stood
        still are left out (that of a thread does, now and then, on a busy virtual machine); where
        no other is left, the interval is without bounds.

        Arguments:
            before: The times of the other net.
            after: The times of this one, in the same rounds.

        Example:
            >>> Speed.of([2.0] * 20, [1.0] * 19 + [4.0])
            Speed(ratio=2.0, low=2.0, high=2.0, rounds=20)
        """
        from scipy.stats import binom

        pairs = [(b, a) for b, a in zip(before, after, strict=True) if b > 0 and a > 0]
        ratios = np.sort([b / a for b, a in pairs])
        count = len(ratios)
        if not count:
            return cls(1.0, 0.0, LARGEST, 0)
        cut = max(int(binom.ppf(0.025, count, 0.5)), 1) - 1
        low, high = ratios[cut], ratios[count - 1 - cut]
        return cls(float(np.median(ratios)), float(low), float(high), count)


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


@dataclass(frozen=True)
class LayerUse:
    """How a net uses one of its convolutions or linear layers, for one input.

    Arguments:
        inputs: The input shapes of its calls, with the batch of 1 in front.
        positions: The pixels, or rows of a linear layer, that go into and come out of each call.
        macs: The multiply-accumulates of all calls.
    """

    inputs: tuple[tuple[int, ...], ...]
    positions: tuple[tuple[int, int], ...]
    macs: int

    @property
    def calls(self) -> int:
        """How often the net calls the layer; 0 where it uses the weight in other ways."""
        return len(self.inputs)


def affordable(net: nn.Module, shape: Sequence[int], size: int, macs: float, least: int) -> int:
    """How many of some inputs a net is to be shown, so that what is measured costs a bounded time.

    Beside their passes they are drawn and held: all together have `VALUES` numbers at most.

    Arguments:
        net: The net.
        shape: The shape of one input, without the batch.
        size: How many there are.
        macs: The multiply-accumulates that all together may take.
        least: How many are shown in any case, where there are as many.

    Example:
        >>> affordable(nn.Linear(100, 10), (100,), 512, 64_000, 16)
        64
    """
    fits = min(macs / max(count_macs(net, shape), 1), VALUES / math.prod(shape))
    return min(size, max(least, int(fits)))


def trace_layers(net: nn.Module, shape: Sequence[int]) -> dict[str, LayerUse]:
    """How each convolution (without transposed ones) and linear layer is used for one input.

    Arguments:
        net: The net, evaluated in eval mode and put back into the mode it was in.
        shape: The shape of one input, without the batch.

    Raises:
        ValueError: If the net rejects inputs of that shape.

    Example:
        >>> trace_layers(nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 5, 5))["0"]
        LayerUse(inputs=((1, 1, 5, 5),), positions=((25, 9),), macs=162)
    """
    layers = {n: m for n, m in net.named_modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))}
    seen: dict[int, list[tuple[tuple[int, ...], tuple[int, int]]]] = {}

    def record(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        axis = -1 if isinstance(layer, nn.Linear) else 1
        x = inputs[0]
        positions = x.numel() // x.shape[axis], output.numel() // output.shape[axis]
        seen.setdefault(id(layer), []).append((tuple(x.shape), positions))

    hooks = (layer.register_forward_hook(record) for layer in layers.values())
    with evaluating(net), hooked(hooks):
        _run(net, example_input(net, shape))
    uses = {}
    for name, layer in layers.items():
        calls = seen.get(id(layer), [])
        macs = sum(outputs * layer.weight.numel() for _, (_, outputs) in calls)
        uses[name] = LayerUse(tuple(c[0] for c in calls), tuple(c[1] for c in calls), macs)
    return uses


def measure_latencies(
    nets: Sequence[nn.Module], shape: Sequence[int], batch: int = 1, seconds: float = 0.5
) -> list[Latency]:
    """Times forward passes of nets in turn, so that a busy machine slows all of them alike.

    In eval mode, after warming up.

    Arguments:
        nets: The nets, put back into the modes they were in.
        shape: The shape of one input, without the batch.
        batch: The number of inputs in a pass.
        seconds: About how long to measure each net (at least `MIN_ROUNDS` passes are timed, and
            `FEW_ROUNDS` where one of all nets takes longer than `LONG_ROUND`).

    Raises:
        ValueError: If a net rejects inputs of that shape.
    """
    return [latency_of(t, batch) for t in time_rounds(nets, [shape] * len(nets), batch, seconds)]


def time_rounds(
    nets: Sequence[nn.Module],
    shapes: Sequence[Sequence[int]],
    batch: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """The milliseconds of each net in each round, in which all take a turn; then in reverse.

    Arguments:
        nets: The nets, put back into the modes they were in.
        shapes: For each net the shape of one input, without the batch.
        batch: The number of inputs in a pass.
        seconds: As of :func:`measure_latencies`.
        clock: By what passes are timed, in seconds.

    Raises:
        ValueError: If a net rejects inputs of its shape.
    """
    inputs = [example_input(net, shape, batch) for net, shape in zip(nets, shapes, strict=True)]
    times: list[list[float]] = [[] for _ in nets]
    turns = list(zip(nets, inputs, times, strict=True))
    with evaluating(*nets):
        start = time.perf_counter()
        for net, x, _ in turns:
            _run(net, x)
        is_long = time.perf_counter() - start > LONG_ROUND
        for net, x, _ in () if is_long else turns:
            _run(net, x)
        rounds, start = FEW_ROUNDS if is_long else MIN_ROUNDS, time.perf_counter()
        while len(times[0]) < rounds or time.perf_counter() - start < seconds * len(nets):
            for net, x, measured in turns:
                measured.append(_timed(net, x, clock))
            turns.reverse()  # so that none always finds the other's caches
    return times


def file_bytes(net: nn.Module) -> int:
    """The size in bytes of a file that holds the net's state dict, quantised weights as int8.

    Example:
        >>> file_bytes(nn.Linear(1000, 10)) > 40_000
        True
    """
    buffer = io.BytesIO()
    torch.save(file_state(net), buffer)
    return buffer.getbuffer().nbytes


class _LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.sizes: dict[int, int] = {}

    def follow(self, value: object, freed: bool = True) -> None:
        """Counts the memory of a tensor until it is freed, once however many share it."""
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        if freed:
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        tree_map(self.follow, output)
        return output


def peak_bytes(net: nn.Module, shape: Sequence[int], batch: int = 1) -> int:
    """The most bytes that tensors take at once in a forward pass: weights, input, activations.

    Counted by following every tensor that torch makes, and so the same on every machine and in
    every run. Scratch space inside of an operation (of a convolution's algorithm, say) and
    memory that an allocator keeps in reserve are not in it.

    Arguments:
        net: The net, evaluated in eval mode and put back into the mode it was in.
        shape: The shape of one input, without the batch.
        batch: The number of inputs in the pass.

    Raises:
        ValueError: If the net rejects inputs of that shape.

    Example:
        >>> peak_bytes(nn.Sequential(nn.Linear(8, 4, bias=False)), (8,)) == 4 * (32 + 8 + 4)
        True
    """
    x = example_input(net, shape, batch)
    counter = _LiveBytes()
    for tensor in (*net.parameters(), *net.buffers(), x):
        counter.follow(tensor, freed=False)
    with evaluating(net), counter:
        _run(net, x)
    return counter.peak


def example_input(net: nn.Module, shape: Sequence[int], batch: int = 1) -> torch.Tensor:
    """A batch in the net's device and dtype; zeros, since no cost here depends on the values."""
    parameter = next((p for p in net.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return torch.zeros(batch, *shape)
    return torch.zeros(batch, *shape, device=parameter.device, dtype=parameter.dtype)


def _run(net: nn.Module, x: torch.Tensor) -> Any:
    try:
        return net(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"Expected a net that takes inputs with shape {tuple(x.shape)}; "
            f"{type(net).__name__} fails: {error}"
        ) from error


def _timed(net: nn.Module, x: torch.Tensor, clock: Callable[[], float]) -> float:
    """Milliseconds of one pass, until the device is done."""
    _synchronize(x)
    start = clock()
    net(x)
    _synchronize(x)
    return 1e3 * (clock() - start)


def undisturbed_clock(runtime: Runtime, device: torch.device) -> Callable[[], float]:
    """Seconds that only pass while this thread computes, where one thread does all the work.

    What other processes take of the core is no part of a net's latency; on a machine with a load of
    10 on two cores it was nine tenths of the wall time. With several threads, or on a GPU, there is
    nothing but the wall's clock.
    """
    on_cpu = runtime != "torch" or device.type == "cpu"
    is_alone = on_cpu and torch.get_num_threads() == 1
    return time.thread_time if is_alone else time.perf_counter


def _synchronize(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def latency_of(times: Sequence[float], batch: int) -> Latency:
    """What the times of one net say."""
    low, median, high = np.percentile(times, [10, 50, 90])
    return Latency(float(median), float(low), float(high), batch, len(times))
