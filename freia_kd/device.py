"""Where to compute, how tensors get there, by how many threads, and how much memory there is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from .config import Device, Precision
from .errors import ConfigError, UsageError

Net = TypeVar("Net", bound=nn.Module)
CHANNELS_LAST = ("cuda",)  # devices on which all nets have their channels last
ROUNDS = 5  # in which work is timed by each number of threads
MORE_ROUNDS = 15  # where fewer threads win by little: what slows more of them down may soon be over
HOPELESS = 2.0  # times slower than another number of threads, from where one is timed only twice
CLEARLY = 0.9  # of the time, which more threads must stay below to be taken


def choose_device(name: Device) -> torch.device:
    """The device that `"auto"`, `"cpu"` or `"cuda"` names.

    Raises:
        UsageError: If there is no such device here.
    """
    if name not in get_args(Device):
        raise ConfigError([f"device: expected 'auto', 'cpu' or 'cuda'; got {name!r}."])
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device here; use --device cpu.")
    return torch.device(name)


def choose_precision(name: Precision | None, device: torch.device) -> Precision | None:
    """In what nets compute: where it is left open, in bfloat16 on GPUs that have it.

    Returns:
        `"bf16"`, or `None` for float32.

    Example:
        >>> cpu = torch.device("cpu")
        >>> [choose_precision(name, cpu) for name in (None, "float32", "bf16")]
        [None, None, 'bf16']
    """
    if name is None and device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return None if name == "float32" else name


def place(net: Net, device: torch.device) -> Net:
    """Moves a net to a device; convolutions get the layout that is fast on GPUs, channels last."""
    net = net.to(device)
    return net.to(memory_format=torch.channels_last) if device.type in CHANNELS_LAST else net


def send(value: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; where that is a GPU, without waiting until it has arrived there.

    Arguments:
        value: The tensor, wherever it is.
        device: Where it is wanted.
    """
    if torch.device(device).type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def fastest_threads(work: Callable[[], object]) -> int:
    """How many threads of torch do some work fastest here and now, of all, half of them, and so on.

    Threads of one operation wait for each other, so that on a busy machine two may take ten times
    as long as one. (A LeNet5's step of 256 inputs on two cores with a load of 6: 0.07 s with one
    thread, 0.4 to 0.6 s with two.)

    Arguments:
        work: A short piece of the work, which is done a few times by each number.

    Returns:
        The number of the lowest median time; fewer, where more are not clearly faster. Torch's own
        number stays as it is.
    """
    before = torch.get_num_threads()
    times: dict[int, list[float]] = {before >> i: [] for i in reversed(range(before.bit_length()))}
    try:
        _take_turns(work, times, ROUNDS)
        chosen = _fastest(times)
        if any(threads > chosen for threads in _hopeful(times)):
            _take_turns(work, times, MORE_ROUNDS)
            chosen = _fastest(times)
    finally:
        torch.set_num_threads(before)
    return chosen


def _take_turns(work: Callable[[], object], times: dict[int, list[float]], rounds: int) -> None:
    """Adds the seconds that some work takes with each number of threads, the hopeless but twice."""
    for _ in range(rounds):
        hopeful = _hopeful(times)
        for threads, taken in times.items():
            if len(taken) < 2 or threads in hopeful:
                taken.append(_timed(work, threads))


def _hopeful(times: dict[int, list[float]]) -> list[int]:
    """The numbers of threads whose best time is not far behind the best of all."""
    best = {threads: min(taken) for threads, taken in times.items() if taken}
    return [t for t, taken in best.items() if taken < HOPELESS * min(best.values())]


def _fastest(times: dict[int, list[float]]) -> int:
    """The number of the lowest median time; fewer, where more are not clearly faster."""
    chosen, *more = times
    for threads in more:
        if statistics.median(times[threads]) < CLEARLY * statistics.median(times[chosen]):
            chosen = threads
    return chosen


def _timed(work: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def keeping_threads() -> Iterator[None]:
    """Puts torch's number of threads back after the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_memory(device: torch.device) -> int | None:
    """The bytes of memory that are free for this process, or `None` where that is not known.

    On Linux what the kernel can give without swapping, within the limits of the control group that
    containers set.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = _fields(Path("/proc/meminfo"))
    free = [1024 * meminfo["MemAvailable"]] if "MemAvailable" in meminfo else []
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        files = [Path(folder, name) for name in (limit, used)]
        texts = [file.read_text().strip() for file in files if file.exists()]
        if len(texts) == 2 and all(text.isdigit() for text in texts):
            # What the kernel has read ahead of files counts as used, and is given up at need.
            cached = _fields(Path(folder, "memory.stat")).get("inactive_file", 0)
            free.append(int(texts[0]) - int(texts[1]) + cached)
    return min(free) if free else None


def peak_memory(device: torch.device) -> int:
    """The most bytes of memory that this process has had so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = _fields(Path("/proc/self/status"))
    if "VmHWM" in status:  # ru_maxrss counts what forked the process as well
        return 1024 * status["VmHWM"]
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def memory_limit(free: int | None) -> Iterator[None]:
    """Lets allocations fail within the block that the memory which is free could not hold.

    Without it a Linux kernel promises any memory, and kills the process that uses it.

    Arguments:
        free: How many bytes more the process may take; no limit if `None`.

    Raises:
        MemoryError: If they are not enough.
    """
    status = _fields(Path("/proc/self/status"))
    if free is None or "VmData" not in status:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = 1024 * status["VmData"] + free
    known = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *known]), hard))
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error).lower()
        if isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said:
            raise MemoryError(f"{free:,} bytes of memory are free: {error}") from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _fields(file: Path) -> dict[str, int]:
    """The numbers of a file with a name and a number in each line."""
    found = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        name, *rest = line.replace(":", " ").split()
        if rest and rest[0].isdigit():
            found[name] = int(rest[0])
    return found
