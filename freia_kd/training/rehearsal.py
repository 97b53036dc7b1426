"""A few real steps of a stage, by which it is known what the whole of it costs."""

from __future__ import annotations

import time
from typing import Any

import torch

from .checkpoints import Checkpoints

ENOUGH, TOO_LONG = 0.3, 2.0  # seconds: of steps whose time is told, and after which one step does
MIN_STEPS, SHARE = 3, 0.05  # so many steps tell the time; at most this share of a stage, or one


class Rehearsal(Checkpoints):
    """Takes the place of a stage's checkpoints: its loops end early, and nothing is read or kept.

    Example:
        >>> rehearsal = Rehearsal()
        >>> [rehearsal.is_enough(step, 1000) for step in (0, 1)]
        [False, False]
    """

    def __init__(self) -> None:
        super().__init__("", "rehearsal")
        self.steps = 0  # of all loops, had they gone on to their ends
        self.seconds = 0.0  # that they would have taken
        self.bytes = 0  # of the states that they would have kept
        self._times: list[float] = []

    def part(self, name: object) -> Rehearsal:
        """The same rehearsal, which adds up all parts."""
        return self

    def is_enough(self, step: int, steps: int) -> bool:
        """Whether the time of a step is known well enough."""
        if step == 0:
            self._times = []
        self._times.append(time.perf_counter())
        taken, elapsed = len(self._times) - 1, self._times[-1] - self._times[0]
        # The first step also warms up, and is left out where there are others.
        later = self._times[min(1, max(taken - 1, 0)) :]
        per_step = (later[-1] - later[0]) / max(len(later) - 1, 1)
        most = max(1, int(SHARE * steps))
        told = taken >= MIN_STEPS and elapsed > ENOUGH
        if not (taken >= most or told or (taken and elapsed > TOO_LONG)):
            return False
        self.steps += steps
        self.seconds += per_step * steps
        return True

    def load(self) -> None:
        """Nothing, so that every loop begins at its first step."""

    def save(self, state: dict[str, Any]) -> None:
        """Counts what would be kept."""
        self.bytes += _size(state)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Forgets the metrics."""

    def forget_after(self, step: int) -> None:
        """There are none."""


def _size(value: Any) -> int:
    """The bytes of the tensors in a nested state."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    values = value.values() if isinstance(value, dict) else value
    return sum(map(_size, values)) if isinstance(value, (dict, list, tuple)) else 0
