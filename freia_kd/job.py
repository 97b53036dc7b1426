"""One run of the main job, stage by stage; every stage can be called again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .compression import Plan, Recipe, apply_plan, plot_sensitivity
from .data.datasets import LabelledData
from .data.synthetic import SyntheticSet, SyntheticWriter, dequantise, quantise
from .distillation import train_student
from .errors import UsageError
from .files import write_json
from .measuring import measure_student, measure_teacher
from .presets import Preset
from .runs.pictures import draw_figure, draw_grid
from .runs.run import Run
from .synthesizers.contract import Synthesizer
from .synthesizers.noise import Noise, Normal, Spectral
from .teachers import Classifier, Teacher, load_classifier, save_classifier

JUDGING = 512  # synthetic inputs on which budgets are judged
SHARD = 4096  # synthetic inputs in a shard, the grain in which making a set resumes


@dataclass
class Job:
    """One run of the main job: its options, its folder, and the stages one by one.

    Every stage can be called again: what is done is read from the folder.

    Arguments:
        teacher: The teacher.
        run: The run's folder.
        preset: The sizes of everything.
        seed: The seed of all random numbers.
        samples: A few real inputs, if any.
        synthesizers: What makes the inputs, each an equal share of them.

    Attributes:
        recipes: What each student of the run is to be, by name.
    """

    teacher: Teacher
    run: Run
    preset: Preset
    seed: int
    samples: LabelledData | None = None
    synthesizers: Sequence[Synthesizer] = ()
    recipes: dict[str, Recipe] = field(init=False)
    _fitted: set[str] = field(default_factory=set, init=False, repr=False)
    _plans: dict[str, tuple[Plan, dict[str, Any] | None]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        known = self.run.record.get("students", {})
        self.recipes = {name: Recipe.from_dict(fields) for name, fields in known.items()}

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return next(self.teacher.parameters()).device

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Random numbers that depend on the seed and the purpose alone."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))

    @property
    def shares_inputs(self) -> bool:
        """Whether all students learn from the same inputs: no synthesizer plays with a student."""
        return not any(s.needs_student for s in self.synthesizers)

    def extract(self, student: str | None = None) -> tuple[SyntheticSet, SyntheticSet]:
        """Fits the synthesizers and makes the synthetic sets: to learn from, and to measure by.

        Arguments:
            student: The student they are for, where a synthesizer plays with one.

        Raises:
            UsageError: If a synthesizer cannot work with this teacher, or needs a student.
        """
        if student is None and not self.shares_inputs:
            names = [s.name for s in self.synthesizers if s.needs_student]
            raise UsageError(f"{', '.join(names)} plays with a student: say which one.")
        for synthesizer in self.synthesizers:
            self._fit(synthesizer, student)
        place = self._place(student)
        for name, size in (("train", self.preset.set_size), ("heldout", self.preset.heldout_size)):
            with self.run.stage(f"{name} set" if self.shares_inputs else f"{name} set {student}"):
                self._make_set(f"{place}/{name}", size)
        picture = self.run / f"{place}.png"
        if self.teacher.domain.is_image and not picture.exists():
            labels = torch.arange(self.teacher.domain.classes).repeat_interleave(10)
            generator = self.generator("grid", self.device)
            images, _ = self.synthesizers[0].sample(len(labels), labels, generator)
            draw_grid(picture, images, self.teacher.domain.classes)
        return self.sets(student)

    def _place(self, student: str | None) -> str:
        return "synthetic" if self.shares_inputs else f"synthetic-{student}"

    def _fit(self, synthesizer: Synthesizer, student: str | None) -> None:
        own = synthesizer.needs_student
        stage = f"{synthesizer.name}-{student}" if own else synthesizer.name
        if stage in self._fitted:
            return
        synthesizer.stage = stage
        with self.run.stage(stage):
            synthesizer.fit(
                self.teacher,
                self.samples,
                self.run,
                self.generator(stage, self.device),
                self.compress(str(student))[0] if own else None,
            )
            if not self.run.done(stage):
                self._examine(synthesizer)
        # One that plays with a student holds what it learned with the last one only.
        self._fitted = {s for s in self._fitted if not s.startswith(f"{synthesizer.name}-")}
        self._fitted.add(stage)

    def _examine(self, synthesizer: Synthesizer) -> None:
        """Records the health of what was learned, and says what looks wrong."""
        health = synthesizer.examine(self.teacher, self.generator("health", self.device))
        if health is None:
            return
        entry = {**health.to_dict(), "warnings": health.warnings()}
        self.run.record.setdefault("health", {})[synthesizer.stage] = entry
        for warning in health.warnings():
            self.run.progress.note(f"warning: {synthesizer.stage}: {warning}")

    def sets(self, student: str | None = None) -> tuple[SyntheticSet, SyntheticSet]:
        """The synthetic sets that :meth:`extract` made.

        Of the second, inputs of even index choose the students' weights, those of odd index
        measure them.
        """
        place = self.run / self._place(student)
        return SyntheticSet(place / "train"), SyntheticSet(place / "heldout")

    @torch.no_grad()
    def _make_set(self, path: str, size: int) -> None:
        writer = SyntheticWriter(self.run / path, self.teacher.domain)
        shards = -(-size // SHARD)
        if writer.shards >= shards:
            return
        name = path.rpartition("/")[2]
        sources = [s.part(heldout=name == "heldout") for s in self.synthesizers]
        with self.run.progress.stage(f"make the {name} set", shards) as stage:
            for shard in range(writer.shards, shards):
                generator = self.generator(f"{path} shard {shard}", self.device)
                count = min(SHARD, size - shard * SHARD)
                ends = [round(count * i / len(sources)) for i in range(len(sources) + 1)]
                made = [
                    source.sample(end - start, generator=generator)
                    for source, start, end in zip(sources, ends, ends[1:], strict=False)
                    if end > start
                ]
                inputs = quantise(torch.cat([x for x, _ in made]))
                logits = [self.teacher(dequantise(part)) for part in inputs.split(1024)]
                writer.append(inputs, torch.cat(logits), torch.cat([c for _, c in made]))
                stage.update(shard + 1, {})

    def enlist(self, recipes: Iterable[Recipe]) -> None:
        """Takes students into the run, whose record keeps what they are to be.

        Raises:
            UsageError: If the run has another student of the same name.
        """
        known = self.run.record.setdefault("students", {})
        for recipe in recipes:
            fields = json.loads(json.dumps(recipe.to_dict()))
            old = known.get(recipe.name, fields)
            if old != fields:
                changed = [
                    f"{k} was {old[k]!r}, is {v!r}" for k, v in fields.items() if v != old[k]
                ]
                raise UsageError(
                    f"The run in {self.run.folder} has another student {recipe.name!r} "
                    f"({'; '.join(changed)}); choose another --out."
                )
            known[recipe.name] = fields
            self.recipes[recipe.name] = recipe
        self.run.write()

    def recipe(self, name: str) -> Recipe:
        """What a student is to be; one of the papers' is enlisted when it is first asked for."""
        if name not in self.recipes:
            self.enlist([Recipe(student=name)])
        return self.recipes[name]

    def plan(self, name: str) -> tuple[Plan, dict[str, Any] | None]:
        """The plan of a student's layers, and of a budget how it was found.

        A budget is searched for once and then read from the run's folder, since the latency that
        is measured is never the same again.

        Raises:
            UsageError: If there is none.
        """
        if name not in self._plans:
            recipe, teacher = self.recipe(name), self.teacher
            if recipe.target is not None:
                budget = self._budget(recipe)
                self._plans[name] = Plan.from_dict(budget["plan"]), budget
            else:
                plan = recipe.plan(teacher.net, teacher.arch, teacher.domain.shape)
                self._plans[name] = plan or Plan(), None
        return self._plans[name]

    def _budget(self, recipe: Recipe) -> dict[str, Any]:
        path = self.run / f"budget-{recipe.name}.json"
        if not path.exists():
            title = f"search {recipe.name}"
            with self.run.stage(title), self.run.progress.stage(title, 1) as stage:
                inputs, source = self._judging_inputs()
                found = recipe.search(self.teacher.net, self.teacher.domain.normalize(inputs))
                draw_figure(self.run / "sensitivity.png", plot_sensitivity(found.sensitivity))
                write_json(path, {**found.to_dict(), "inputs": source})
                stage.update(1, {"agreement": found.agreement})
        return json.loads(path.read_text(encoding="utf-8"))

    def _judging_inputs(self) -> tuple[Tensor, str]:
        """Inputs on which budgets are judged, never the held-out ones, and what they are."""
        purpose = "judging inputs"
        if not self.shares_inputs:
            inputs = draw_noise(self.teacher, JUDGING, self.generator(purpose, self.device))
            return inputs, "noise, since the synthetic inputs need a student first"
        data = self.sets()[0]
        rows = torch.randperm(len(data), generator=self.generator(purpose))[:JUDGING]
        return data.batch(rows)[0].to(self.device), "synthetic inputs to learn from"

    def compress(self, name: str) -> tuple[Classifier, dict[str, Any]]:
        """A fresh student before any training, and its plan.

        Raises:
            ValueError: If there is no such student of this teacher.
        """
        teacher, plan = self.teacher, self.plan(name)[0]
        net = apply_plan(teacher.net, plan).requires_grad_(True)
        return Classifier(net, teacher.domain, teacher.arch).to(self.device).eval(), plan.to_dict()

    def train(self, name: str, data: SyntheticSet) -> Classifier:
        """Distils student `name` and keeps it in the run's folder."""
        student, plan = self.compress(name)
        stage = f"student-{name}"
        path = self.run / f"{stage}.safetensors"
        if self.run.done(stage) and path.exists():
            return load_classifier(path, arch=self.teacher.arch).to(self.device)
        options = replace(self.preset.student, bn=self.recipe(name).bn)
        with self.run.stage(stage):
            heldout = self.sets(name)[1]
            train_student(student, data, options, self.generator(stage), self.run, stage, heldout)
            self.save_student(stage, student, plan)
        return student.eval()

    def save_student(self, stem: str, student: Classifier, plan: dict[str, Any]) -> None:
        """Writes a student as .safetensors and .pt, each of which rebuilds it alone."""
        on_cpu = Classifier(student.net, student.domain, student.arch)
        for suffix in (".pt", ".safetensors"):
            save_classifier(self.run / f"{stem}{suffix}", on_cpu, {"plan": plan})

    def measure(
        self, names: Sequence[str], evaluation: LabelledData | None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What the teacher and the trained students cost, and how good they are.

        Arguments:
            names: The students, all of which :meth:`train` has trained.
            evaluation: Real data to measure accuracy on, if any.

        Returns:
            The report's entries for the teacher and for each student.
        """
        with self.run.progress.stage("measure", len(names)) as stage:
            rows = []
            for name in names:
                rows.append(self._measure_student(name, evaluation))
                stage.update(len(rows), {})
        return measure_teacher(self.teacher, evaluation), rows

    def _measure_student(self, name: str, evaluation: LabelledData | None) -> dict[str, Any]:
        data, heldout = self.sets(name)
        before, plan = self.compress(name)
        student = self.train(name, data)  # which only loads it: it is trained
        budget = self.plan(name)[1]
        return {
            "name": name,
            "file": f"student-{name}.pt",
            "recipe": self.run.record["students"][name],
            "ranks": {layer: fields["ranks"] for layer, fields in plan["layers"].items()},
            "skipped": plan["skipped"],
            "budget": budget and {k: v for k, v in budget.items() if k != "plan"},
            **measure_student(self.teacher, before, student, heldout, evaluation),
        }


def draw_noise(teacher: Teacher, count: int, generator: torch.Generator) -> Tensor:
    """Noise in place of synthetic inputs: 1/f images in [0, 1], or normal vectors."""
    noise: Noise = Spectral() if teacher.domain.is_image else Normal()
    noise.fit(teacher)
    return noise.draw(count, generator)
