"""Processes that share one job under `torchrun`: who does what, and what they exchange.

Every process draws the same random numbers and takes its own rows of each batch, so that a job is
the same work on any number of them; gradients, losses and batch statistics are those of the whole
batch. Nothing here does anything where there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

import torch
from torch import Tensor

from .errors import LostError, UsageError

# Of a process that waits while the first one works alone; torchrun ends those whose peers die.
PATIENCE = timedelta(days=30)
_alone: ContextVar[bool] = ContextVar("freia_kd.ranks.alone", default=False)


def _is_joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def launched() -> int:
    """How many processes there are in all."""
    return torch.distributed.get_world_size() if _is_joined() else 1


def count() -> int:
    """How many processes share the work that is done now: all, or 1 within `alone()`."""
    return 1 if _alone.get() else launched()


def is_first() -> bool:
    """Whether this is the process that writes and reports, within `alone()` too."""
    return not _is_joined() or torch.distributed.get_rank() == 0


def is_launched() -> bool:
    """Whether `torchrun` has started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that `torchrun` has started within the block; else does nothing.

    They talk by gloo, and by nccl where tensors are on GPUs, of which each process has its own.
    """
    if not is_launched():
        yield
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Makes what is within the block the work of this process, with which no other has to do."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def first_before_others() -> Iterator[None]:
    """Lets the first process do a block before the others, which take up what it has left."""
    if not is_first():
        wait()
    with alone():
        yield
    if is_first():
        wait()


@contextmanager
def connected() -> Iterator[None]:
    """Names what it means when the processes cannot reach each other within the block.

    Raises:
        LostError: If one of them has ended.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) if _is_joined() else False
        if not (lost or (count() > 1 and "gloo" in str(error))):
            raise
        raise LostError("Another process that shares this job has ended.") from error


def wait() -> None:
    """Waits until all processes are here."""
    if count() > 1:
        with connected():
            torch.distributed.all_reduce(torch.zeros(1))


def share(size: int, name: str = "batch_size") -> slice:
    """This process's rows of a batch.

    Arguments:
        size: How many rows the batch has.
        name: The option that says so.

    Raises:
        UsageError: If the processes cannot share them evenly.

    Example:
        >>> share(128)
        slice(0, 128, None)
    """
    n = count()
    if size % n:
        raise UsageError(
            f"{name}: expected batches that {n} processes share evenly; got {size} inputs: "
            f"{size - size % n or n} would do, or {size + n - size % n}, or another number of "
            "processes."
        )
    mine = torch.distributed.get_rank() * (size // n) if n > 1 else 0
    return slice(mine, mine + size // n)


def mine(numbers: Iterable[int]) -> list[int]:
    """Those of some numbered pieces of work that are this process's.

    Example:
        >>> mine(range(3))
        [0, 1, 2]
    """
    n = count()
    rank = torch.distributed.get_rank() if n > 1 else 0
    return [number for number in numbers if number % n == rank]


def sum_over(value: Tensor) -> Tensor:
    """The sum of the processes' values; gradients flow through it, as `DistributedDataParallel`
    expects them: their average over processes is the gradient of the whole."""
    return value if count() == 1 else _Sum.apply(value)


class _Sum(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        with connected():
            torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def mean_over(value: Tensor) -> Tensor:
    """The mean of the processes' values; gradients flow through it as through :func:`sum_over`.

    What is not linear in the mean over a batch needs that of the whole batch.
    """
    return value if count() == 1 else sum_over(value) / count()


def whole(rows: Tensor) -> Tensor:
    """The whole batch of which each process has its :func:`share`.

    Arguments:
        rows: This process's rows, with shape `(B, ...)`, as many as each of the others has.

    Returns:
        The rows of all processes with shape `(N B, ...)`; gradients flow through them as through
        :func:`sum_over`.
    """
    if count() == 1:
        return rows
    batch = rows.new_zeros(count() * len(rows), *rows.shape[1:])
    batch[share(len(batch))] = rows
    return sum_over(batch)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over the batch, all positions and all processes.

    Arguments:
        features: Features with shape `(B, C, ...)`, of which processes may have different numbers.

    Returns:
        The mean and the variance, both with shape `(C,)`; gradients flow through them as through
        :func:`sum_over`.
    """
    features = features if features.dtype.itemsize > 2 else features.float()
    values = features.transpose(0, 1).flatten(1)  # (C, N)
    own = values.new_full((), float(values.shape[1]))
    mean = values.sum(1) / own
    variance = (values - mean[:, None]).square().sum(1) / own
    if count() == 1:
        return mean, variance
    # All in one exchange, of which there is one for each layer.
    found = whole(torch.cat([own[None], mean, variance])[None])
    shares = found[:, :1] / found[:, :1].sum()
    means, variances = found[:, 1:].chunk(2, 1)
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0)


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors by their means over the processes, in place, in one exchange a kind."""
    if count() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        with connected():
            torch.distributed.all_reduce(flat)
        parts = (flat / count()).split([tensor.numel() for tensor in same])
        for tensor, part in zip(same, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def mean(values: Sequence[float]) -> list[float]:
    """The means of numbers over the processes."""
    if count() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    average([tensor])
    return tensor.tolist()


def agreed(value: float) -> float:
    """What the first process has found, in all of them.

    Example:
        >>> agreed(2.5)
        2.5
    """
    (found,) = mean([value if is_first() else 0.0])
    return found * count()


def own_noise(generator: torch.Generator) -> torch.Generator:
    """A source of noise that differs between processes.

    Arguments:
        generator: The source that they have in common, which is left as it is; one process alone
            just goes on with it.
    """
    if count() == 1:
        return generator
    own = torch.Generator(generator.device)
    own.set_state(generator.get_state())
    seed = int(torch.randint(2**62, (), generator=own, device=own.device))
    return own.manual_seed(seed + 1 + torch.distributed.get_rank())
