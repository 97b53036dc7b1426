"""What a net learns from, batch by batch on its device: held there, or read ahead of the step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from .synthetic import SyntheticSet

AHEAD = ("cuda",)  # devices whose batches are read by a thread while a step computes
Batch = tuple[Tensor, Tensor, Tensor]


class Source(Protocol):
    """Synthetic inputs that are asked for by number."""

    def batch(self, indices: Tensor, device: torch.device | str = "cpu") -> Batch: ...


class Feed:
    """The batches of a source on a device.

    On a GPU a stored set that fits is held there. Of a larger one the rows that are expected are
    read by a thread, into pinned memory, while the step before them computes. Neither changes what
    a batch holds. As a context manager it ends its thread.

    Arguments:
        source: A stored set, which nobody else reads meanwhile, or inputs made on the fly.
        device: Where batches are wanted.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source, self.device = source, device
        self._expected: tuple[Tensor, Future[Batch]] | None = None
        self._reader: ThreadPoolExecutor | None = None
        if not isinstance(source, SyntheticSet) or device.type not in AHEAD or source.hold(device):
            return
        self._reader = ThreadPoolExecutor(1, "read ahead", self._choose_device)

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def _choose_device(self) -> None:
        """Which GPU is meant each thread says for itself."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def is_ahead(self) -> bool:
        """Whether it helps to say which rows are expected."""
        return self._reader is not None

    def expect(self, rows: Tensor) -> None:
        """Begins to read the rows `(B,)` that will be asked for next, unless something happens."""
        assert self._reader is not None, "only where is_ahead"
        self._expected = (rows, self._reader.submit(self.source.batch, rows, self.device))

    def batch(self, rows: Tensor) -> Batch:
        """Inputs, teacher logits and conditions at `rows` `(B,)`."""
        if self._reader is None:
            return self.source.batch(rows, self.device)
        if self._expected is None or not torch.equal(self._expected[0], rows):
            self.expect(rows)
        assert self._expected is not None
        (_, reading), self._expected = self._expected, None
        return reading.result()
