"""How many threads are taken."""

import time

import pytest
import torch

from freia_kd import device
from freia_kd.device import fastest_threads, keeping_threads


@pytest.fixture
def four_threads():
    with keeping_threads():
        torch.set_num_threads(4)
        yield


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [
        ({1: 8, 2: 4, 4: 2}, 4),  # an idle machine
        ({1: 2, 2: 6, 4: 30}, 1),  # a busy one
        ({1: 8, 2: 4, 4: 4}, 2),  # more that gain nothing
        ({1: 8, 2: 7.8, 4: 3}, 4),
    ],
)
def test_the_fastest_number_of_threads_is_found(milliseconds, chosen, four_threads, monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])

    def work():
        calls.append(torch.get_num_threads())
        clock[0] += 1e-3 * milliseconds[calls[-1]]

    assert fastest_threads(work) == chosen
    assert torch.get_num_threads() == 4
    hopeless = [n for n, t in milliseconds.items() if t >= 2 * min(milliseconds.values())]
    assert all(calls.count(n) <= 2 for n in hopeless)
    is_close = any(n > chosen and n not in hopeless for n in milliseconds)
    assert calls.count(chosen) == device.ROUNDS + is_close * device.MORE_ROUNDS


def test_what_soon_is_over_decides_nothing(four_threads, monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])

    def work():
        calls.append(torch.get_num_threads())
        is_busy = len(calls) <= 3 * 4  # four rounds, in which more threads wait for each other
        clock[0] += 1e-3 * ({1: 8, 2: 12, 4: 12} if is_busy else {1: 8, 2: 4, 4: 2.5})[calls[-1]]

    assert fastest_threads(work) == 4


def test_a_pause_of_the_machine_decides_nothing(four_threads):
    pauses = iter([0.05, *[0.0] * 100])

    def work():
        time.sleep(0.002 * torch.get_num_threads() + next(pauses))

    assert fastest_threads(work) == 1


def test_the_number_is_put_back(four_threads):
    def fail():
        torch.set_num_threads(2)
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"), keeping_threads():
        fail()
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    ("name", "kind", "has_it", "chosen"),
    [
        (None, "cuda", True, "bf16"),
        (None, "cuda", False, None),
        ("float32", "cuda", True, None),
        ("bf16", "cuda", False, "bf16"),
        (None, "cpu", True, None),
    ],
)
def test_bfloat16_is_the_default_on_gpus_that_have_it(name, kind, has_it, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert device.choose_precision(name, torch.device(kind)) == chosen


def test_nets_have_their_channels_last_where_that_is_fast(monkeypatch):
    def strides():
        placed = device.place(torch.nn.Conv2d(3, 4, 5), torch.device("cpu"))
        return placed.weight.is_contiguous(memory_format=torch.channels_last)

    assert not strides()
    monkeypatch.setattr(device, "CHANNELS_LAST", ("cpu",))
    assert strides()
