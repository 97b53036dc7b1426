"""One run of the main job, stage by stage; every stage can be called again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .compression import apply_plan, count_macs, count_parameters, measure_latencies, student_plan
from .data.datasets import LabelledData
from .data.synthetic import SyntheticSet, SyntheticWriter, dequantise, quantise
from .distillation import agreement, predict, train_student
from .presets import Preset
from .runs.pictures import draw_grid
from .runs.run import Run
from .synthesizers.bdnf import BDNF
from .synthesizers.contract import Synthesizer
from .synthesizers.noise import Noise
from .teachers import Classifier, Teacher, load_classifier, save_classifier

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
    """

    teacher: Teacher
    run: Run
    preset: Preset
    seed: int
    samples: LabelledData | None = None

    @property
    def device(self) -> torch.device:
        """Where the teacher is."""
        return next(self.teacher.parameters()).device

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Random numbers that depend on the seed and the purpose alone."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))

    def extract(self) -> tuple[SyntheticSet, SyntheticSet]:
        """Trains the flow and makes the synthetic sets: to learn from, and to measure by."""
        flow, noise = BDNF(self.preset.flow), Noise("spectral")
        with self.run.stage("flow"):
            flow.fit(self.teacher, self.samples, self.run, self.generator("flow", self.device))
            if not self.run.done("flow"):
                self._examine(flow)
        is_image = self.teacher.domain.is_image
        share = self.preset.prior_share if is_image else 0.0
        if share:
            noise.fit(self.teacher)
        for name, size in (("train", self.preset.set_size), ("heldout", self.preset.heldout_size)):
            with self.run.stage(f"{name} set"):
                self._make_set(name, size, [(flow, 1 - share), (noise, share)])
        if is_image and not (self.run / "synthetic.png").exists():
            labels = torch.arange(self.teacher.domain.classes).repeat_interleave(10)
            images, _ = flow.sample(len(labels), labels, self.generator("grid", self.device))
            draw_grid(self.run / "synthetic.png", images, self.teacher.domain.classes)
        return self.sets()

    def _examine(self, flow: BDNF) -> None:
        """Records the health of the flow's samples, and says what looks wrong."""
        health = flow.examine(self.teacher, self.generator("health", self.device))
        self.run.record["health"] = {**health.to_dict(), "warnings": health.warnings()}
        for warning in health.warnings():
            self.run.progress.note(f"warning: {warning}")

    def sets(self) -> tuple[SyntheticSet, SyntheticSet]:
        """The synthetic sets that :meth:`extract` made.

        Of the second, inputs of even index choose the students' weights, those of odd index
        measure them.
        """
        return SyntheticSet(self.run / "synthetic/train"), SyntheticSet(
            self.run / "synthetic/heldout"
        )

    @torch.no_grad()
    def _make_set(self, name: str, size: int, sources: list[tuple[Synthesizer, float]]) -> None:
        writer = SyntheticWriter(self.run / "synthetic" / name, self.teacher.domain)
        shards = -(-size // SHARD)
        if writer.shards >= shards:
            return
        with self.run.progress.stage(f"make the {name} set", shards) as stage:
            for shard in range(writer.shards, shards):
                generator = self.generator(f"{name} shard {shard}", self.device)
                count = min(SHARD, size - shard * SHARD)
                first = round(count * sources[0][1])
                made = [
                    source.sample(n, generator=generator)
                    for (source, _), n in zip(sources, (first, count - first), strict=True)
                    if n
                ]
                inputs = quantise(torch.cat([x for x, _ in made]))
                logits = [self.teacher(dequantise(part)) for part in inputs.split(1024)]
                writer.append(inputs, torch.cat(logits), torch.cat([c for _, c in made]))
                stage.update(shard + 1, {})

    def compress(self, name: str) -> tuple[Classifier, dict[str, Any]]:
        """A fresh student by Tucker decomposition, before any training, and its plan.

        Raises:
            ValueError: If there is no such student of this teacher.
        """
        teacher = self.teacher
        plan = student_plan(teacher.net, teacher.arch, name)
        net = apply_plan(teacher.net, plan).requires_grad_(True)
        return Classifier(net, teacher.domain, teacher.arch).to(self.device).eval(), plan.to_dict()

    def train(self, name: str, data: SyntheticSet) -> Classifier:
        """Distils student `name` and keeps it in the run's folder."""
        student, plan = self.compress(name)
        stage = f"student-{name}"
        path = self.run / f"{stage}.safetensors"
        if self.run.done(stage) and path.exists():
            return load_classifier(path, arch=self.teacher.arch).to(self.device)
        with self.run.stage(stage):
            heldout = self.sets()[1]
            train_student(
                student, data, self.preset.student, self.generator(stage), self.run, stage, heldout
            )
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
        teacher = {
            "parameters": count_parameters(self.teacher.net),
            "macs": count_macs(self.teacher.net, self.teacher.domain.shape),
            "accuracy": _accuracy(self.teacher, evaluation),
        }
        return teacher, rows

    def _measure_student(self, name: str, evaluation: LabelledData | None) -> dict[str, Any]:
        teacher, shape = self.teacher, self.teacher.domain.shape
        data, heldout = self.sets()
        before, plan = self.compress(name)
        student = self.train(name, data)  # which only loads it: it is trained
        answers = None if evaluation is None else predict(teacher, evaluation)
        parameters = count_parameters(student.net)
        theirs, ours = measure_latencies([teacher.net, student.net], shape)
        return {
            "name": name,
            "file": f"student-{name}.pt",
            "parameters": parameters,
            "macs": count_macs(student.net, shape),
            "compression": count_parameters(teacher.net) / parameters,
            "latency_ms": ours.median,
            "latency_range_ms": [ours.low, ours.high],
            "teacher_latency_ms": theirs.median,
            "teacher_latency_range_ms": [theirs.low, theirs.high],
            "ranks": {layer: fields["ranks"] for layer, fields in plan["layers"].items()},
            "accuracy_before": _accuracy(before, evaluation),
            "accuracy": _accuracy(student, evaluation),
            "agreement_before": agreement(before, heldout, half="odd"),
            "agreement": agreement(student, heldout, half="odd"),
            "real_agreement_before": _share_equal(before, evaluation, answers),
            "real_agreement": _share_equal(student, evaluation, answers),
        }


def _accuracy(classifier: Classifier, data: LabelledData | None) -> float | None:
    return _share_equal(classifier, data, None if data is None else data.labels)


def _share_equal(
    classifier: Classifier, data: LabelledData | None, expected: torch.Tensor | None
) -> float | None:
    """The share of inputs of `data` on which a classifier says what is expected."""
    if data is None or expected is None:
        return None
    return predict(classifier, data).eq(expected).double().mean().item()
