"""`--minutes`: a run as long as is wanted, by one factor of all its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .. import ranks
from ..compression.cost import count_macs
from ..config import get_preset
from ..errors import UsageError
from ..synthesizers.contract import Synthesizer
from .job import Job, options_of
from .planning import TRAIN, Plan, make_plan

RESERVE = 0.05  # of the time, for what no plan knows: compression and the last measurements
LEAST = 0.1  # of the steps of a student that has the preset `quick`
ROOM = 0.5  # of the memory and the disk that are free, which a larger set may take


@dataclass(frozen=True)
class Budget:
    """How long a run may take.

    Arguments:
        minutes: In all.
        spent: The seconds that went into the choice of synthesizers.
        has_size: Whether the size of the set was asked for, and stays.
    """

    minutes: float
    spent: float = 0.0
    has_size: bool = False

    def fit(self, job: Job, is_strict: bool = True) -> Job:
        """The job with its steps multiplied so that its plan takes the time that there is.

        Multiplied are the students' steps and the steps between their checks, the steps of
        synthesizers that have some, and the size of the set, which grows to half of what memory and
        disk hold at most. The factor comes from a few measured steps, so that it differs from one
        opening of a run to another; of a run that has begun the record holds what came of it.

        Arguments:
            job: The job, of which nothing has been done.
            is_strict: Whether a time in which nothing sensible can be done is refused; else as few
                steps are taken as make sense.

        Raises:
            UsageError: If so, or if nobody knows how long a stage takes.
        """
        plan = make_plan(job)
        unknown = [stage.name for stage in plan.stages if stage.seconds is None]
        if unknown:
            raise UsageError(
                f"How long {', '.join(unknown)} takes is not known before, so that --minutes "
                "cannot be met; leave it out, and choose --preset or --set NAME.steps."
            )
        least = self._least(job)
        factor, size = self._solve(job, plan)
        factor = ranks.agreed(factor)
        if factor < least and is_strict:
            needed = self._needed(plan, least)
            raise UsageError(
                f"--minutes {self.minutes:g} is too short: a tenth of the steps of a student of "
                f"preset quick takes about {needed:g} here. Pass --minutes {needed:g} or more, "
                "fewer students, or another --synthesizer."
            )
        factor = max(factor, least)
        return _multiplied(job, factor, round(ranks.agreed(size or factor * job.config.set_size)))

    def _least(self, job: Job) -> float:
        quick, macs = get_preset("quick"), count_macs(job.teacher, job.teacher.domain.shape)
        steps = quick.training.sized(macs, quick.share_of(macs)).steps
        assert steps is not None
        return min(1.0, LEAST * steps / job.config.steps)

    def _solve(self, job: Job, plan: Plan) -> tuple[float, int]:
        """The factor, and the size of the set where it is not multiplied by it, else 0."""
        fixed, each, made = _parts(plan)
        left = 60 * self.minutes * (1 - RESERVE) - self.spent - fixed
        size = job.config.set_size
        if self.has_size or not made:
            return (left - made) / max(each, 1e-9), size
        factor, most = left / (each + made), _most(job, plan)
        if factor * size <= most:
            return factor, 0
        # Without any other stage only the set takes time.
        return ((left - made * most / size) / each if each else most / size), most

    def _needed(self, plan: Plan, least: float) -> float:
        fixed, each, made = _parts(plan)
        size = 1.0 if self.has_size else least
        seconds = self.spent + fixed + least * each + size * made
        return math.ceil(10 * seconds / 60 / (1 - RESERVE) + 0.5) / 10


def _parts(plan: Plan) -> tuple[float, float, float]:
    """The seconds that stay, those that grow with the steps, and those that grow with the set."""
    made = sum(s.seconds or 0.0 for s in plan.stages if s.name.endswith(TRAIN))
    fixed = sum(s.fixed for s in plan.stages)
    return fixed, plan.seconds - fixed - made, made


def _most(job: Job, plan: Plan) -> int:
    """How many inputs a set may have that is larger than asked for."""
    free = min(room for room in (plan.disk_free, plan.memory_free) if room is not None)
    return max(job.config.set_size, int(ROOM * free / plan.input_bytes))


def _multiplied(job: Job, factor: float, size: int) -> Job:
    training = job.config.training

    def times(steps: int) -> int:
        return max(1, round(factor * steps))

    synthesizers = [
        _longer(s, times(s.options.steps)) if _has_steps(s) else s for s in job.synthesizers
    ]
    config = job.config.changed(
        training=training.changed(
            steps=times(job.config.steps), check_every=times(job.config.check_every)
        ),
        set_size=max(1, size),
        synthesizers={s.name: options_of(s) for s in synthesizers},
    )
    return job.changed(config, synthesizers)


def _has_steps(source: Synthesizer) -> bool:
    return "steps" in source.known_options()


def _longer(source: Synthesizer, steps: int) -> Synthesizer:
    return type(source)(source.options.changed(steps=steps))
