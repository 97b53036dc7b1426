"""A row of the paper with one seed: inputs that are made once, and the students of these."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..comparing.trials import ALL
from ..compression import load_teacher
from ..compression.batchnorm import batchnorm_layers
from ..config import Device
from ..data.datasets import LabelledData
from ..device import choose_device, free_memory, peak_memory
from ..domain import DOMAINS
from ..errors import CheckpointError, TrainingError
from ..evaluation import accuracy
from ..files import write_json
from ..job import Plan
from ..job.planning import PlannedStage, existing, fits_memory, too_large
from ..job.repair import Damage
from ..runs import Run
from ..runs.store import RECORD, RESULT
from ..students import as_specs, build, calibration_set, seeded_generator
from ..synthesizers.kegnet import KegNetOptions
from ..teachers import Classifier, Teacher
from ..training import (
    Checkpoints,
    Progress,
    Rehearsal,
    Stateful,
    TrainingLoop,
    channels_last,
    keep_layout,
)
from ..training.state import load_state, save_state
from .inputs import Made, flow_inputs, kegnet_inputs, noise_inputs, sample_inputs
from .recipes import Recipe

INPUTS = "inputs"  # the stage that makes them, and its file
LOOKED_AT = 200  # test images whose time tells that of all


@dataclass(frozen=True)
class PublishedResult:
    """What came out of a trial; students by name.

    Arguments:
        last: The accuracy on the test images with the last weights.
        best: The largest over all looks at the test images, that before any training included:
            what the authors print. It is chosen by the test images, so nothing here uses it.
        curve: Every look, in order, for the record.
        stages: How long each stage took, in seconds.
    """

    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    curve: dict[str, list[float]] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedTrial:
    """A row that the paper has, as the paper has it, with one seed.

    Arguments:
        name: The row, as the table calls it.
        row: What makes its inputs: `"uniform"`, `"normal"`, `"kegnet"`, `"bdnf"` or `"samples"`.
        data: The data set.
        seed: The seed of everything random.
        students: The papers' students, by name.
        recipe: The settings.
        kegnet: Those of KegNet.
        teacher: The teacher's file, or a teacher in memory.
        test: The test images, which choose nothing but the result's `best`.
        folder: The run's folder.
        samples: The few real samples, if the row has them.
        device: Where to compute.
    """

    name: str
    row: str
    data: str
    seed: int
    students: tuple[str, ...]
    recipe: Recipe
    kegnet: KegNetOptions
    teacher: Path | Teacher
    test: LabelledData = field(repr=False)
    folder: Path
    samples: LabelledData | None = field(default=None, repr=False)
    device: Device = "auto"

    @property
    def title(self) -> str:
        """What it is called in reports."""
        return f"{self.group}, seed {self.seed}"

    @property
    def group(self) -> str:
        """What it is called with all its seeds."""
        return f"{self.data}, {self.name}"

    @property
    def result(self) -> PublishedResult | None:
        """What :meth:`run` has written, or `None`."""
        path = self.folder / RESULT
        try:
            return PublishedResult(**json.loads(path.read_text())) if path.exists() else None
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}); pass --repair (repair=True), and the trial is run "
                "again."
            ) from error

    def run(self, progress: Progress | None = None) -> None:
        """Makes the inputs and trains the students, as far as that has not been done.

        Raises:
            TrainingError: If a loss stays non-finite.
        """
        if self.result is not None:
            return
        run, teacher = self._open(progress), self._load_teacher()
        with run.locked():
            made = self._inputs(run, teacher)
            curves: dict[str, list[float]] = {}
            for name in self.students:
                with run.stage(_stage(name)):
                    student = fresh_student(teacher, name, self.seed)
                    curves[name] = train_on(student, made, self, run.checkpoints(f"student-{name}"))
            result = PublishedResult(
                last={name: curve[-1] for name, curve in curves.items()},
                best={name: max(curve) for name, curve in curves.items()},
                curve=curves,
                stages=run.record.seconds,
            )
            write_json(self.folder / RESULT, asdict(result))
            for path in (run / "checkpoints").glob("*"):  # the flow's state is half a gigabyte
                path.unlink()

    def plan(self) -> tuple[Plan, int]:
        """What the rest of it will take, of which nothing stays; what makes the inputs takes a few
        real steps, and so does one student, to which the others are taken to be alike.

        Raises:
            UsageError: If memory cannot hold it.
        """
        run, teacher = self._open(None), self._load_teacher()
        device, stages = next(teacher.parameters()).device, list[PlannedStage]()
        free, kept = free_memory(device), 0
        left = [name for name in self.students if not run.done(_stage(name))]
        loops = [(INPUTS, 1, self._rehearse_inputs)] if not _inputs_path(run).exists() else []
        loops += [("students", len(left), self._rehearse_student)] if left else []
        for name, count, rehearse in loops:
            found = Rehearsal()
            with torch.random.fork_rng(), suppress(TrainingError):  # which the stage itself raises
                if not fits_memory(device, free, partial(rehearse, teacher, found)):
                    raise too_large(name, free, ["choose another --preset"])
            if found.steps:  # else it is over in a moment
                stages.append(PlannedStage(name, count * found.steps, count * found.seconds))
            kept += 2 * count * found.bytes  # the last state, and the next while it is written
        per_input = teacher.domain.float_bytes + 4 * teacher.domain.classes
        disk = kept + self.recipe.set_size * per_input
        room = shutil.disk_usage(existing(self.folder)).free
        plan = Plan(
            str(self.folder), tuple(stages), peak_memory(device), free, disk, room, per_input
        )
        return plan, disk

    def _rehearse_inputs(self, teacher: Teacher, found: Rehearsal) -> None:
        few = self.recipe.changed(set_size=min(self.recipe.set_size, self.recipe.batch_size))
        replace(self, recipe=few)._make(teacher, found)

    def _rehearse_student(self, teacher: Teacher, found: Rehearsal) -> None:
        student = fresh_student(teacher, self.students[0], self.seed)
        test = self.test
        few = LabelledData(test.inputs[:LOOKED_AT], test.labels[:LOOKED_AT], test.name)
        start = time.perf_counter()
        accuracy(student, few)
        look = (time.perf_counter() - start) / len(few) * len(test)
        # As many inputs as there will be, all of them one.
        count = 10 * len(self.samples) if self.samples else self.recipe.set_size
        classes = teacher.domain.classes
        u = torch.zeros(1, *teacher.domain.shape).expand(count, -1, -1, -1)
        labels = torch.full((1, classes), 1 / classes).expand(count, -1)
        train_on(student, (u, labels), replace(self, test=few), found)
        found.seconds += look * (1 + -(-self.recipe.epochs // self.recipe.check_every))

    def find_damages(self) -> list[Damage]:
        """What of it is damaged."""
        return [*self._damages()]

    def repair(self, damages: Sequence[Damage], progress: Progress) -> None:
        """Deletes what is damaged, and lets the stages that make it run again.

        Arguments:
            damages: What :meth:`find_damages` found.
            progress: Where it says so.
        """
        del progress
        if any(damage.stage == ALL for damage in damages):
            shutil.rmtree(self.folder)
            return
        run = self._open(None)
        with run.locked():
            for damage in damages:
                damage.path.unlink()
            again = {damage.stage for damage in damages}
            run.record.done = [stage for stage in run.record.done if stage not in again]
            run.write()

    def _damages(self) -> Iterator[Damage]:
        if not (self.folder / RECORD).exists():
            return
        try:
            self._open(None)
        except CheckpointError as error:
            yield Damage(self.folder / RECORD, ALL, str(error))
        try:
            _ = self.result
        except CheckpointError as error:
            yield Damage(self.folder / RESULT, "trial", str(error))
        for path in sorted((self.folder / "checkpoints").glob("*.safetensors")):
            try:
                load_state(path)
            except CheckpointError as error:
                name = path.stem.removeprefix("student-")
                stage = _stage(name) if name in self.students else INPUTS
                yield Damage(path, stage, str(error))

    def _load_teacher(self) -> Teacher:
        given = self.teacher
        if not isinstance(given, Teacher):
            given = load_teacher(given, domain=DOMAINS[self.data])
        return given.to(choose_device(self.device))

    def _open(self, progress: Progress | None) -> Run:
        config: dict[str, Any] = {
            "row": self.row,
            "data": self.data,
            "seed": self.seed,
            "samples": None if self.samples is None else self.samples.name,
            "recipe": self.recipe.to_dict(),
            "kegnet": self.kegnet.to_dict(),
        }
        if not (self.folder / "run.json").exists():
            return Run.create(self.folder, "trial", config, progress)
        run = Run.open(self.folder, "trial", progress)
        run.expect_config(config)
        return run

    def _inputs(self, run: Run, teacher: Teacher) -> Made:
        """The inputs, from the folder if they have been made."""
        path = _inputs_path(run)
        if not path.exists():
            with run.stage(INPUTS):
                u, labels = self._make(teacher, run.checkpoints(self.row))
                save_state(path, {"inputs": u, "labels": labels})
        kept = load_state(path)
        return kept["inputs"], kept["labels"]

    def _make(self, teacher: Teacher, checkpoints: Checkpoints) -> Made:
        recipe, generator = self.recipe, seeded_generator(self.seed, self.row)
        if self.row == "samples":
            assert self.samples is not None
            return sample_inputs(teacher, recipe, self.samples)
        if self.row == "bdnf":
            return flow_inputs(teacher, recipe, self.samples, generator, checkpoints)
        if self.row == "kegnet":
            return kegnet_inputs(teacher, recipe, self.kegnet, generator, checkpoints)
        return noise_inputs(self.row, teacher, recipe, generator)


def _stage(student: str) -> str:
    return f"student {student}"


def _inputs_path(run: Run) -> Path:
    return run / "checkpoints" / f"{INPUTS}.safetensors"


def fresh_student(teacher: Teacher, name: str, seed: int) -> Classifier:
    """A paper's student whose batch normalisation keeps statistics, scales and shifts."""
    (spec,) = as_specs([name])
    student = build(teacher, spec.changed(bn="freeze"), calibration_set(teacher, seed)).classifier
    for layer in batchnorm_layers(student):
        layer.requires_grad_(False)
    return student


class Curve:
    """The accuracies found so far, as a part of a training that may be stopped."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"values": list(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.values = list(state_dict["values"])


def train_on(
    student: Classifier, made: Made, trial: PublishedTrial, checkpoints: Checkpoints
) -> list[float]:
    """Trains a student in place by the forward KL divergence, in the order of the inputs.

    Arguments:
        student: The student.
        made: Inputs of its net, and the labels it is to give them.
        trial: The trial, of which the recipe and the test images are used.
        checkpoints: Where states are kept.

    Returns:
        Its accuracy on the test images: before any training, after passes over the inputs as often
        as the recipe says, and at the end.
    """
    recipe = trial.recipe
    u, labels = made
    # Of ten samples a step has all, one round.
    size = len(trial.samples) if trial.row == "samples" and trial.samples else recipe.student_batch
    per_epoch = -(-len(u) // size)
    steps, every = recipe.epochs * per_epoch, recipe.check_every * per_epoch
    with channels_last(student):
        weights = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, recipe.student_rate)
        keep_layout(optimizer)
        curve = Curve()
        parts: dict[str, Stateful] = {"student": student, "optimizer": optimizer, "curve": curve}
        device = next(student.parameters()).device
        loop = TrainingLoop(
            f"train {checkpoints.stage}",
            steps,
            parts,
            torch.Generator(),
            optimizer,
            checkpoints,
        )
        student.eval()
        if not curve.values:
            curve.values.append(accuracy(student, trial.test))
        for step in loop:
            start = step % per_epoch * size
            x, target = (part[start : start + size].to(device) for part in (u, labels))
            loss = divergence(student.net, x, target)
            if loop.accept(loss):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if (step + 1) % every == 0 or step + 1 == steps:
                curve.values.append(accuracy(student, trial.test))
    return curve.values


def divergence(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    r""":math:`\langle \mathrm{KL}(q \,\|\, p) \rangle` of labels q and what the net says, p."""
    return F.kl_div(net(x).log_softmax(1), target, reduction="batchmean")
