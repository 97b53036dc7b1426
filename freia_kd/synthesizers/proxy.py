"""Unlabelled images of the user's: real ones, but none of the teacher's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..config import Config, Count
from ..data.datasets import LabelledData
from ..data.synthetic import dequantise
from ..data.unlabelled import read_unlabelled
from ..errors import UsageError
from ..teachers.classifier import Classifier, Teacher
from ..training import Checkpoints
from .bank import AugmentedBank, BankOptions
from .contract import TEACHER_BATCH_SIZE


@dataclass(frozen=True)
class ProxyOptions(BankOptions):
    """Where the images are, and what becomes of them.

    Arguments:
        source: A folder of images, read with its subfolders, or an .npz file, see
            :func:`~freia_kd.data.unlabelled.read_unlabelled`. Labels are not read.
        most: The most images that are read; of more, evenly spread over the order of their names.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = "proxy"
    source: str = ""
    most: Count = 20_000


class Proxy(AugmentedBank):
    """Images from anywhere, resized to the teacher's input and labelled by it.

    Colours become grey where the teacher takes one channel, and grey becomes colours. Each image
    comes equally often; where they are fewer than 1,000, each comes differently every time.

    References:
        | The Augmented Image Prior: Distilling 1000 Classes by Extrapolating from a Single Image
        | (Asano and Saeed, 2023), https://arxiv.org/abs/2112.00725
    """

    name = "proxy"
    Options = ProxyOptions

    def __init__(self, options: Config | None = None) -> None:
        super().__init__(options)
        self.real_images = f"unlabelled proxy images given by the user, from {self.options.source}"

    @classmethod
    def unsupported_reason(
        cls,
        teacher: Teacher,
        samples: LabelledData | None = None,
        student: bool = True,
        options: Any = None,
    ) -> str | None:
        if not getattr(options, "source", ""):
            return "needs images of yours, and its option source (--proxy FOLDER) names none"
        return super().unsupported_reason(teacher, samples, student, options)

    def fit(
        self,
        teacher: Teacher,
        samples: LabelledData | None = None,
        checkpoints: Checkpoints | None = None,
        generator: torch.Generator | None = None,
        student: Classifier | None = None,
    ) -> None:
        """Reads the images, and lets the teacher answer them.

        A run that goes on has kept what it read, so that images that were added, changed or deleted
        since make no difference.

        Raises:
            UsageError: If no source is given, or it holds nothing that fits the teacher.
        """
        if not self.options.source:
            raise UsageError(
                "The synthesizer 'proxy' shows images of yours, and its option source names none; "
                "give a folder of images or an .npz file."
            )
        device, self.domain = next(teacher.parameters()).device, teacher.domain
        if checkpoints is not None and self.take_kept(checkpoints):
            self.inputs, self.labels = self.inputs.to(device), self.labels.to(device)
            return
        inputs = read_unlabelled(self.options.source, teacher.domain, self.options.most)
        self.inputs = dequantise(inputs).to(device)
        with torch.no_grad():
            answers = [teacher(part).argmax(1) for part in self.inputs.split(TEACHER_BATCH_SIZE)]
        self.labels = torch.cat(answers)
        self.keep(checkpoints)

    def diagnose(self, teacher: Teacher, generator: torch.Generator | None = None) -> None:
        """Nothing: nothing was learned that could have failed."""
