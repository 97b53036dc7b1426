"""The synthetic sets of a run: synthesizers fitted, inputs made and labelled by the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from .. import ranks
from ..compression.cost import affordable
from ..data.synthetic import SyntheticSet, SyntheticWriter, shard_path
from ..domain import Domain
from ..errors import TrainingError
from ..objectives.monitors import Diagnostics
from ..report.plots import plot_grid, write_png
from ..students import Student, StudentSpec, seeded_generator
from ..synthesizers.contract import Synthesizer
from ..synthesizers.noise import Noise
from ..synthesizers.on_the_fly import OnTheFlySet, generate_labelled
from .job import Job

DRAWS, PICTURE_MACS = 10, 256e9  # of noise for a picture by class, and what they may cost in all
SHARD = 4096  # synthetic inputs in a shard at most, the grain in which making a set resumes
SHARD_BYTES = 2**28  # of these inputs as float32: some times as much is resident while one is made


def needs_students(synthesizers: Sequence[Synthesizer]) -> bool:
    """Whether each student has inputs of its own, since a synthesizer learns from it."""
    return any(synthesizer.needs_student for synthesizer in synthesizers)


def synthesize(
    job: Job, spec: StudentSpec | None, student: Student | None
) -> tuple[SyntheticSet | OnTheFlySet, SyntheticSet]:
    """Fits the synthesizers and makes what a student learns from, and what measures it.

    Of the second set, inputs of even index choose the students' weights, those of odd index
    measure them.

    Arguments:
        job: The job.
        spec: The student they are for, where a synthesizer learns from one.
        student: That student before its training.

    Raises:
        TrainingError: If a loss stays non-finite, or no synthesizer's inputs can be relied on.
    """
    own = spec is not None and needs_students(job.synthesizers)
    name = f"synthetic-{spec.name}" if spec is not None and own else "synthetic"
    stages = [f"{name}/heldout", *(stage_of(s, spec) for s in job.synthesizers)]
    stages += [] if job.config.on_the_fly else [f"{name}/train"]
    if job.config.on_the_fly or not all(map(job.run.done, stages)):
        for synthesizer in job.synthesizers:
            _fit(job, synthesizer, spec, student)
    sources = _reliable(job, spec)
    heldout = _make_set(job, sources, f"{name}/heldout", job.config.heldout_size)
    if not job.config.on_the_fly:
        return _make_set(job, sources, f"{name}/train", job.config.set_size), heldout
    seeds = seeded_generator(job.config.seed, f"{name} on the fly")
    on_the_fly = OnTheFlySet(
        [source.part(heldout=False) for source in sources],
        job.teacher,
        int(torch.randint(2**62, (), generator=seeds)),
        balanced=job.config.training.balanced,
    )
    return on_the_fly, heldout


def _reliable(job: Job, spec: StudentSpec | None) -> list[Synthesizer]:
    """The synthesizers whose inputs show the classes that these were made for.

    Raises:
        TrainingError: If there is none.
    """
    found = job.run.record.diagnostics
    entries = [(s, found.get(stage_of(s, spec), {})) for s in job.synthesizers]
    reliable = [s for s, entry in entries if entry.get("reliable", True)]
    if not reliable:
        said = " ".join(f"{s.name}: {w}" for s, entry in entries for w in entry["warnings"])
        raise TrainingError(f"There is nothing that the students could learn from. {said}")
    return reliable


def stage_of(synthesizer: Synthesizer, spec: StudentSpec | None) -> str:
    """The stage in which a synthesizer learns, of each student where it learns from one."""
    own = synthesizer.needs_student and spec is not None
    return f"{synthesizer.name}-{spec.name}" if own and spec is not None else synthesizer.name


def _fit(
    job: Job, synthesizer: Synthesizer, spec: StudentSpec | None, student: Student | None
) -> None:
    """Fits a synthesizer, or takes up what it has learned; says what looks wrong."""
    own, stage = synthesizer.needs_student and spec is not None, stage_of(synthesizer, spec)
    with job.run.stage(stage):
        # One that processes do not fit together the first one fits, and the others take it up.
        with nullcontext() if synthesizer.is_shared else ranks.first_before_others():
            synthesizer.fit(
                job.teacher,
                job.samples,
                job.run.checkpoints(stage),
                seeded_generator(job.config.seed, stage, job.device),
                student.classifier if own and student is not None else None,
            )
        if not job.run.done(stage) and ranks.is_first():
            with ranks.alone():
                _diagnose(job, synthesizer, stage)
                _plot(job, synthesizer)
    job.run.meet()


def _diagnose(job: Job, synthesizer: Synthesizer, stage: str) -> None:
    """Records how a synthesizer's inputs look to the teacher, and says what looks wrong."""
    generator = seeded_generator(job.config.seed, "diagnostics", job.device)
    found = synthesizer.diagnose(job.teacher, generator)
    weak = weakness(synthesizer, found)
    warnings = [] if found is None else found.warnings(synthesizer.advice())
    if weak is not None:
        name = synthesizer.name
        warnings.append(
            f"{weak}: optimise longer (--set {name}.steps=...), join another method "
            f"(--synthesizer {name}+NAME), or take them as they are (--set "
            f"{name}.min_probability=0)."
        )
    job.run.record.diagnostics[stage] = {
        "measured": {} if found is None else found.to_dict(),
        "warnings": warnings,
        "distinct": synthesizer.distinct,
        "chosen": synthesizer.chosen,
        "reliable": weak is None,
    }
    for warning in warnings:
        job.run.progress.note(f"Warning: {stage}: {warning}")


def weakness(synthesizer: Synthesizer, found: Diagnostics | None) -> str | None:
    """Why no student learns from inputs that look like this to the teacher, or `None` if one may.

    Arguments:
        synthesizer: What made them.
        found: How they look.
    """
    least = synthesizer.min_probability
    if not least or found is None or found.confidence >= least:
        return None
    shown = math.floor(1000 * found.confidence) / 1000  # never what was expected, by rounding
    return (
        f"The teacher gives the classes asked for a mean probability of {shown:.3f} "
        f"(expected {least:.2f} or more), so that no student learns from these images"
    )


def shard_size(domain: Domain) -> int:
    """How many inputs a shard holds, so that those of large images take no more memory.

    Example:
        >>> [shard_size(Domain((3, side, side), 10)) for side in (32, 64, 224)]
        [4096, 4096, 445]
    """
    return max(1, min(SHARD, SHARD_BYTES // domain.float_bytes))


@torch.no_grad()
def _make_set(job: Job, sources: Sequence[Synthesizer], name: str, size: int) -> SyntheticSet:
    if not job.run.done(name):
        with job.run.stage(name):
            writer = SyntheticWriter(job.run / name, job.teacher.domain)
            per_shard = shard_size(job.teacher.domain)
            shards = -(-size // per_shard)
            parts = [s.part(heldout=name.endswith("heldout")) for s in sources]
            with job.run.progress.stage(f"make {name}", shards) as stage:
                for shard in ranks.mine(range(shards)):
                    if shard_path(writer.folder, shard).exists():
                        continue
                    generator = seeded_generator(
                        job.config.seed, f"{name} shard {shard}", job.device
                    )
                    count = min(per_shard, size - shard * per_shard)
                    made = generate_labelled(parts, job.teacher, count, generator)
                    writer.append(*made, number=shard)
                    stage.update(shard + 1, {})
            ranks.wait()
        job.run.meet()
    return SyntheticSet(job.run / name)


def _plot(job: Job, synthesizer: Synthesizer) -> None:
    """Writes a picture of ten images of every class, of twenty classes at most.

    Noise has no classes until a teacher has answered many draws of it; where that costs too much it
    is shown as it comes.
    """
    path = job.run / picture_name(synthesizer.name)
    domain = job.teacher.domain
    if not domain.is_image or path.exists():
        return
    labels = torch.arange(min(domain.classes, 20)).repeat_interleave(10)
    draws = DRAWS * len(labels)
    generator = seeded_generator(job.config.seed, "picture", job.device)
    if isinstance(synthesizer, Noise) and (
        affordable(job.teacher, domain.shape, draws, PICTURE_MACS, 1) < draws
    ):
        images, _ = synthesizer.unanswered(20, generator)
        write_png(path, plot_grid(images, ["", ""]))
        return
    images, _ = synthesizer.sample(len(labels), labels, generator)
    write_png(path, plot_grid(images, range(min(domain.classes, 20))))


def heldout_set(folder: Path, student: str) -> SyntheticSet:
    """The inputs of a run's folder that measure a student."""
    own = folder / f"synthetic-{student}"
    return SyntheticSet((own if own.exists() else folder / "synthetic") / "heldout")


def picture_name(synthesizer: str) -> str:
    """The file with some of a synthesizer's inputs."""
    return f"inputs-{synthesizer}.png"
