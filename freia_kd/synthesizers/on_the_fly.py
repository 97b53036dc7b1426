"""Synthetic inputs that the teacher labels: for a stored set, or while the student trains."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.balance import class_balance, draw_rows
from ..data.synthetic import dequantise, quantise
from ..device import send
from ..teachers.classifier import Teacher
from .contract import TEACHER_BATCH_SIZE, Synthesizer


@torch.no_grad()
def generate_labelled(
    sources: Sequence[Synthesizer], teacher: Teacher, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws inputs from synthesizers, an equal share from each, with the teacher's logits.

    Arguments:
        sources: Fitted synthesizers.
        teacher: The teacher.
        count: How many inputs, `N`.
        generator: The source of all random numbers, on the teacher's device.

    Returns:
        Inputs as a synthetic set keeps them (uint8 images, or vectors) with shape `(N, *shape)`,
        source after source; the teacher's logits on these `(N, classes)`; and the labels that they
        were made for, of noise the teacher's answers.
    """
    ends = [round(count * i / len(sources)) for i in range(len(sources) + 1)]
    made = [
        source.unanswered(end - start, generator)
        for source, start, end in zip(sources, ends, ends[1:], strict=False)
        if end > start
    ]
    inputs = quantise(torch.cat([x for x, _ in made]))
    logits = torch.cat([teacher(dequantise(part)) for part in inputs.split(TEACHER_BATCH_SIZE)])
    answers = logits.argmax(1).split([len(x) for x, _ in made])
    labels = [said if c is None else c for said, (_, c) in zip(answers, made, strict=True)]
    return inputs, logits, torch.cat(labels)


class OnTheFlySet:
    """An endless synthetic set: the input at an index is made when it is asked for, and forgotten.

    Whatever is asked for in which order, an index always holds the same input, since every chunk of
    consecutive inputs has random numbers of its own. Rows in rising order are cheapest: only the
    last chunk is remembered.

    Arguments:
        sources: Fitted synthesizers, each with an equal share of every chunk.
        teacher: The teacher.
        seed: The seed of all random numbers.
        chunk: Inputs made at a time.
        balanced: Whether a chunk shows the teacher's classes alike: its inputs are then drawn with
            replacement from as many that were made (:func:`~freia_kd.data.balance.class_balance`).
    """

    def __init__(
        self,
        sources: Sequence[Synthesizer],
        teacher: Teacher,
        seed: int,
        chunk: int = 2_048,
        balanced: bool = False,
    ) -> None:
        self.sources, self.teacher, self.balanced = list(sources), teacher, balanced
        self.seed, self.chunk = seed, chunk
        self._last: tuple[int, tuple[Tensor, Tensor, Tensor]] | None = None

    def batch(
        self, indices: Tensor, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (pixels in [0, 1] for images), teacher logits and labels at `indices` `(B,)`.

        Arguments:
            indices: The numbers of the inputs, on the CPU.
            device: Where the three are wanted; they are made on the teacher's.

        Raises:
            IndexError: If an index is negative.
        """
        if len(indices) == 0 or int(indices.min()) < 0:
            raise IndexError(f"Expected indices from 0; got {indices.tolist()}.")
        order = torch.argsort(indices, stable=True)
        chunks, counts = torch.unique_consecutive(indices[order] // self.chunk, return_counts=True)
        parts = [
            [array[send(rows % self.chunk, array.device)] for array in self._make(number)]
            for number, rows in zip(
                chunks.tolist(), indices[order].split(counts.tolist()), strict=True
            )
        ]
        back = send(torch.argsort(order), parts[0][0].device)
        made = (torch.cat(arrays)[back] for arrays in zip(*parts, strict=True))
        inputs, logits, labels = (send(array, device) for array in made)
        return dequantise(inputs), logits, labels

    def _make(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        if self._last is None or self._last[0] != number:
            digest = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
            device = next(self.teacher.parameters()).device
            seed = int.from_bytes(digest[:7], "big")
            generator = torch.Generator(device).manual_seed(seed)
            own = generator if device.type == "cpu" else torch.Generator().manual_seed(seed)
            arrays = generate_labelled(self.sources, self.teacher, self.chunk, generator)
            # Without an order, a batch would see only one of the sources.
            if self.balanced:
                order = draw_rows(class_balance([arrays[1].cpu()]).cumsum(0), self.chunk, own)
            else:
                order = torch.randperm(self.chunk, generator=own)
            inputs, logits, labels = (a[send(order, a.device)] for a in arrays)
            self._last = (number, (inputs, logits, labels))
        return self._last[1]
