"""The trials of a comparison: one method with one seed, run alone and resumed alone."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import Device, DistillationOptions, Preset
from ..data.datasets import LabelledData
from ..data.sources import PathLike
from ..domain import Domain
from ..errors import CheckpointError
from ..evaluation import accuracy, agreement
from ..files import remove_parts, write_json
from ..job import (
    Job,
    Plan,
    compress_students,
    make_plan,
    make_students,
    open_job,
    reopen_job,
)
from ..job.measure import synthesizer_results
from ..job.opening import fingerprint_of
from ..job.repair import Damage, find_damages, forget
from ..job.student import read_student
from ..job.synthesis import heldout_set
from ..report.schema import Proportion, TrialResult
from ..runs.store import RECORD, RESULT, read_record
from ..students import StudentSpec
from ..synthesizers.noise import Normal
from ..teachers import Classifier, Teacher
from ..training import Progress
from .methods import Method

JUDGED, MEASURED = "judged.json", "accuracy.json"
FOUND = (RESULT, JUDGED, MEASURED)  # what a trial leaves beside its run
SPENT = ("train", "checkpoints")  # folders that may go when a trial ends
ALL = "all"  # the stages, of a damaged record


@dataclass(frozen=True)
class TrialOptions:
    """What the trials of a comparison have in common; arguments as of :func:`freia_kd.distill`.

    Arguments:
        teacher: A checkpoint, or a teacher in memory.
        samples: Real inputs, which only methods that take them see.
        preset: How much work to do.
        training: How the students are trained, if not as the preset says.
        set_size: How many synthetic inputs to make, if not as many as the preset says.
        arch: The architecture, if the file does not tell.
        domain: The input domain, if the file does not tell.
        device: Where to compute.
    """

    teacher: PathLike | Teacher
    samples: LabelledData | None = None
    preset: str | Preset = "standard"
    training: DistillationOptions | None = None
    set_size: int | None = None
    arch: str | None = None
    domain: Domain | None = None
    device: Device = "auto"


@dataclass(frozen=True)
class Trial:
    """One method with one seed: plain data, which another process or machine can run.

    Arguments:
        method: What makes the inputs.
        seed: The seed of everything random.
        students: What to make of the teacher.
        folder: Its run's folder, which is where its result goes.
        options: What it has in common with other trials.
    """

    method: Method
    seed: int
    students: tuple[StudentSpec, ...]
    folder: Path
    options: TrialOptions

    @property
    def title(self) -> str:
        """What it is called in reports."""
        return f"{self.method.name}, seed {self.seed}"

    @property
    def group(self) -> str:
        """What it is called with all its seeds."""
        return self.method.name

    @property
    def is_brief(self) -> bool:
        """Whether it trains nothing, so that it takes no time to speak of."""
        return self.method.kind == "baseline"

    @property
    def device(self) -> Device:
        """Where it computes."""
        return self.options.device

    @property
    def result(self) -> TrialResult | None:
        """What :meth:`run` has written, or `None`."""
        from pydantic import TypeAdapter

        path = self.folder / RESULT
        return TypeAdapter(TrialResult).validate_json(path.read_bytes()) if path.exists() else None

    def open(self, progress: Progress | None = None) -> Job:
        """The job of this trial, new or as far as it has come."""
        given = self.options
        again = (self.folder / RECORD).exists()
        # Fitting changes synthesizers, and trials in threads share them.
        synthesizers = copy.deepcopy(self.method.synthesizers) or (Normal(),)
        common: dict[str, Any] = {
            "students": self.students,
            "synthesizer": synthesizers,
            "samples": given.samples if self.method.sees_samples else None,
            "training": given.training,
            "set_size": given.set_size,
            "arch": given.arch,
            "domain": given.domain,
            "seed": self.seed,
            "device": given.device,
            "progress": progress,
        }
        if again:
            return reopen_job(self.folder, teacher=given.teacher, **common)
        return open_job(given.teacher, out=self.folder, preset=given.preset, **common)

    def plan(self) -> tuple[Plan, int]:
        """What the rest of it will take, and the bytes of its training set, which goes at its end.

        Raises:
            UsageError: If memory or disk cannot hold it; the message says what would fit.
        """
        job = self.open()
        plan = make_plan(job)
        return plan, min(plan.disk, job.config.set_size * plan.input_bytes)

    def find_damages(self) -> list[Damage]:
        """What of it is damaged, or missing though it should be there."""
        if not (self.folder / RECORD).exists():
            return []
        try:
            read_record(self.folder)
        except CheckpointError as error:
            return [*self._texts(), Damage(self.folder / RECORD, ALL, str(error))]
        job = self.open()
        has_ended = (self.folder / RESULT).exists()
        parts = [
            damage
            for damage in find_damages(job, True)
            if damage.stage != "report"
            and not (has_ended and damage.is_missing and damage.path.parent.name in SPENT)
        ]
        return [*self._texts(), *parts]

    def repair(self, damages: Sequence[Damage], progress: Progress) -> None:
        """Deletes what is damaged, and lets the stages that make it run again.

        Arguments:
            damages: What :meth:`find_damages` found.
            progress: Where it says so.
        """
        if any(damage.stage == ALL for damage in damages):
            shutil.rmtree(self.folder)
            return
        job = self.open(progress)
        with job.run.locked():
            for name in FOUND:
                (self.folder / name).unlink(missing_ok=True)
            # Its training set went when it ended, and is needed again.
            forget(job, [*{d.path: d for d in find_damages(job, True)}.values()])
            job.run.write()

    def _texts(self) -> Iterator[Damage]:
        for name in FOUND:
            path = self.folder / name
            try:
                _ = (
                    self.result
                    if name == RESULT
                    else path.exists() and json.loads(path.read_bytes())
                )
            except ValueError as error:
                reason = (str(error).splitlines() or [""])[0]
                yield Damage(path, name.removesuffix(".json"), f"It cannot be read ({reason}).")

    def run(self, progress: Progress | None = None) -> None:
        """Makes the inputs and distils the students, as far as that has not been done.

        The result is written last. Training sets are deleted then; students and held-out sets stay.

        Raises:
            UsageError: If a student cannot be made of this teacher.
            TrainingError: If a loss stays non-finite.
        """
        if self.result is not None:
            return
        job = self.open(progress)
        with job.run.locked():
            (compress_students if self.method.kind == "baseline" else make_students)(job)
            write_json(self.folder / RESULT, asdict(self._summary(job)))
        spent = [*self.folder.glob("synthetic*/train")]
        for folder in [
            *spent,
            *([] if self.method.kind == "method" else [job.run / "checkpoints"]),
        ]:
            shutil.rmtree(folder, ignore_errors=True)

    def _summary(self, job: Job) -> TrialResult:
        students = {} if self.method.kind == "baseline" else self.load_students()
        found = synthesizer_results(job) if students else []
        share = job.config.set_size // max(len(found), 1)
        return TrialResult(
            method=self.method.name,
            seed=self.seed,
            agreement={s.name: None for s in self.students} | self._agreements(students, self),
            accuracy={},
            stages=job.run.record.seconds,
            images=sum(f.distinct or share for f in found),
            warnings=[f"{f.name}: {warning}" for f in found for warning in f.warnings],
        )

    def _agreements(
        self, students: Mapping[str, Classifier], other: Trial
    ) -> dict[str, Proportion]:
        """On another trial's held-out inputs of odd index, which have chosen nothing."""
        shares = {}
        for name, student in students.items():
            heldout = heldout_set(other.folder, name)
            share = agreement(student, heldout, half="odd")
            shares[name] = Proportion.of(share, len(heldout) // 2)
        return shares

    def load_students(self) -> dict[str, Classifier]:
        """The students of this trial, which has run, by name."""
        job = self.open()
        stem = "compressed" if self.method.kind == "baseline" else "student"
        files = [job.run / f"{stem}-{spec.name}.safetensors" for spec in self.students]
        return {
            spec.name: read_student(job, spec, file).classifier
            for spec, file in zip(self.students, files, strict=True)
        }

    def judge(self, others: Sequence[Trial]) -> dict[str, dict[str, float]]:
        """How far the students agree with the teacher on held-out inputs of other trials.

        What was found is kept in this trial's folder.

        Returns:
            The agreement of each student, by the method of the other trial.
        """
        path = self.folder / JUDGED
        judged = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        missing = [other for other in others if other.method.name not in judged]
        students = self.load_students() if missing else {}
        for other in missing:
            shares = self._agreements(students, other)
            judged[other.method.name] = {name: share.value for name, share in shares.items()}
            self._keep(path, judged)
        return {other.method.name: judged[other.method.name] for other in others}

    def measure(self, data: LabelledData) -> dict[str, Proportion]:
        """The accuracy of each student; what was found is kept in this trial's folder."""
        from pydantic import TypeAdapter

        path, sha256 = self.folder / MEASURED, fingerprint_of(data)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if kept.get("sha256") != sha256:
            students = self.load_students()
            shares = {n: Proportion.of(accuracy(s, data), len(data)) for n, s in students.items()}
            kept = {"sha256": sha256, "students": {n: asdict(s) for n, s in shares.items()}}
            self._keep(path, kept)
        return TypeAdapter(dict[str, Proportion]).validate_python(kept["students"])

    def _keep(self, path: Path, found: dict[str, Any]) -> None:
        """Writes what was found of this trial after its end, when nobody else writes there."""
        remove_parts(self.folder)
        write_json(path, found)
