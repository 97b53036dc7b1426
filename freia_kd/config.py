"""Frozen options: choices, ranges, and all faults of a choice at once; imports no torch.

Options are plain frozen dataclasses that derive from :class:`Config`. The annotations say what is
allowed: a `Literal`, or a number with bounds such as :data:`Count`. Every field is checked when an
object is made, defaults and `None` included.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from .errors import ConfigError, unknown
from .registry import DIVERGENCES

Count = Annotated[int, Ge(1)]
Size = Annotated[int, Ge(2)]  # of a batch that is normalised, or a set that is compared with itself
Natural = Annotated[int, Ge(0)]
LARGEST = 3e38  # what float32 can hold, in which all of them end
Positive = Annotated[float, Gt(0), Le(LARGEST)]
NonNegative = Annotated[float, Ge(0), Le(LARGEST)]
Share = Annotated[float, Gt(0), Lt(1)]
Fraction = Annotated[float, Gt(0), Le(1)]
Probability = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]

Self = TypeVar("Self", bound="Config")
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["bf16", "float32"]  # of the nets while they work
PresetName = Literal["quick", "standard", "best", "paper"]
BatchNormMode = Literal["match", "freeze"]
PaperStudent = Literal[
    "1", "2", "3", "kegnet-1", "kegnet-2", "kegnet-3", "bdnf-1", "bdnf-2", "bdnf-3"
]
Target = Literal["params", "macs", "latency", "drop"]
Runtime = Literal["torch", "onnxruntime"]
ExportFormat = Literal["torch", "safetensors", "onnx", "torch-export"]

BOUNDARIES = "activation-boundaries"  # a loss that is asked for by name
BOUNDARY_SHARE = 0.25  # of the steps, where it is
MOST_SEEDS = 1_000  # of trials, all of which are listed before the first begins
SMALL = 1_000_000  # multiply-accumulates an input, up to which a net is small

# What pydantic calls a fault, and what we do; `{...}` is what pydantic tells of the bound.
WORDS = {
    "greater_than_equal": "expected at least {ge}",
    "greater_than": "expected more than {gt}",
    "less_than_equal": "expected at most {le}",
    "less_than": "expected less than {lt}",
    "literal_error": "expected {expected}",
    "finite_number": "expected a finite number",
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "missing": "a value is missing",
}


class Config:
    """The base class of frozen dataclasses of options.

    Raises:
        ConfigError: If fields make no sense; all of them are named.

    Example:
        >>> @dataclass(frozen=True)
        ... class Steps(Config):
        ...     title: ClassVar[str] = "example"
        ...     steps: Count = 5
        >>> Steps(0)
        Traceback (most recent call last):
        freia_kd.errors.ConfigError: example.steps: expected at least 1; got 0.
    """

    title: ClassVar[str] = ""  # before the names of its options, in messages

    def __post_init__(self) -> None:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        faults = [*_field_faults(type(self), values)] or [*self.faults()]
        if faults:
            raise ConfigError(faults)

    def faults(self) -> Iterator[str]:
        """What is wrong between fields, each a sentence; asked for once every field is right."""
        return iter(())

    @classmethod
    def name_of(cls, option: str) -> str:
        """An option's name in messages: with what it is an option of before it."""
        return f"{cls.title}.{option}" if cls.title else option

    @classmethod
    def known_options(cls) -> list[str]:
        """The names of its options."""
        return [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]

    def changed(self: Self, **changes: Any) -> Self:
        """A copy with other values.

        Raises:
            ConfigError: If there is no such option, or a value makes no sense; all are named.
        """
        known = self.known_options()
        faults = [
            unknown(self.name_of(k), map(self.name_of, known)) for k in changes if k not in known
        ]
        fitting = {k: v for k, v in changes.items() if k in known}
        with collect_faults(faults) as collected, collected:
            return dataclasses.replace(self, **fitting)  # type: ignore[type-var]
        raise AssertionError  # collect_faults has raised

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[Self], fields: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; lists become tuples where these are meant.

        Raises:
            ConfigError: If fields are unknown or make no sense; all are named.
        """
        known = cls.known_options()
        faults = [
            unknown(cls.name_of(k), map(cls.name_of, known)) for k in fields if k not in known
        ]
        hints = _hints(cls)  # type: ignore[arg-type]
        values = {k: _tupled(v, hints[k]) for k, v in fields.items() if k in known}
        with collect_faults(faults) as collected, collected:
            return cls(**values)
        raise AssertionError  # collect_faults has raised


@dataclass
class FaultCollector:
    """Gathers the faults of several blocks, see :func:`collect_faults`."""

    faults: list[str] = field(default_factory=list)

    def __enter__(self) -> FaultCollector:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, ConfigError):
            self.faults += error.faults
            return True
        return False


@contextmanager
def collect_faults(faults: Iterable[str] = ()) -> Iterator[FaultCollector]:
    """Raises the faults of all blocks `with collected:` inside it together, at its end.

    Arguments:
        faults: What is already known to be wrong.

    Raises:
        ConfigError: If there are any.

    Example:
        >>> with collect_faults() as collected:
        ...     with collected:
        ...         raise ConfigError(["One."])
        ...     with collected:
        ...         raise ConfigError(["Two."])
        Traceback (most recent call last):
        freia_kd.errors.ConfigError: One. Two.
    """
    collector = FaultCollector(list(faults))
    yield collector
    if collector.faults:
        raise ConfigError(collector.faults)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@functools.cache
def _model(cls: Any) -> Any:
    """A pydantic model of a dataclass's fields; pydantic is only loaded when options are made."""
    from pydantic import ConfigDict, create_model

    hints = _hints(cls)
    fields: Any = {f.name: (hints[f.name], ...) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    rules = ConfigDict(
        strict=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )
    return create_model(cls.__name__, __config__=rules, **fields)


def _field_faults(cls: type[Config], values: Mapping[str, Any]) -> Iterator[str]:
    from pydantic import ValidationError

    try:
        _model(cls)(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        seen = set()
        for fault in error.errors(include_url=False):
            name = str(fault["loc"][0])
            if name not in seen:  # of a union pydantic names every alternative
                seen.add(name)
                yield _sentence(cls, name, values[name], fault)


def _sentence(cls: type[Config], name: str, value: Any, fault: Any) -> str:
    words = WORDS.get(fault["type"])
    text = words.format(**fault.get("ctx", {})) if words else _lowered(fault["msg"])
    hint = _hints(cls)[name]  # type: ignore[arg-type]
    literals = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal]
    choices = [str(choice) for kind in literals for choice in get_args(kind)]
    near = difflib.get_close_matches(str(value), choices, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"{cls.name_of(name)}: {text}; got {value!r}.{meant}"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _tupled(value: Any, hint: Any) -> Any:
    """A list of JSON as a tuple, where a tuple is meant."""
    is_tuple = any("tuple" in str(h).lower() for h in (hint, *get_args(hint)))
    return tuple(value) if isinstance(value, list) and is_tuple else value


@dataclass(frozen=True)
class DistillationOptions(Config):
    r"""How a student learns.

    The loss, the temperature and the rate were chosen on development teachers of
    `benchmarks/recovery-teachers.json`, with their students' accuracy in view, since agreement on
    synthetic images does not rank the losses (it did in `benchmarks/results/distillation-*.md`, at
    a correlation of 0.17 on MNIST and -0.47 on Fashion-MNIST). LeNet5, student 3, 16,384 dead
    leaves, 400 steps, one seed: L1 gives 91.9 % on MNIST and 59.2 % on Fashion-MNIST, forward KL at
    T = 8 92.8 and 65.2 % (MNIST alone: T = 4 92.2, T = 20 92.8, centred L1 92.2, centred MSE 92.9;
    a pull of 1e-3 92.8, of 1e-2 92.7, of 0.1 86.1; averaged weights 92.7). So a loss that is blind
    to the mean logit is the default, and nothing is added to it. Drawing classes alike gives 72.0 %
    on Fashion-MNIST where drawing all alike gives 65.7 (MNIST 92.0 %, about the same), and a
    ResNet14's student 3 86.1 % in place of 82.2.

    Arguments:
        divergence: The loss against the teacher's logits, by name or `module:function`.
        temperature: The temperature of both softmaxes. It only scales `"l1"` and the centred
            losses, which Adam ignores.
        boundaries: The share of the steps, at the start, in which the student learns where the
            teacher's hidden neurons fire (Heo et al., 2019) and not yet the logits; 0 for none.
        mixup: The parameter a of Beta(a, a), by which inputs are mixed in pairs (Zhang et al.,
            2018); the teacher labels what comes of it. 0 for none.
        pull: The weight a of :math:`a/2\,\|w - w_0\|^2`, which pulls the weights w to those that
            the student starts with (L2-SP, Li et al., 2018); 0 for none.
        ema: The decay of the exponential moving average of the weights, which is what the student
            ends with; 0 for the last weights themselves.
        balanced: Whether inputs are drawn so that the teacher's classes come up alike
            (:func:`~freia_kd.data.balance.class_balance`), and not all alike.
        steps: Training steps. `None` is the preset's share of 8,000, and of 6,000 for students of
            small teachers (at most a million multiply-accumulates an input), for which 6,000 take
            three minutes: student 3 of two LeNet5s then has 95.8 % on MNIST and 76.0 % on
            Fashion-MNIST, not 95.3 and 75.6 % with 2,000 (development teachers, judged on training
            images, one seed).
        batch_size: Inputs in a step. `None` is 64, and 256 for students of small teachers. On as
            many inputs a ResNet18's student has 71.9 % with 600 steps of 256 and 73.6 % with 2,400
            of 64, at the same cost; a ResNet14's 75.8 and 77.8 % with 100 and 400 (CIFAR-10,
            development teachers, judged on training images, one seed).
        learning_rate: Adam's, falling to 0 as a cosine. `None` is 1e-2 times the share of held-out
            inputs on which the student differs from its teacher before it learns (at least a
            hundredth; 2e-3 at most for other than small students, and without held-out inputs),
            5e-3 for new nets, and 2e-4 for students with batch normalisation: their frozen
            statistics fit only weights that stay near the teacher's. (ResNet14 on Fashion-MNIST,
            student 3, 100 steps on spectral noise, one seed: agreement on held-out noise 81.4,
            87.5, 87.3 and 82.0 % with 2e-3, 5e-4, 2e-4 and 1e-4, of which we take the lowest within
            a point of the best; accuracy 16.1, 40.2, 45.4 and 48.2 %, which was in view.)
        check_every: Steps between checks of the agreement on held-out synthetic inputs. `None` is
            as many as learn from 51,200 inputs: 800 of 64, 200 of 256.
        patience: Checks without a better agreement after which training stops early; `None` for
            never. The learning rate then has not fallen to 0, so patience should be long.

    Raises:
        ConfigError: If a value makes no sense.

    References:
        | Distilling the Knowledge in a Neural Network (Hinton et al., 2015)
        | https://arxiv.org/abs/1503.02531
        | Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons
        | (Heo et al., 2019), https://arxiv.org/abs/1811.03233
        | mixup: Beyond Empirical Risk Minimization (Zhang et al., 2018)
        | https://arxiv.org/abs/1710.09412
        | Explicit Inductive Bias for Transfer Learning with Convolutional Networks (Li et al.,
        | 2018), https://arxiv.org/abs/1802.01483
    """

    title: ClassVar[str] = "student"
    divergence: str = "forward-kl"
    temperature: Positive = 8.0
    boundaries: Decay = 0.0
    mixup: NonNegative = 0.0
    pull: NonNegative = 0.0
    ema: Decay = 0.0
    balanced: bool = True
    steps: Count | None = None
    batch_size: Count | None = None
    learning_rate: NonNegative | None = None
    check_every: Count | None = None
    patience: Count | None = None

    def faults(self) -> Iterator[str]:
        if self.divergence == BOUNDARIES:
            yield (
                f"{self.name_of('divergence')}: {BOUNDARIES!r} says nothing of logits; pass "
                f"boundaries={BOUNDARY_SHARE} beside another divergence, or use with_loss()."
            )
        elif self.divergence not in DIVERGENCES and ":" not in self.divergence:
            yield unknown(self.divergence, losses(), "loss")

    def sized(self, macs: int, share: float = 1.0) -> DistillationOptions:
        """The options with the sizes that they leave open.

        Arguments:
            macs: The multiply-accumulates of the teacher for one input.
            share: The share of the steps to take where `steps` is `None`.

        Example:
            >>> options = DistillationOptions().sized(10**8, 1 / 20)
            >>> options.steps, options.batch_size, options.check_every
            (400, 64, 800)
        """
        steps, usual_size = (6_000, 256) if macs <= SMALL else (8_000, 64)
        batch_size = self.batch_size or usual_size
        return self.changed(
            steps=self.steps or round(share * steps),
            batch_size=batch_size,
            check_every=self.check_every or max(1, 51_200 // batch_size),
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether a student can only learn so with the teacher at hand."""
        return self.mixup > 0 or self.boundaries > 0

    def with_loss(self, name: str) -> DistillationOptions:
        """The same options with a loss of the student by its name.

        Arguments:
            name: A divergence, or `"activation-boundaries"` for a quarter of the steps on those,
                and the divergence that the options have in the others.

        Raises:
            ConfigError: If there is no such loss.

        Example:
            >>> DistillationOptions().with_loss("activation-boundaries").boundaries
            0.25
        """
        if name == BOUNDARIES:
            return self.changed(boundaries=BOUNDARY_SHARE)
        return self.changed(divergence=name)


def losses() -> list[str]:
    """The names of the losses of a student."""
    return [*DIVERGENCES, BOUNDARIES]


@dataclass(frozen=True)
class Preset(Config):
    """The sizes of a run; those of a synthesizer are its own `presets`.

    Arguments:
        name: Its name, by which synthesizers choose their options.
        set_size: How many synthetic inputs the students learn from. `None` is 65,536, and 131,072
            for small teachers, whose students take more steps.
        heldout_size: How many more choose the weights and measure agreement.
        training: How the students are trained.
        bn: What becomes of batch normalisation in the students.
        share: The share of the usual inputs and steps that is taken where they are `None`.
        large_share: The same for teachers that are not small; `None` is no other.
    """

    title: ClassVar[str] = "preset"
    name: PresetName = "standard"
    set_size: Count | None = None
    heldout_size: Size = 4_096
    training: DistillationOptions = field(default_factory=DistillationOptions)
    bn: BatchNormMode = "match"
    share: Fraction = 1.0
    large_share: Fraction | None = None

    def share_of(self, macs: int) -> float:
        """The share of the usual inputs and steps for a teacher of so many multiply-accumulates."""
        return self.share if macs <= SMALL or self.large_share is None else self.large_share

    def count(self, macs: int) -> int:
        """How many synthetic inputs the students of a teacher learn from.

        Arguments:
            macs: The multiply-accumulates of the teacher for one input.

        Example:
            >>> Preset().count(400_000), get_preset("quick").count(400_000)
            (131072, 13107)
        """
        return self.set_size or round(self.share_of(macs) * (131_072 if macs <= SMALL else 65_536))


def _best() -> Preset:
    training = DistillationOptions(steps=8_000, batch_size=256, patience=10)
    return Preset("best", 262_144, training=training)


def _paper() -> Preset:
    training = DistillationOptions(
        "forward-kl", 1.0, balanced=False, steps=5_000, batch_size=256, learning_rate=1e-5
    )
    return Preset("paper", 6_400, training=training, bn="freeze")


# Made when asked for, since to check options takes a library that loads slowly.
PRESETS: dict[str, Callable[[], Preset]] = {
    "quick": lambda: Preset("quick", heldout_size=2_048, share=1 / 10, large_share=1 / 20),
    "standard": Preset,
    "best": _best,
    "paper": _paper,
}


def get_preset(name: str | Preset) -> Preset:
    """A preset by name, or as it is.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> get_preset("paper").set_size
        6400
    """
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise ConfigError([unknown(name, PRESETS, "preset")])
    return PRESETS[name]()
