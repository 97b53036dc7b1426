"""The cells of a comparison: one method with one seed, run alone and resumed alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..compression import as_recipes
from ..data.synthetic import SyntheticSet
from ..distillation import agreement
from ..errors import UsageError
from ..files import write_json
from ..job import Job
from ..pipeline import choose_device, load_student, open_job
from ..presets import STUDENT, get_preset, resize_preset
from ..runs.progress import Progress
from ..synthesizers import build_synthesizers, get_synthesizer
from ..teachers import Classifier, Teacher

SAMPLES = "(samples)"  # after a method's name: it sees the few real samples
NONE = "compression only"  # the students before any training, a baseline
REFERENCE = "real training data"  # what students could reach, not a method


@dataclass(frozen=True)
class Cell:
    """One method with one seed.

    Arguments:
        method: Synthesizers joined by `+`; with `(samples)` after it if they see the real samples.
        seed: The seed of everything random.
        students: The students that learn from its inputs.
        folder: Its run's folder.
        options: What else :func:`freia_kd.open_job` takes.
    """

    method: str
    seed: int
    students: tuple[str, ...]
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_reference(self) -> bool:
        """Whether it is not a method: nothing is learned, or the real data are there."""
        return self.method in (NONE, REFERENCE)

    @property
    def result(self) -> dict[str, Any] | None:
        """What :meth:`run` has written, or `None`."""
        path = self.folder / "cell.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def open(self, progress: Progress | None = None) -> Job:
        """The job of this cell."""
        options = dict(self.options)
        if "samples" not in families(self.method):
            options.pop("samples", None)
        options["settings"] = _settings(self.method, options.get("settings") or {})
        return open_job(
            synthesizer=_synthesizers(self.method),
            seed=self.seed,
            out=self.folder,
            resume=(self.folder / "run.json").exists(),
            progress=progress,
            **options,
        )

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        """Makes the inputs and distils the students; writes `cell.json` at the end.

        The training sets are deleted then; the students and the held-out sets stay.
        """
        if self.result is not None:
            return self.result
        job = self.open(progress)
        students: dict[str, Any] = {}
        size = 0
        for name in self.students:
            if self.method == NONE:
                job.save_student(f"student-{name}", *job.compress(name))
                students[name] = {"agreement": None, "heldout": None}
                continue
            data, heldout = job.extract(name)
            size, student = len(data), job.train(name, data)
            students[name] = {
                "agreement": agreement(student, heldout, half="odd"),
                "heldout": str(heldout.folder.relative_to(self.folder)),
            }
        made = [s.distinct for s in job.synthesizers]
        result = {
            "method": self.method,
            "seed": self.seed,
            "students": students,
            "seconds": sum(job.run.record["seconds"].values()),
            "stages": job.run.record["seconds"],
            "images": sum(m or size // len(made) for m in made),
            "warnings": _warnings(job),
        }
        write_json(self.folder / "cell.json", result)
        spent = [*self.folder.glob("synthetic*/train")]
        for folder in [*spent, *([self.folder / "checkpoints"] if self.is_reference else [])]:
            shutil.rmtree(folder, ignore_errors=True)
        return result

    def student(self, name: str) -> Classifier:
        """A student of this cell, which has run."""
        path = self.folder / f"student-{name}.safetensors"
        return load_student(path, self.options.get("arch"))

    def judge(self, other: Cell) -> dict[str, float]:
        """How far this cell's students agree with the teacher on another cell's held-out inputs.

        What was found is kept in the cell's folder.
        """
        path = self.folder / "judged.json"
        judged = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if other.method not in judged:
            theirs = (other.result or {})["students"]
            judged[other.method] = {
                name: agreement(
                    self.student(name),
                    SyntheticSet(other.folder / theirs[name]["heldout"]),
                    half="odd",
                )
                for name in self.students
            }
            write_json(path, judged)
        return judged[other.method]


def families(method: str) -> set[str]:
    """The families of the synthesizers that a method joins; samples are one of their own."""
    if method == NONE:
        return set()
    kinds = [get_synthesizer(name) for name in _synthesizers(method).split("+")]
    found = {kind.family or kind.name for kind in kinds}
    return found | {"samples"} if method.endswith(SAMPLES) else found


def _synthesizers(method: str) -> str:
    """The synthesizers of a method; the baseline needs none, and gets one that costs nothing."""
    return {NONE: "uniform", REFERENCE: "samples"}.get(method, method.removesuffix(SAMPLES))


def expect_sound(
    methods: Sequence[str], students: Sequence[str], teacher: Teacher, options: Mapping[str, Any]
) -> None:
    """Raises before any cell runs for what would make each of them fail.

    Arguments:
        methods: The methods.
        students: The students that are to learn by them.
        teacher: The teacher.
        options: What else :func:`freia_kd.open_job` takes.

    Raises:
        UsageError: If there is no such student, option, preset or device, or a value makes no
            sense.
    """
    settings = options.get("settings") or {}
    used = {key for method in methods for key in _settings(method, settings)}
    unknown = sorted(set(settings) - used)
    if unknown:
        kinds = {get_synthesizer(n) for method in methods for n in _synthesizers(method).split("+")}
        known = sorted({option for kind in kinds for option in kind.known_options()})
        raise UsageError(
            f"No method compared has the option {', '.join(unknown)}; known ones are "
            f"{', '.join(known) or 'none'}, also as METHOD.OPTION, and {STUDENT}OPTION."
        )
    choose_device(options.get("device", "auto"))
    preset = get_preset(options.get("preset", "standard"))
    resize_preset(preset, settings, options.get("loss"))
    for method in methods:
        own = _settings(method, settings).items()
        theirs = {key: value for key, value in own if not key.startswith(STUDENT)}
        build_synthesizers(_synthesizers(method), preset.name, theirs)
    for recipe in as_recipes(students):
        recipe.check(teacher.net, teacher.arch, teacher.domain.shape)


def _settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are for the synthesizers of a method."""
    known: set[str] = set()
    for name in _synthesizers(method).split("+"):
        kind = get_synthesizer(name)
        known |= {f"{title}{o}" for o in kind.known_options() for title in ("", f"{kind.name}.")}
    return {k: v for k, v in settings.items() if k in known or k.startswith(STUDENT)}


def _warnings(job: Job) -> list[str]:
    health = job.run.record.get("health", {})
    return [f"{stage}: {w}" for stage, entry in health.items() for w in entry["warnings"]]
