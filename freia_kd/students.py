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
from .compression.cost import affordable
from .compression.method import showing
from .config import BatchNormMode, Config
from .errors import ConfigError, UsageError
from .synthesizers.leaves import Leaves
from .synthesizers.noise import Noise, Normal
from .teachers import Classifier, Teacher, build_net, check_classifier
from .training import Progress

CALIBRATION_SIZE = 512  # inputs on which targets are judged, and ranges and statistics measured
CALIBRATION_MACS = 256e9  # that these may take in the teacher: at 224 pixels there are fewer
MIN_CALIBRATION = 64
CHECK_SIZE = 16  # random inputs on which a spec is tried before any work
NEW = "new"  # what the making of a net with random weights is called, among methods
DEFAULT: tuple[Compression, ...] = (Tucker(student="1"),)


@dataclass(frozen=True)
class StudentSpec(Config):
    """What is to be made of a teacher: methods of compression, in order, each then distilled.

    Arguments:
        methods: The methods, such as `Tucker(target="macs", goal=0.5)`; by default the papers'
            student 1, and beside an architecture none.
        name: The student's name, in file names too; by default its methods' labels, with the
            architecture's name in front.
        bn: What becomes of batch normalisation: `"match"` moves the teacher's statistics by what
            compression did to the features (:func:`~freia_kd.compression.match_batchnorm`),
            `"freeze"` keeps them, as the paper does; by default what the preset says, else
            `"match"`. (70.4 and 67.9 % agreement on images of a method from which no student
            learned, 76.9 and 71.9 % accuracy; statistics of synthetic images, or of the training
            batches, were worse than both: `benchmarks/results/batchnorm-*.md`.)
        arch: Another architecture, by name or `package.module:Class`: the student is a new net of
            it with random weights, whose batch normalisation trains. Methods, if there are any,
            compress that net once it is trained.

    Raises:
        ConfigError: If the methods do not go together.

    Example:
        >>> from freia_kd.compression import Quantize
        >>> StudentSpec((Tucker(target="macs", goal=0.5), Quantize())).name
        'macs-0.5-quantize'
        >>> StudentSpec(arch="resnet14").name, StudentSpec((Quantize(),), arch="a.b:Net").name
        ('resnet14', 'net-quantize')
    """

    title: ClassVar[str] = "students"
    methods: tuple[Compression, ...] = DEFAULT
    name: str = ""
    bn: BatchNormMode | None = None
    arch: str | None = None

    def __post_init__(self) -> None:
        if self.arch and self.methods is DEFAULT:
            object.__setattr__(self, "methods", ())
        if isinstance(self.methods, Sequence) and not isinstance(self.methods, str):
            object.__setattr__(self, "methods", tuple(self.methods))
            if not self.name and all(isinstance(m, Compression) for m in self.methods):
                labels = [m.label for m in self.methods]
                if isinstance(self.arch, str):
                    labels.insert(0, re.split(r"[:.]", self.arch.partition("(")[0])[-1].lower())
                object.__setattr__(self, "name", "-".join(labels))
        super().__post_init__()

    @property
    def parts(self) -> list[str]:
        """The names of what makes the student, in order, after each of which it is distilled."""
        return [*([NEW] if self.arch else []), *(method.name for method in self.methods)]

    @property
    def code(self) -> list[str]:
        """The paths of methods and of an architecture that are code of the user's own."""
        return [path for path in (self.arch or "", *(m.name for m in self.methods)) if ":" in path]

    def faults(self) -> Iterator[str]:
        names = [method.name for method in self.methods]
        if not names and not self.arch:
            yield "A student needs at least one method of compression; got none."
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"Each method can be used once; got {', '.join(twice)} twice."
        for method in self.methods[:-1]:
            if method.is_last:
                yield f"The method {method.name} comes last; got {', '.join(names)}."
        if any(m.needs_teacher for m in self.methods[0 if self.arch else 1 :]):
            yield (
                "A target is searched for in the teacher itself, so that its method must be the "
                f"first; got {', '.join(self.parts)}."
            )
        if (names or self.arch) and not re.fullmatch(r"\w[\w.+-]*", self.name):
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
        start = self.start(teacher).classifier
        net, shape, arch = start.net, teacher.domain.shape, start.arch
        noise = torch.randn(CHECK_SIZE, *shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(next(teacher.parameters()).device)
        with torch.random.fork_rng():
            for method in self.methods:
                net = method.check(net, noise, arch)

    def start(self, teacher: Teacher, seed: int = 0) -> Student:
        """What the first method compresses: the teacher itself, or a new net.

        Arguments:
            teacher: The teacher.
            seed: The seed of a new net's weights.

        Raises:
            UsageError: If there is no such architecture, or it does not fit the teacher's domain.
        """
        return Student(teacher if self.arch is None else _new_net(self.arch, teacher, seed))

    def to_dict(self) -> dict[str, Any]:
        methods = [{"method": m.name, **m.to_dict()} for m in self.methods]
        return {"methods": methods, "name": self.name, "bn": self.bn, "arch": self.arch}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], trusted: Sequence[str] = ()) -> StudentSpec:
        """The inverse of :meth:`to_dict`.

        Arguments:
            fields: The fields.
            trusted: Paths `module:Class` of methods and architectures that may be imported.

        Raises:
            UsageError: If a method or the architecture is code that was not named as trusted.
            ConfigError: If a field is unknown or makes no sense.
        """
        methods, arch = [], fields.get("arch")
        if arch is not None and ":" in arch and arch not in trusted:
            raise UsageError(
                f"The student is a new net of {arch}, which is code of its own; if you trust that "
                "code, name it among the trusted ones."
            )
        for entry in fields.get("methods", ()):
            options = {k: v for k, v in entry.items() if k != "method"}
            known = [path for path in trusted if path != arch]
            methods.append(method_of(entry, known).from_dict(options))
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


def _new_net(arch: str, teacher: Teacher, seed: int) -> Classifier:
    """A net of an architecture with random weights, that fits the teacher's domain."""
    generator = seeded_generator(seed, f"weights of {arch}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        net = build_net(arch, teacher.domain)
    classifier = Classifier(net.requires_grad_(True), teacher.domain, arch)
    try:
        check_classifier(classifier)
    except ValueError as error:
        raise UsageError(f"A new net of {arch} does not fit the teacher: {error}") from error
    classifier.is_new = True
    return classifier.to(next(teacher.parameters()).device).eval()


def build(
    teacher: Teacher,
    spec: StudentSpec,
    inputs: Tensor,
    progress: Progress | None = None,
    seed: int = 0,
) -> Student:
    """A student before any training.

    This is the only way in which a student comes to be: what a report calls "compressed only" is
    what `freiakd compress` writes.

    Arguments:
        teacher: The teacher, which is not modified.
        spec: What the student is to be.
        inputs: The calibration set, pixels in [0, 1] for images, with shape `(N, *shape)`.
        progress: What to show meanwhile.
        seed: The seed of a new net's weights.

    Raises:
        UsageError: If the student cannot be made of this teacher.

    Example:
        >>> from freia_kd.domain import Domain
        >>> teacher = Teacher(torch.nn.Linear(64, 64), Domain((64,), 64), "custom")
        >>> spec = StudentSpec((Tucker(layers={"all": 0.25}),))
        >>> build(teacher, spec, torch.rand(8, 64)).steps[0]["layers"][""]["ranks"]
        [16]
    """
    student = spec.start(teacher, seed)
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
        with showing(progress):
            made = method.apply(origin.net, inputs, origin.arch)
        if bn != "freeze":
            match_batchnorm(made.net, origin.net, inputs)
        stage.update(1, {})
    classifier = Classifier(made.net.requires_grad_(True), origin.domain, origin.arch)
    classifier.is_new = origin.is_new
    return Student(
        classifier.to(device).eval(),
        [*student.steps, _plain(made.step)],
        [*student.searches, _plain(made.search)],
    )


def _plain(found: Any) -> Any:
    """What a file gives back: lists for tuples, and text for other keys."""
    return json.loads(json.dumps(found))


def calibration_set(teacher: Teacher, seed: int = 0, size: int | None = None) -> Tensor:
    """Noise of the teacher's domain, on which a student is built: the same for the same seed.

    Dead leaves for images, and normal vectors in the teacher's units. It needs no training, so
    that a target that cannot be reached is found before any long work. (Of a ResNet14 on
    Fashion-MNIST, a development teacher, student 1 has 21.9 % accuracy with its batch statistics
    frozen, 73.8 % where they are matched on 1/f noise, 76.3 % on dead leaves and 78.7 % on real
    images.)

    Arguments:
        teacher: The teacher.
        seed: The seed.
        size: How many; by default 512, and down to 64 for large images and nets.

    Returns:
        Inputs with shape `(size, *shape)`, where the teacher is.
    """
    noise: Noise = Leaves() if teacher.domain.is_image else Normal()
    noise.fit(teacher)
    device, shape = next(teacher.parameters()).device, teacher.domain.shape
    if size is None:
        size = affordable(teacher, shape, CALIBRATION_SIZE, CALIBRATION_MACS, MIN_CALIBRATION)
    return noise.draw(size, seeded_generator(seed, "calibration set", device))


def seeded_generator(
    seed: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Random numbers that depend on a seed and what they are for alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
