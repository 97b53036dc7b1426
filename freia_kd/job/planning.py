"""What a run will take, from a few real steps of each stage: time, memory and disk."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import ranks
from ..config import DistillationOptions
from ..device import free_memory, memory_limit, peak_memory
from ..distillation import train_student
from ..errors import TrainingError, UsageError
from ..report import words
from ..students import StudentSpec, seeded_generator
from ..synthesizers.contract import Synthesizer
from ..synthesizers.noise import Normal
from ..synthesizers.on_the_fly import OnTheFlySet, generate_labelled
from ..teachers import Classifier, Teacher
from ..training import Rehearsal
from .job import Job, PlannedStage
from .student import training_stages
from .synthesis import needs_students, stage_of

INPUTS = 64  # of each synthesizer that are made to see how long one takes
LOOKED_AT = 612  # inputs that are made of each synthesizer for its diagnostics and its picture
TRAIN = "/train"  # how the name of the stage ends that makes what students learn from
SMALLEST_BATCH = 8  # that is tried where memory is short
LONGEST_SEARCH = 10.0  # seconds in which a batch that fits is looked for
SPARED = 0.15  # of the memory that is free, which other processes may want meanwhile


@dataclass(frozen=True)
class Plan:
    """What is left to do of a run, and what that takes.

    Arguments:
        folder: The run's folder.
        stages: The stages to come.
        memory: The most bytes of memory that a few real steps of each stage took, in all.
        memory_free: How many were free before, or `None` where that is not known.
        disk: About the bytes that the run will write, at the most at a time.
        disk_free: How many are free in its folder.
        input_bytes: The bytes of a synthetic input with its logits, on disk.
        minutes: How long the run is to take in all, if that was said.
        besides: What is not in the time.
    """

    folder: str
    stages: tuple[PlannedStage, ...]
    memory: int
    memory_free: int | None
    disk: int
    disk_free: int
    input_bytes: int
    minutes: float | None = None
    besides: str = "compression and measuring"

    @property
    def seconds(self) -> float:
        """The time of all stages of which it is known."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    def describe(self) -> str:
        """The plan in a sentence or two."""
        stages = ", ".join(
            f"{s.name} {told(s.seconds)}{f' ({s.steps:,})' if s.steps else ''}" for s in self.stages
        )
        free = "" if self.memory_free is None else f" ({words.size(self.memory_free)} free)"
        disk = f"{words.size(self.disk)} ({words.size(self.disk_free)} free)"
        long = words.duration(self.seconds)
        if self.minutes is not None:
            long += f" of the {words.duration(60 * self.minutes)} asked for"
        return (
            f"Plan: about {long}, besides {self.besides}{f': {stages}' if stages else ''}. "
            f"Memory {words.size(self.memory)}{free}, disk {disk}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return {**asdict(self), "seconds": self.seconds}

    def check(self, set_size: int) -> None:
        """Refuses a run that the disk cannot hold.

        Arguments:
            set_size: How many synthetic inputs it stores.

        Raises:
            UsageError: If so; the message says what would fit.
        """
        if self.disk <= self.disk_free:
            return
        over = self.disk - self.disk_free
        fits = set_size - math.ceil(over / self.input_bytes)
        smaller = f"--set-size {fits} would fit, or " if fits >= set_size // 10 else ""
        raise UsageError(
            f"The run would write about {self.disk:,} bytes, and {self.disk_free:,} are free where "
            f"{self.folder} is: {smaller}choose an --out with more room."
        )


def make_plan(job: Job) -> Plan:
    """Measures what a job will take; its folder and the random numbers of the run stay untouched.

    Every loop that trains takes a few real steps, of the real size; a student is as large as its
    teacher then, which it is at most. So it takes a second or two, more where a step does.

    Arguments:
        job: The job, of which only stages count that have not been done.

    Raises:
        UsageError: If memory or disk cannot hold the run; the message says what would fit.
    """
    free = free_memory(job.device)
    with torch.random.fork_rng(), ranks.alone():
        stages, kept, peak = _rehearse(job, free)
    config, domain = job.config, job.teacher.domain
    stored = config.heldout_size + (0 if config.on_the_fly else config.set_size)
    own = len(job.specs) if needs_students(job.synthesizers) else 1
    have = sum(f.stat().st_size for f in job.run.folder.glob("synthetic*/*/*.npy"))
    per_input = math.prod(domain.shape) * (1 if domain.is_image else 4) + 4 * domain.classes + 8
    plan = Plan(
        folder=str(job.run.folder),
        stages=(*job.ahead, *stages),
        memory=peak,
        memory_free=free,
        disk=max(0, own * stored * per_input - have) + kept,
        disk_free=shutil.disk_usage(existing(job.run.folder)).free,
        input_bytes=own * per_input,
        minutes=config.minutes,
    )
    plan.check(0 if config.on_the_fly else config.set_size)
    return plan


def plan_training(
    folder: Path,
    device: torch.device,
    batch_size: int,
    train: Callable[[int, Rehearsal], object],
    done: float = 0.0,
) -> Plan:
    """Measures what the training of a teacher will take, as :func:`make_plan` does of a run.

    Arguments:
        folder: Where it keeps what it needs to go on.
        device: Where it computes.
        batch_size: How many inputs a step takes.
        train: Trains with a batch size, as far as a rehearsal lets it.
        done: The share of it that has been done.

    Raises:
        UsageError: If memory or disk cannot hold it; the message says what would fit.
    """
    free, found = free_memory(device), Rehearsal()
    with torch.random.fork_rng(), suppress(TrainingError):  # which the training itself will raise
        if not fits_memory(device, free, lambda: train(batch_size, found)):

            def train_fewer(size: int) -> None:
                train(size, Rehearsal())

            said = _fewer(device, free, "--batch-size ", batch_size, train_fewer)
            raise too_large("train", free, said or ["choose a smaller --batch-size"])
    disk_free = shutil.disk_usage(existing(folder)).free
    seconds = (1 - done) * found.seconds if found.steps else None
    stages = (PlannedStage("train", round((1 - done) * found.steps), seconds),)
    memory, kept = peak_memory(device), 3 * found.bytes  # two states while one is written; the net
    plan = Plan(str(folder), stages, memory, free, kept, disk_free, 0, besides="measuring")
    if kept > disk_free:
        raise UsageError(
            f"The training would write about {kept:,} bytes, and {disk_free:,} are free where "
            f"{folder} is: choose an --out with more room."
        )
    return plan


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(f for f in (folder, *folder.parents) if f.exists())


def _rehearse(job: Job, free: int | None) -> tuple[list[PlannedStage], int, int]:
    """The stages to come, the bytes that they keep, and the memory that rehearsing them took."""
    specs: list[StudentSpec | None] = [*job.specs] if needs_students(job.synthesizers) else [None]
    sets = list(_sets(job, specs))
    trainings = [n for spec in job.specs for n in training_stages(job, spec) if not job.run.done(n)]
    fits = [
        (source, name)
        for source in job.synthesizers
        for name in dict.fromkeys(stage_of(source, spec) for spec in specs)
        if not job.run.done(name)
    ]
    if not (sets or trainings or fits):
        return [], 0, peak_memory(job.device)
    found = {}
    for source in filter(_is_built_in, job.synthesizers):
        with suppress(TrainingError):  # which the stage itself will raise, with all that it says
            found[source.name] = _fit(job, source, free)
    per_input, made = _make(job, [f.fitted for f in found.values()])
    is_known = len(found) == len(job.synthesizers)
    stages, kept = list[PlannedStage](), 0
    for source, name in fits:
        if source.name not in found:
            stages.append(PlannedStage(name, 0, None))
            continue
        fit = found[source.name]
        looked, fitted = LOOKED_AT * per_input, fit.seconds or 0.0
        fixed = looked if "steps" in source.known_options() else looked + fitted
        stages.append(PlannedStage(name, fit.steps, looked + fitted, fixed))
        kept += 2 * fit.bytes  # the last state, and the next one while it is written
    for name, count in sets:
        seconds = count * per_input if is_known else None
        fixed = 0.0 if seconds is None or name.endswith(TRAIN) else seconds
        stages.append(PlannedStage(name, count, seconds, fixed))
    if trainings:  # each student is taken to be as large as its teacher
        fit = _Rehearsed(job.config.steps, None, 0)
        with suppress(TrainingError):
            fit = _train(job, trainings[0], made, per_input, free)
        stages += [PlannedStage(name, fit.steps, fit.seconds, fit.fixed) for name in trainings]
        kept += 2 * fit.bytes * len(trainings)
    return stages, kept, peak_memory(job.device)


@dataclass(frozen=True)
class _Rehearsed:
    """What a few steps of a stage showed of the whole of it."""

    steps: int
    seconds: float | None
    bytes: int
    fitted: Any = None
    fixed: float = 0.0


def _sets(job: Job, specs: list[StudentSpec | None]) -> Iterator[tuple[str, int]]:
    sizes = {"heldout": job.config.heldout_size, "train": job.config.set_size}
    for spec in specs:
        for half, count in sizes.items():
            name = f"synthetic{'' if spec is None else f'-{spec.name}'}/{half}"
            if not (job.run.done(name) or (half == "train" and job.config.on_the_fly)):
                yield name, count


def told(seconds: float | None) -> str:
    """A time in words."""
    return "(time not known)" if seconds is None else words.duration(seconds)


def _is_built_in(source: Synthesizer) -> bool:
    """Whether a few steps tell of the whole: its loops are those that a rehearsal can end."""
    return type(source).__module__.partition(".")[0] == __name__.partition(".")[0]


def _fit(job: Job, source: Synthesizer, free: int | None) -> _Rehearsed:
    """A synthesizer after a few steps."""

    def fit(changed: Synthesizer, found: Rehearsal) -> None:
        student = _stand_in(job.teacher) if source.needs_student else None
        generator = seeded_generator(job.config.seed, "plan", job.device)
        changed.fit(job.teacher, job.samples, found, generator, student)

    def fit_fewer(size: int) -> None:
        fit(type(source)(source.options.changed(batch_size=size)), Rehearsal())

    trial, found, start = copy.deepcopy(source), Rehearsal(), time.perf_counter()
    size = getattr(source.options, "batch_size", 0)
    inputs = size * job.teacher.domain.float_bytes
    if not fits_memory(job.device, free, lambda: fit(trial, found), inputs):
        remedy = _fewer(job.device, free, f"--set {source.name}.batch_size=", size, fit_fewer)
        raise too_large(source.name, free, [*remedy, "choose another --synthesizer"])
    seconds = found.seconds if found.steps else time.perf_counter() - start
    return _Rehearsed(found.steps, seconds, found.bytes, trial)


def fits_memory(
    device: torch.device, free: int | None, work: Callable[[], object], inputs: int = 0
) -> bool:
    """Whether memory holds some work; what it held is free again when this returns.

    Arguments:
        device: Where it computes.
        free: The bytes that are free, if that is known.
        work: The work, which is not begun if its inputs alone are more than that.
        inputs: The bytes of a step's inputs.
    """
    if free is not None and inputs > free:
        return False
    limit = None if free is None or device.type != "cpu" else int((1 - SPARED) * free)
    try:
        with memory_limit(limit):
            work()
    except (MemoryError, torch.cuda.OutOfMemoryError):
        return False
    return True


def _fewer(
    device: torch.device, free: int | None, option: str, size: int, work: Callable[[int], None]
) -> list[str]:
    """The advice to take a smaller batch, if one is found that memory holds.

    It is looked for from below, so that hardly more memory is taken than what fits, nor much time.
    """
    fits, tried, end = 0, SMALLEST_BATCH, time.monotonic() + LONGEST_SEARCH
    while (
        tried < size and time.monotonic() < end and fits_memory(device, free, partial(work, tried))
    ):
        fits, tried = tried, 4 * tried
    return [f"{option}{fits} would fit"] if fits else []


def too_large(stage: str, free: int | None, remedies: Sequence[str]) -> UsageError:
    """The error of a stage that memory cannot hold.

    Arguments:
        stage: Its name.
        free: The bytes that were free, if that is known.
        remedies: What to do instead.
    """
    room = "the memory that is free" if free is None else f"the {free:,} bytes that are free"
    return UsageError(
        f"The stage {stage} needs more memory than {room} here: {', or '.join(remedies)}."
    )


def _stand_in(teacher: Teacher) -> Classifier:
    """A student of the teacher's own size, before there is another."""
    net = copy.deepcopy(teacher.net).requires_grad_(True)
    return Classifier(net, teacher.domain, teacher.arch).to(next(teacher.parameters()).device)


def _make(job: Job, sources: list[Synthesizer]) -> tuple[float, tuple[Tensor, Tensor, Tensor]]:
    """The seconds that an input takes with its logits, and a few of them; of noise if need be."""
    sources = sources or [_noise(job.teacher)]
    count = len(sources) * min(INPUTS, max(job.config.heldout_size, 1))
    generator = seeded_generator(job.config.seed, "plan", job.device)
    generate_labelled(sources, job.teacher, len(sources), generator)  # which warms up
    start = time.perf_counter()
    made = generate_labelled(sources, job.teacher, count, generator)
    return (time.perf_counter() - start) / count, made


def _noise(teacher: Teacher) -> Synthesizer:
    noise = Normal()
    noise.fit(teacher)
    return noise


class _Repeated(OnTheFlySet):
    """A few inputs over and over, in place of a set that is not there yet."""

    def __init__(self, made: tuple[Tensor, Tensor, Tensor], teacher: Teacher) -> None:
        super().__init__([], teacher, 0, chunk=len(made[0]))
        self.made = made

    def _make(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        inputs, logits, labels = self.made
        return inputs.cpu(), logits.cpu(), labels.cpu()


def _train(
    job: Job,
    name: str,
    made: tuple[Tensor, Tensor, Tensor],
    per_input: float,
    free: int | None,
) -> _Rehearsed:
    """A student's training."""
    options, rehearsal = job.config.training, Rehearsal()

    def train(changed: DistillationOptions, found: Rehearsal) -> None:
        data, generator = _Repeated(made, job.teacher), seeded_generator(0, "plan")
        student = _stand_in(job.teacher)
        train_student(
            student,
            data,
            changed,
            generator,
            found,
            teacher=job.teacher,
            precision=job.config.precision,
        )

    def train_fewer(size: int) -> None:
        train(options.changed(batch_size=size), Rehearsal())

    option, size = "--set student.batch_size=", job.config.batch_size
    inputs = size * job.teacher.domain.float_bytes
    if not fits_memory(job.device, free, lambda: train(options, rehearsal), inputs):
        remedy = _fewer(job.device, free, option, size, train_fewer)
        raise too_large(name, free, remedy or [f"choose a smaller {option}..."])
    steps = job.config.steps
    checks = steps / job.config.check_every
    judging = checks * job.config.heldout_size / 2 * _per_answer(job.teacher, made[0])
    seconds = rehearsal.seconds + judging
    if job.config.on_the_fly:
        seconds += steps * size * per_input
    return _Rehearsed(steps, seconds, rehearsal.bytes, fixed=judging)


@torch.no_grad()
def _per_answer(teacher: Teacher, inputs: Tensor) -> float:
    """The seconds of the teacher's answer to one input."""
    x = inputs.float().to(next(teacher.parameters()).device)
    start = time.perf_counter()
    teacher(x)
    return (time.perf_counter() - start) / len(x)
