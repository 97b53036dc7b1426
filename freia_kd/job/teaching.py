"""The training of a teacher: checked whole, planned by a few real steps, stopped and resumed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from .. import ranks
from ..config import Config, Count, Device, Positive, Size
from ..data.datasets import (
    LabelledData,
    Split,
    hold_out,
    load_dataset,
    measure_domain,
    resize_images,
)
from ..data.sources import PathLike
from ..device import choose_device
from ..domain import DOMAINS, Domain
from ..runs import Run
from ..teachers import Classifier, build_net, save_classifier, train_new
from ..training import Checkpoints, Progress
from .opening import fingerprint_of
from .planning import Plan, plan_training
from .threads import settle_threads

SIDE = 32  # of images that are resized, as in KegNet and BDNF
MIN_HELD_OUT = 20  # inputs, below which none are held out to choose a teacher's weights
EPOCHS, TABLE_STEPS = 8, 1_000  # of a teacher, unless asked otherwise


@dataclass(frozen=True)
class TeachingData:
    """Where the data of a training are; arguments as of :func:`freia_kd.train_teacher`."""

    source: str
    root: PathLike | None
    download: bool
    resize: bool

    def load(self, split: Split, domain: Domain | None) -> LabelledData:
        """The inputs of a split, resized where they are asked to be and it is known to what."""
        resize = self.resize and domain is not None
        return load_dataset(self.source, domain, split, self.root, self.download, resize)


@dataclass(frozen=True)
class TeachingConfig(Config):
    """The options of a training, as its record has them; the data by their hash.

    Raises:
        ConfigError: If a value makes no sense.
    """

    title: ClassVar[str] = ""
    data_sha256: str
    arch: str
    epochs: Count
    batch_size: Size
    learning_rate: Positive
    seed: int
    device: str


@dataclass(frozen=True)
class Training:
    """A training with all that it needs in memory.

    Arguments:
        run: Where it keeps what it needs to go on.
        data: Where the data are.
        train: The training data.
        domain: Their domain.
        arch: The architecture.
        epochs: Passes over the data.
        batch_size: Inputs in a step.
        learning_rate: The first step's.
        seed: The seed of weights and of the order of the data.
        device: Where to compute.
    """

    run: Run
    data: TeachingData
    train: LabelledData
    domain: Domain
    arch: str
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    device: torch.device

    def plan(self) -> Plan:
        """What the rest of it takes, after a few real steps; nothing is written.

        Raises:
            UsageError: If memory or disk cannot hold it; the message says what would fit.
        """
        saved = self.run.checkpoints("teacher").load()
        done = 0.0 if saved is None else saved["step"] / max(saved["steps"], 1)
        return plan_training(self.run.folder, self.device, self.batch_size, self._train, done)

    def carry_out(self, out: PathLike) -> Classifier:
        """Trains the classifier and writes it.

        Arguments:
            out: The checkpoint.

        Raises:
            UsageError: If memory or disk cannot hold it, or another process works on it.
            TrainingError: If the loss stays non-finite.
        """
        run = self.run
        run.meet()  # so that no process sees what another has begun
        with run.locked():
            if ranks.is_first():
                with ranks.alone():
                    run.progress.note(self.plan().describe())
            run.meet()
            with run.stage("train"):
                classifier = self._train(self.batch_size, run.checkpoints("teacher"))
                if ranks.is_first():
                    save_classifier(out, classifier)
            if ranks.is_first():
                shutil.rmtree(run.folder)
        return classifier

    def _train(self, batch_size: int, checkpoints: Checkpoints) -> Classifier:
        whole = len(self.train) >= MIN_HELD_OUT
        rest, heldout = hold_out(self.train) if whole else (self.train, None)
        return train_new(
            self.arch,
            rest,
            self.domain,
            self.epochs,
            batch_size,
            self.learning_rate,
            self.seed,
            self.device,
            heldout=heldout,
            checkpoints=checkpoints,
        )


def open_training(
    data: PathLike,
    out: PathLike,
    *,
    resume: bool = False,
    arch: str | None = None,
    data_root: PathLike | None = None,
    download: bool = False,
    resize: bool = False,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: Device = "auto",
    progress: Progress | None = None,
) -> Training:
    """A training, new or one that was stopped; as of :func:`freia_kd.train_teacher`."""
    place = TeachingData(os.fspath(data), data_root, download, resize)
    chosen, known = choose_device(device), DOMAINS.get(os.fspath(data))
    train = place.load("train", known)
    if resize and train.inputs.ndim == 4:
        train = LabelledData(resize_images(train.inputs, (SIDE, SIDE)), train.labels, train.name)
    domain = known or measure_domain(train, Path(place.source).stem)
    arch = arch or ("lenet5" if domain.is_image else "mlp")
    if epochs is None:
        each = max(1, len(train) // max(1, batch_size))
        epochs = EPOCHS if domain.is_image else -(-TABLE_STEPS // each)
    config = TeachingConfig(
        data_sha256=fingerprint_of(train) or "",
        arch=arch,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=chosen.type,
    ).to_dict()
    folder, kind = training_folder(out), "train-teacher"
    if resume:
        run = Run.open(folder, kind, progress)
        run.expect_config(config)
    else:
        run = Run.create(folder, kind, config, progress)
    with torch.random.fork_rng(devices=[]):
        settle_threads(run, Classifier(build_net(arch, domain), domain, arch), batch_size)
    return Training(
        run, place, train, domain, arch, epochs, batch_size, learning_rate, seed, chosen
    )


def training_folder(out: PathLike) -> Path:
    """Where a training keeps what it needs to go on, until the checkpoint is written."""
    return Path(f"{os.fspath(out)}.training")
