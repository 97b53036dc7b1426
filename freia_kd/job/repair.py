"""What of a run is damaged or missing, and which stage makes it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..data.synthetic import check_shard, shard_path
from ..errors import CheckpointError
from ..training.state import load_state
from .job import Job
from .student import (
    compressed_paths,
    read_searches,
    rebuild_student,
    searches_path,
    training_stages,
)
from .synthesis import needs_students, shard_size, stage_of


@dataclass(frozen=True)
class Damage:
    """A part of a run that is not as its stage left it.

    Arguments:
        path: The file or folder.
        stage: The stage that makes it again.
        reason: What is wrong with it.
        is_missing: Whether it is not there at all, so that nothing is lost by making it again.
    """

    path: Path
    stage: str
    reason: str
    is_missing: bool = False


def find_damages(job: Job, allowed: bool) -> list[Damage]:
    """Everything of a run that a finished stage should have left whole, and is not so.

    Arguments:
        job: The job.
        allowed: Whether what is damaged, not just missing, may be deleted and made again.

    Raises:
        CheckpointError: If parts are damaged and that is not allowed; all are named.
    """
    found = [*_damages(job)]
    broken = [damage for damage in found if not damage.is_missing]
    if broken and not allowed:
        named = "\n".join(f"{d.path} (stage {d.stage}): {d.reason}" for d in broken)
        raise CheckpointError(
            f"Parts of the run in {job.run.folder} are damaged; add --repair (repair=True) to "
            f"delete them and let the stages named make them again:\n{named}"
        )
    return found


def forget(job: Job, damages: list[Damage]) -> None:
    """Deletes what is damaged, and lets the stages that make it run again.

    They have the random numbers that they had before, so that they make the same.

    Arguments:
        job: The job, whose folder is locked.
        damages: What :func:`find_damages` found.
    """
    for damage in damages:
        what = "is missing" if damage.is_missing else "is damaged and was deleted"
        job.run.progress.note(f"{damage.path} {what}; the stage {damage.stage} makes it again.")
        damage.path.unlink(missing_ok=True)
    again = {damage.stage for damage in damages}
    job.run.record.done = [stage for stage in job.run.record.done if stage not in again]


def _damages(job: Job) -> Iterator[Damage]:
    for spec in job.specs:
        stage, read = f"compress {spec.name}", partial(rebuild_student, job, spec)
        for path in compressed_paths(job, spec):
            yield from _file(job, path, stage, read)
            yield from _file(job, searches_path(job, path), stage, read_searches)
        for stage, paths in training_stages(job, spec).items():
            for path in paths:
                yield from _file(job, path, stage, read)
    for name, size in _sets(job).items():
        yield from _file(job, job.run / name / "manifest.json", name, _read_json)
        records = sorted((job.run / name).glob("shard-*.json"))
        if job.run.done(name):  # else it is not known how many there can be
            count = -(-size // shard_size(job.teacher.domain))
            records = [shard_path(job.run / name, number) for number in range(count)]
        for record in records:
            yield from _file(job, record, name, check_shard)
    stages = [stage for spec in job.specs for stage in training_stages(job, spec)]
    own = [stage_of(s, spec) for s in job.synthesizers for spec in (None, *job.specs)]
    for path in sorted((job.run / "checkpoints").glob("*.safetensors")):
        # What a stage keeps is called after it, with the name of a part behind that.
        fitting = [stage for stage in (*own, *stages) if path.stem.startswith(stage)]
        if fitting and not path.stem.endswith("-net"):
            yield from _file(job, path, max(fitting, key=len), load_state)
    yield from _file(job, job.run / "report.json", "report", _read_json)


def _file(job: Job, path: Path, stage: str, read: Callable[[Path], object]) -> Iterator[Damage]:
    if not path.exists():
        if job.run.done(stage):
            yield Damage(path, stage, "It is missing.", is_missing=True)
        return
    try:
        read(path)
    except (ValueError, OSError) as error:
        yield Damage(path, stage, str(error))


def _read_json(path: Path) -> object:
    return json.loads(path.read_bytes())


def _sets(job: Job) -> dict[str, int]:
    """The synthetic sets of the run by name, with their sizes."""
    own = needs_students(job.synthesizers)
    names = [f"synthetic-{spec.name}" for spec in job.specs] if own else ["synthetic"]
    sizes = {"heldout": job.config.heldout_size}
    if not job.config.on_the_fly:
        sizes["train"] = job.config.set_size
    return {f"{name}/{half}": size for name in names for half, size in sizes.items()}
