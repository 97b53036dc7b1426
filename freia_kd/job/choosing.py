"""`--synthesizer auto`: short runs of what suits a teacher, judged by inputs new to all."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from .. import ranks
from ..config import DistillationOptions
from ..data.synthetic import SyntheticSet, SyntheticWriter
from ..distillation import train_student
from ..errors import CheckpointError, TrainingError, UsageError
from ..files import TRIAL
from ..report import words
from ..report.schema import Candidate, Choice
from ..students import StudentSpec, build, calibration_set, seeded_generator
from ..synthesizers import AUTO, AUTO_TRIES, build_synthesizers, get_synthesizer
from ..synthesizers.contract import Synthesizer, families_of
from ..synthesizers.on_the_fly import generate_labelled
from ..synthesizers.samples import Samples
from ..teachers import Classifier
from ..teachers.classifier import autocasting
from ..training.state import load_state, save_state
from ..trust import Judge, can_judge, hold_contest, make_judges
from ..version import __version__
from .job import Job, PlannedStage, fingerprint, options_of
from .planning import TRAIN, make_plan
from .synthesis import weakness

STAGE = "choose"
STEPS, MIN_STEPS = 200, 40  # of a short training; with fewer nothing can be told
BATCH_SIZE = 64
SET_SIZE, SET_BYTES = 8_192, 2**27  # inputs of each synthesizer that are made for it, at most
JUDGED = 2_048  # inputs of each judge
SHARE = 0.2  # of the minutes of a run, at most
SURE = 0.9  # from which certainty the best is taken in place of the default

Mixtures = dict[str, tuple[str | Synthesizer, ...]]  # what is tried, by names joined by +
Made = tuple[Tensor, Tensor, Tensor]  # inputs with logits and labels


@dataclass(frozen=True)
class Trials:
    """The short runs by which synthesizers are chosen.

    Arguments:
        job: The job, with its default synthesizers.
        mixtures: What is tried.
        default: Which of them the job takes unless another is surely better.
        judges: Inputs of families that are part of no mixture, where the teacher is confident.
        steps: The steps of each training; 0 where there is no time to try anything, or no judge.
        seconds: About how long they take, all together.
    """

    job: Job
    mixtures: Mixtures
    default: str
    judges: list[Judge]
    steps: int = 0
    seconds: float = 0.0

    @property
    def stages(self) -> tuple[PlannedStage, ...]:
        """What a plan says of them."""
        stage = PlannedStage(STAGE, len(self.mixtures), self.seconds, self.seconds)
        return (stage,) if self.steps else ()


def mixtures_of(job: Job, partners: Sequence[str | Synthesizer]) -> tuple[Mixtures, str]:
    """What can be tried for a job, and the name of its default among it.

    Arguments:
        job: The job, with its default synthesizers and the partners.
        partners: What is part of every mixture, such as real samples.
    """
    teacher, own = job.teacher, [name_of(partner) for partner in partners]
    suiting = [
        name
        for name in AUTO_TRIES
        if get_synthesizer(name).unsupported_reason(teacher, job.samples) is None
        and name not in own
    ]
    sizes = range(0 if partners else 1, len(suiting) + 1)
    mixed = [names for size in sizes for names in combinations(suiting, size)]
    default = tuple(source.name for source in job.synthesizers if source.name not in own)
    mixtures: Mixtures = {}
    for names in dict.fromkeys([default, *mixed]):
        parts = joined(names, partners)
        mixtures["+".join(map(name_of, parts))] = parts
    return mixtures, next(iter(mixtures))


def joined(
    names: Sequence[str], partners: Sequence[str | Synthesizer]
) -> tuple[str | Synthesizer, ...]:
    """A mixture's parts in the order of the defaults: real samples first.

    Arguments:
        names: What is tried.
        partners: What is part of every mixture.
    """
    first = [p for p in partners if name_of(p) == Samples.name]
    return (*first, *names, *(p for p in partners if p not in first))


def name_of(part: str | Synthesizer) -> str:
    """The name of a synthesizer, which may itself be given by its name or path."""
    return get_synthesizer(part).name if isinstance(part, str) else part.name


def expect_no_student(partners: Sequence[object], synthesizers: Sequence[Synthesizer]) -> None:
    """Raises if something that learns from a student is to be part of every mixture.

    Arguments:
        partners: What is part of every mixture; without any nothing is refused.
        synthesizers: The default synthesizers with the partners.

    Raises:
        UsageError: If so, since each mixture would need one of its own.
    """
    names = [source.name for source in synthesizers if source.needs_student]
    if partners and names:
        raise UsageError(
            f"The synthesizer {', '.join(names)} learns from a student, so that {AUTO} cannot try "
            f"mixtures with it; leave {AUTO} out."
        )


def plan_trials(
    job: Job, partners: Sequence[str | Synthesizer], seconds: float | None = None
) -> Trials:
    """How long the short runs will be, from a few real steps.

    Arguments:
        job: The job.
        partners: What is part of every mixture.
        seconds: How long they may take; if `None`, the steps are `STEPS`, so that the choice
            depends on the seed alone.
    """
    mixtures, default = mixtures_of(job, partners)
    trials = Trials(job, mixtures, default, _judges(job, mixtures))
    if not trials.judges:
        return trials
    steps, rest, each = _rehearse(trials)
    if seconds is not None:
        most = (seconds - rest) / max(each * len(mixtures), 1e-9)
        if most < min(MIN_STEPS, steps):
            return trials
        steps = min(steps, int(most))
    return replace(trials, steps=steps, seconds=rest + steps * each * len(mixtures))


def _rehearse(trials: Trials) -> tuple[int, float, float]:
    """The most steps of a training, the seconds of all else, and those of one step."""
    job, steps = trials.job, min(STEPS, trials.job.config.steps)
    training = _training(job, steps).changed(boundaries=0.0)
    config = job.config.changed(
        training=training, set_size=_set_size(job), heldout_size=BATCH_SIZE, on_the_fly=False
    )
    sources = _sources(trials.mixtures)
    rehearsed = replace(job, config=config, synthesizers=sources, specs=[_spec(job)])
    stages = make_plan(rehearsed).stages
    times = [len(sources) if stage.name.endswith(TRAIN) else 1 for stage in stages]
    seconds = [n * (s.seconds or 0.0) for n, s in zip(times, stages, strict=True)]
    rest, each = sum(seconds[:-1]), seconds[-1] / steps  # the training comes last
    return steps, ranks.agreed(rest), ranks.agreed(each)


def choose_synthesizer(trials: Trials) -> Choice:
    """Tries every mixture, and takes the best if that is sure enough, else the default.

    Each trains the same student from the same start, for the same steps, by the same random
    numbers. They are judged together, on inputs of families that are part of none of them.

    Arguments:
        trials: The short runs.
    """
    start, choice = time.monotonic(), Choice(synthesizer=trials.default, default=trials.default)
    if trials.steps:
        failed: dict[str, str] = {}
        students = train_candidates(trials, failed)
        found, strata = hold_contest(students, trials.judges, trials.job.config.seed)
        families = dict.fromkeys(s.family for s in strata)
        choice = replace(
            choice,
            candidates=found,
            judged={f: sum(s.same.shape[1] for s in strata if s.family == f) for f in families},
            classes={f: sum(s.family == f for s in strata) for f in families},
            steps=trials.steps,
            failed=failed,
        )
        if found and found[0].certainty >= SURE:
            choice = replace(choice, synthesizer=found[0].synthesizer)
    return replace(
        choice,
        seconds=round(time.monotonic() - start, 3),
        sentence=describe(choice, has_judges=bool(trials.judges)),
    )


def describe(choice: Choice, has_judges: bool = True) -> str:
    """A choice in words.

    Arguments:
        choice: The choice.
        has_judges: Whether there was anything to judge by.
    """
    if choice.candidates:
        return _verdict(choice, choice.candidates[0])
    why = "there is too little time to try others"
    if not has_judges:
        why = (
            "there are no inputs of a family that is part of no mixture on which the teacher is "
            "confident, by which others could be judged"
        )
    elif choice.failed:
        why = "no short run succeeded"
    return f"Chosen: {choice.synthesizer}, the default, since {why}."


def _verdict(choice: Choice, best: Candidate) -> str:
    tried = f"of {len(choice.candidates)} mixtures tried for {choice.steps:,} steps each"
    families = " and ".join(choice.judged)
    sure = (
        f"in {best.certainty:.0%} of resamples of {sum(choice.judged.values()):,} inputs of "
        f"{families} the best {tried}"
    )
    if best.synthesizer == choice.synthesizer:
        is_sure = best.certainty >= SURE
        hint = "" if is_sure else ", too few to be sure, but it is the default as well"
        return f"Chosen: {choice.synthesizer}, {sure}{hint}."
    behind = next((c for c in choice.candidates if c.synthesizer == choice.default), None)
    points = "" if behind is None else f", {100 * (0.0 - behind.behind.value):.1f} points behind"
    return (
        f"Chosen: {choice.synthesizer}, the default, since the evidence does not tell: "
        f"{best.synthesizer} is only {sure} ({SURE:.0%} would do){points}."
    )


def train_candidates(trials: Trials, failed: dict[str, str] | None = None) -> dict[str, Classifier]:
    """The students of the short runs, by mixture.

    Arguments:
        trials: The short runs.
        failed: Gets the errors of those whose loss stays non-finite; raised if `None`.
    """
    job, seed, students = trials.job, trials.job.config.seed, dict[str, Classifier]()
    said = f"try {len(trials.mixtures)} mixtures, about {words.duration(trials.seconds)}"
    with (
        ranks.alone(),
        torch.random.fork_rng(),
        autocasting(job.teacher, job.config.precision),
        job.run.progress.stage(said, len(trials.mixtures)) as stage,
    ):
        inputs = calibration_set(job.teacher, seed)
        first = build(job.teacher, _spec(job), inputs, seed=seed).classifier
        made = dict[str, Made]()
        for source in _sources(trials.mixtures):
            with _noting(source.name, failed):
                made[source.name] = _made(job, source)
        for number, (name, parts) in enumerate(trials.mixtures.items(), 1):
            own = [made[name_of(part)] for part in parts if name_of(part) in made]
            if len(own) == len(parts):
                with _noting(name, failed):
                    students[name] = _trained(trials, first, own)
            stage.update(number, {})
    return students


@contextmanager
def _noting(name: str, failed: dict[str, str] | None) -> Iterator[None]:
    """Notes the error of a candidate that cannot be trained, and goes on without it."""
    try:
        yield
    except TrainingError as error:
        if failed is None:
            raise
        failed[name] = str(error)


def _made(job: Job, source: Synthesizer) -> Made:
    """Inputs of one synthesizer; those that are tried are kept, which depend on the job alone."""
    if source.name not in AUTO_TRIES:
        return _make(job, source)
    names = ("inputs", "logits", "labels")
    about = [source.name, _set_size(job), options_of(source)]
    kept = _kept(job, about, lambda: dict(zip(names, _make(job, source), strict=True)))
    return kept["inputs"], kept["logits"], kept["labels"]


def _trained(trials: Trials, first: Classifier, made: Sequence[Made]) -> Classifier:
    """A student after its short training, which is kept."""
    job, student = trials.job, copy.deepcopy(first)
    learned = [fingerprint({"inputs": x, "logits": logits}) for x, logits, _ in made]
    about = [trials.steps, _spec(job).to_dict(), learned]
    student.load_state_dict(_kept(job, about, lambda: _train(trials, student, made).state_dict()))
    return student.eval()


def _kept(job: Job, about: list[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a stopped call left of a trial, or what `make` makes, which is left for the next call.

    The file's name holds a hash of all that it depends on. It is deleted when the run begins.
    """
    text = json.dumps([__version__, torch.__version__, job.config.to_dict(), about])
    path = job.run / f"{TRIAL}{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        with suppress(CheckpointError):  # a damaged one is made again
            return load_state(path)
    state = make()
    save_state(path, state)
    return state


def _make(job: Job, source: Synthesizer) -> Made:
    """Inputs of one synthesizer, which all mixtures with it share.

    Raises:
        TrainingError: If its loss stays non-finite, or no student of a run would learn from them.
    """
    purpose = f"{STAGE} {source.name}"
    generator = seeded_generator(job.config.seed, purpose, job.device)
    source.fit(job.teacher, job.samples, None, generator)
    looks = seeded_generator(job.config.seed, f"{purpose} diagnostics", job.device)
    weak = weakness(source, source.diagnose(job.teacher, looks))
    if weak is not None:
        raise TrainingError(f"{weak}.")
    part = source.part(heldout=False)
    inputs, logits, labels = generate_labelled([part], job.teacher, _set_size(job), generator)
    return inputs.cpu(), logits.cpu(), labels.cpu()


def _train(trials: Trials, student: Classifier, made: Sequence[Made]) -> Classifier:
    """A student after its short training on an equal share of what each synthesizer made."""
    job, size = trials.job, _set_size(trials.job)
    with TemporaryDirectory() as folder:
        writer = SyntheticWriter(Path(folder), job.teacher.domain)
        for number, (inputs, logits, labels) in enumerate(made):
            rows = slice(-(-size // len(made)))
            writer.append(inputs[rows], logits[rows], labels[rows], number=number)
        train_student(
            student,
            SyntheticSet(folder),
            _training(job, trials.steps),
            seeded_generator(job.config.seed, STAGE),
            teacher=job.teacher,
            precision=job.config.precision,
        )
    return student


def _spec(job: Job) -> StudentSpec:
    """The student that is tried: the first one, after the first of its methods."""
    spec = job.specs[0] if job.specs else StudentSpec()
    return spec if spec.arch else spec.changed(methods=spec.methods[:1])


def _training(job: Job, steps: int) -> DistillationOptions:
    """How students of short runs learn."""
    size = min(BATCH_SIZE, job.config.batch_size)
    return job.config.training.changed(steps=steps, batch_size=size, check_every=steps)


def _set_size(job: Job) -> int:
    """How many inputs of each synthesizer are made."""
    most = SET_BYTES // math.prod(job.teacher.domain.shape)
    return max(BATCH_SIZE, min(SET_SIZE, most, job.config.set_size))


def _sources(mixtures: Mixtures) -> list[Synthesizer]:
    """Each synthesizer of the mixtures once, with quick settings where it has a choice."""
    parts = dict.fromkeys(part for parts in mixtures.values() for part in parts)
    return build_synthesizers([copy.deepcopy(part) for part in parts], "quick")


def _judges(job: Job, mixtures: Mixtures) -> list[Judge]:
    """Inputs that can judge, of families that are part of no mixture."""
    learned = families_of(_sources(mixtures))
    judges = make_judges(job.teacher, job.config.seed, JUDGED)
    return [judge for judge in judges if judge.family not in learned and can_judge(judge)]
