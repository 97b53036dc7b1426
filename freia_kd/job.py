"""One run of the main job, stage by stage; every stage can be called again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .compression import Plan, Recipe, apply_plan, plot_sensitivity
from .compression.methods import Step, rebuild
from .data.datasets import LabelledData
from .data.synthetic import SyntheticSet, SyntheticWriter
from .distillation import agreement, train_student
from .errors import UsageError
from .files import write_json
from .measuring import measure_student, measure_teacher
from .presets import Preset
from .runs.details import chosen_ranks
from .runs.pictures import draw_figure, draw_grid
from .runs.run import Run
from .synthesizers.contract import Synthesizer
from .synthesizers.fresh import Fresh, answered
from .synthesizers.noise import Noise, Normal, Spectral
from .teachers import Classifier, Teacher, read_checkpoint, save_classifier

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
    _plans: dict[str, Plan] = field(default_factory=dict, init=False, repr=False)
    _budgets: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)

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
                self._first(str(student)) if own else None,
            )
            if not self.run.done(stage):
                self._examine(synthesizer)
        # One that plays with a student holds what it learned with the last one only.
        self._fitted = {s for s in self._fitted if not s.startswith(f"{synthesizer.name}-")}
        self._fitted.add(stage)

    def _first(self, name: str) -> Classifier:
        """A student by the first of its methods, for a synthesizer to play with."""
        net, _ = self._apply(name, self.recipe(name).methods[0], self.teacher.net)
        return self._classifier(net)

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
                writer.append(*answered(sources, self.teacher, count, generator))
                stage.update(shard + 1, {})

    def enlist(self, recipes: Iterable[Recipe]) -> None:
        """Takes students into the run, whose record keeps what they are to be.

        Raises:
            UsageError: If the run has another student of the same name.
        """
        known = self.run.record.setdefault("students", {})
        for recipe in recipes:
            fields = json.loads(json.dumps(recipe.to_dict()))
            old = Recipe.from_dict(known.get(recipe.name, fields)).to_dict()
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

    def budget(self, name: str) -> dict[str, Any] | None:
        """How a student's plan was found, if it was searched for.

        It is searched for once and then read from the run's folder, since the latency that is
        measured is never the same again.

        Raises:
            UsageError: If no plan meets the target.
        """
        recipe = self.recipe(name)
        if recipe.target is not None and name not in self._budgets:
            self._budgets[name] = self._budget(recipe)
        return self._budgets.get(name)

    def _budget(self, recipe: Recipe) -> dict[str, Any]:
        path = self.run / f"budget-{recipe.name}.json"
        if not path.exists():
            title = f"search {recipe.name}"
            with self.run.stage(title), self.run.progress.stage(title, 1) as stage:
                inputs, source = self._judging_inputs(recipe.name)
                found = recipe.search(self.teacher.net, self.teacher.domain.normalize(inputs))
                draw_figure(self.run / "sensitivity.png", plot_sensitivity(found.sensitivity))
                write_json(path, {**found.to_dict(), "inputs": source})
                stage.update(1, {"agreement": found.agreement})
        return json.loads(path.read_text(encoding="utf-8"))

    def _judging_inputs(self, name: str) -> tuple[Tensor, str]:
        """Inputs that budgets, pruning and quantisation see, never held-out ones; what they are."""
        purpose = "judging inputs"
        if not self.shares_inputs and not self.run.done(f"train set {name}"):
            inputs = draw_noise(self.teacher, JUDGING, self.generator(purpose, self.device))
            return inputs, "noise, since the synthetic inputs need a student first"
        data = self.sets(name)[0]
        rows = torch.randperm(len(data), generator=self.generator(purpose))[:JUDGING]
        return data.batch(rows)[0].to(self.device), "synthetic inputs to learn from"

    def compress(self, name: str) -> tuple[Classifier, list[Step]]:
        """A fresh student before any training, by all its methods, and their steps.

        Raises:
            ValueError: If there is no such student of this teacher.
        """
        net, steps = self.teacher.net, list[Step]()
        for method in self.recipe(name).methods:
            net, step = self._apply(name, method, net)
            steps.append(step)
        return self._classifier(net), steps

    def _apply(self, name: str, method: str, net: nn.Module) -> tuple[nn.Module, Step]:
        recipe, budget, domain = self.recipe(name), self.budget(name), self.teacher.domain
        if budget is not None and name not in self._plans:
            self._plans[name] = Plan.from_dict(budget["plan"])
        if method == "tucker" and net is self.teacher.net:
            if name not in self._plans:  # of a deep net they take a while
                plan = recipe.plan(net, self.teacher.arch, domain.shape)
                self._plans[name] = plan or Plan()
            plan = self._plans[name]
            return apply_plan(net, plan), {"method": "tucker", **plan.to_dict()}
        inputs = domain.normalize(self._judging_inputs(name)[0])
        return recipe.apply(method, net, self.teacher.arch, inputs)

    def _classifier(self, net: nn.Module) -> Classifier:
        student = Classifier(net.requires_grad_(True), self.teacher.domain, self.teacher.arch)
        return student.to(self.device).eval()

    def train(self, name: str, data: SyntheticSet) -> Classifier:
        """Compresses and distils student `name`, method by method; keeps it in the run's folder."""
        last = list(self._stages(name))[-1]
        if self.run.done(last) and self._student_path(name).exists():
            return self._load(self._student_path(name))[0]
        net, steps = self.teacher.net, list[Step]()
        for stage, method in self._stages(name).items():
            path = self.run.state_path(f"{stage}-net")
            if self.run.done(stage) and path.exists():
                student, steps = self._load(path)
            else:
                origin, (net, step) = net, self._apply(name, method, net)
                student, steps = self._classifier(net), [*steps, step]
                with self.run.stage(stage):
                    self._distil(name, stage, student, data, origin)
                    if stage == last:
                        self.save_student(f"student-{name}", student, steps)
                    else:
                        save_classifier(path, student, {"compression": steps})
            net = student.net
        return student.eval()

    def _stages(self, name: str) -> dict[str, str]:
        """The stages that train a student, with their methods."""
        first, *others = self.recipe(name).methods
        return {f"student-{name}": first, **{f"student-{name}-{m}": m for m in others}}

    def _student_path(self, name: str) -> Path:
        return self.run / f"student-{name}.safetensors"

    def _distil(
        self, name: str, stage: str, student: Classifier, data: SyntheticSet, origin: nn.Module
    ) -> None:
        options, bn = self.preset.student, self.recipe(name).bn
        options = options if bn is None else replace(options, bn=bn)
        heldout = self.sets(name)[1]
        source: SyntheticSet | Fresh = data
        if self.preset.fresh:
            seed = int(torch.randint(2**62, (), generator=self.generator(f"{stage} inputs")))
            source = Fresh([s.part(heldout=False) for s in self.synthesizers], self.teacher, seed)
        train_student(
            student,
            source,
            options,
            self.generator(stage),
            self.run,
            stage,
            heldout,
            teacher=self.teacher,
            origin=origin,
        )

    def _load(self, path: Path) -> tuple[Classifier, list[Step]]:
        """A student that this run has trained, and its steps; any teacher's, also in memory."""
        checkpoint = read_checkpoint(path)
        steps = checkpoint.own["compression"]
        net = rebuild(self.teacher.net, steps)
        net.load_state_dict(checkpoint.state)
        return self._classifier(net), steps

    def save_student(self, stem: str, student: Classifier, steps: list[Step]) -> None:
        """Writes a student as .safetensors and .pt, each of which rebuilds it alone."""
        on_cpu = Classifier(student.net, student.domain, student.arch)
        for suffix in (".pt", ".safetensors"):
            save_classifier(self.run / f"{stem}{suffix}", on_cpu, {"compression": steps})

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
        heldout = self.sets(name)[1]
        before = self.compress(name)[0]
        student, steps = self._load(self._student_path(name))
        budget = self.budget(name)
        return {
            "name": name,
            "file": f"student-{name}.pt",
            "recipe": self.run.record["students"][name],
            "steps": steps,
            "ranks": chosen_ranks(steps),
            "agreements": self._agreements(name, heldout),
            "budget": budget and {k: v for k, v in budget.items() if k != "plan"},
            **measure_student(self.teacher, before, student, heldout, evaluation),
        }

    def _agreements(self, name: str, heldout: SyntheticSet) -> dict[str, float]:
        """The agreement after each method's training, on held-out inputs of odd index."""
        *others, last = self._stages(name).items()
        paths = {method: self.run.state_path(f"{stage}-net") for stage, method in others}
        paths[last[1]] = self._student_path(name)
        return {m: agreement(self._load(p)[0], heldout, half="odd") for m, p in paths.items()}


def draw_noise(teacher: Teacher, count: int, generator: torch.Generator) -> Tensor:
    """Noise in place of synthetic inputs: 1/f images in [0, 1], or normal vectors."""
    noise: Noise = Spectral() if teacher.domain.is_image else Normal()
    noise.fit(teacher)
    return noise.draw(count, generator)
