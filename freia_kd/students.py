"""Students: what one is to be, and the only way in which one comes to be."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .compression import Compression, Tucker, match_batchnorm, method_of
from .config import BatchNormMode, Config
from .errors import ConfigError
from .synthesizers.leaves import Leaves
from .synthesizers.noise import Noise, Normal
from .teachers import Classifier, Teacher
from .training import Progress

CALIBRATION_SIZE = 512  # inputs on which targets are judged, and ranges and statistics measured
CHECK_SIZE = 16  # random inputs on which a spec is tried before any work


@dataclass(frozen=True)
class StudentSpec(Config):
    """What is to be made of a teacher: methods of compression, in order, each then distilled.

    Arguments:
        methods: The methods, such as `Tucker(target="macs", goal=0.5)`.
        name: The student's name, in file names too; by default its methods' labels.
        bn: What becomes of batch normalisation: `"match"` moves the teacher's statistics by what
            compression did to the features (:func:`~freia_kd.compression.match_batchnorm`),
            `"freeze"` keeps them, as the paper does; by default what the preset says, else
            `"match"`. (70.4 and 67.9 % agreement on images of a method from which no student
            learned, 76.9 and 71.9 % accuracy; statistics of synthetic images, or of the training
            batches, were worse than both: `benchmarks/results/batchnorm-*.md`.)

    Raises:
        ConfigError: If the methods do not go together.

    Example:
        >>> from freia_kd.compression import Quantize
        >>> StudentSpec((Tucker(target="macs", goal=0.5), Quantize())).name
        'macs-0.5-quantize'
    """

    title: ClassVar[str] = "students"
    methods: tuple[Compression, ...] = field(default_factory=lambda: (Tucker(student="1"),))
    name: str = ""
    bn: BatchNormMode | None = None

    def __post_init__(self) -> None:
        if isinstance(self.methods, Sequence) and not isinstance(self.methods, str):
            object.__setattr__(self, "methods", tuple(self.methods))
            if not self.name and all(isinstance(m, Compression) for m in self.methods):
                object.__setattr__(self, "name", "-".join(m.label for m in self.methods))
        super().__post_init__()

    def faults(self) -> Iterator[str]:
        names = [method.name for method in self.methods]
        if not names:
            yield "A student needs at least one method of compression; got none."
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"Each method can be used once; got {', '.join(twice)} twice."
        for method in self.methods[:-1]:
            if method.is_last:
                yield f"The method {method.name} comes last; got {', '.join(names)}."
        if any(method.needs_teacher for method in self.methods[1:]):
            yield (
                "A target is searched for in the teacher itself, so that its method must be the "
                f"first; got {', '.join(names)}."
            )
        if names and not re.fullmatch(r"\w[\w.+-]*", self.name):
            yield (
                "Expected a student's name of letters, digits, '.', '+' and '-'; got "
                f"{self.name!r}."
            )

    def check(self, teacher: Teacher) -> None:
        """Raises unless a teacher can be compressed so, as far as that can be told before any work.

        Raises:
            UsageError: If it cannot be, or a library is missing.
            ValueError: If the net is not sound.
        """
        net, shape = teacher.net, teacher.domain.shape
        noise = torch.randn(CHECK_SIZE, *shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(next(teacher.parameters()).device)
        with torch.random.fork_rng():
            for method in self.methods:
                net = method.check(net, noise, teacher.arch)

    def to_dict(self) -> dict[str, Any]:
        methods = [{"method": m.name, **m.to_dict()} for m in self.methods]
        return {"methods": methods, "name": self.name, "bn": self.bn}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], trusted: Sequence[str] = ()) -> StudentSpec:
        """The inverse of :meth:`to_dict`.

        Arguments:
            fields: The fields.
            trusted: Paths `module:Class` of methods that may be imported.

        Raises:
            UsageError: If a method is code that was not named as trusted.
            ConfigError: If a field is unknown or makes no sense.
        """
        methods = []
        for entry in fields.get("methods", ()):
            options = {k: v for k, v in entry.items() if k != "method"}
            methods.append(method_of(entry, trusted).from_dict(options))
        return super().from_dict({**fields, "methods": methods})


def as_specs(students: Iterable[str | StudentSpec]) -> list[StudentSpec]:
    """Specs from the papers' students by number, and specs; each name once.

    Raises:
        ConfigError: If there is no such student, or two different ones have the same name.
    """
    specs: dict[str, StudentSpec] = {}
    for student in students:
        if isinstance(student, StudentSpec):
            spec = student
        else:
            spec = StudentSpec((Tucker(student=student),))  # type: ignore[arg-type]
        if specs.setdefault(spec.name, spec) != spec:
            raise ConfigError([f"Two students are named {spec.name!r}; give one another name."])
    return list(specs.values())


@dataclass(frozen=True)
class Student:
    """A student, trained or not, and how its net was made.

    Arguments:
        classifier: The student.
        steps: What each method did, from which the net can be rebuilt; plain JSON types.
        searches: For each step what a search for a target found, `None` where there was none.
    """

    classifier: Classifier
    steps: list[dict[str, Any]] = field(default_factory=list)
    searches: list[dict[str, Any] | None] = field(default_factory=list)


def build(
    teacher: Teacher, spec: StudentSpec, inputs: Tensor, progress: Progress | None = None
) -> Student:
    """A student before any training.

    This is the only way in which a student comes to be: what a report calls "compressed only" is
    what `freiakd compress` writes.

    Arguments:
        teacher: The teacher, which is not modified.
        spec: What the student is to be.
        inputs: The calibration set, pixels in [0, 1] for images, with shape `(N, *shape)`.
        progress: What to show meanwhile.

    Raises:
        UsageError: If the student cannot be made of this teacher.

    Example:
        >>> from freia_kd.domain import Domain
        >>> teacher = Teacher(torch.nn.Linear(64, 64), Domain((64,), 64), "custom")
        >>> spec = StudentSpec((Tucker(layers={"all": 0.25}),))
        >>> build(teacher, spec, torch.rand(8, 64)).steps[0]["layers"][""]["ranks"]
        [16]
    """
    student = Student(teacher)
    for method in spec.methods:
        student = extend(student, method, spec.bn, inputs, progress)
    return student


def extend(
    student: Student,
    method: Compression,
    bn: BatchNormMode | None,
    inputs: Tensor,
    progress: Progress | None = None,
) -> Student:
    """A student by one more method, untrained; arguments and errors as of :func:`build`."""
    origin = student.classifier
    device = next(origin.parameters()).device
    inputs = origin.domain.normalize(inputs.to(device))
    with (progress or Progress()).stage(f"compress by {method.name}", 1) as stage:
        made = method.apply(origin.net, inputs, origin.arch)
        if bn != "freeze":
            match_batchnorm(made.net, origin.net, inputs)
        stage.update(1, {})
    classifier = Classifier(made.net.requires_grad_(True), origin.domain, origin.arch)
    return Student(
        classifier.to(device).eval(),
        [*student.steps, _plain(made.step)],
        [*student.searches, _plain(made.search)],
    )


def _plain(found: Any) -> Any:
    """What a file gives back: lists for tuples, and text for other keys."""
    return json.loads(json.dumps(found))


def calibration_set(teacher: Teacher, seed: int = 0, size: int = CALIBRATION_SIZE) -> Tensor:
    """Noise of the teacher's domain, on which a student is built: the same for the same seed.

    Dead leaves for images, and normal vectors in the teacher's units. It needs no training, so
    that a target that cannot be reached is found before any long work. (Of a ResNet14 on
    Fashion-MNIST, a development teacher, student 1 has 21.9 % accuracy with its batch statistics
    frozen, 73.8 % where they are matched on 1/f noise, 76.3 % on dead leaves and 78.7 % on real
    images.)

    Returns:
        Inputs with shape `(size, *shape)`, where the teacher is.
    """
    noise: Noise = Leaves() if teacher.domain.is_image else Normal()
    noise.fit(teacher)
    device = next(teacher.parameters()).device
    return noise.draw(size, seeded_generator(seed, "calibration set", device))


def seeded_generator(
    seed: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Random numbers that depend on a seed and what they are for alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
