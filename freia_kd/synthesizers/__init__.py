"""Methods that make a teacher's inputs without its data, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config import collect_faults
from ..errors import UsageError, unknown
from ..registry import Registry

if TYPE_CHECKING:
    from ..data.datasets import LabelledData
    from ..teachers.classifier import Teacher
    from .contract import Synthesizer

_HERE = "freia_kd.synthesizers"

SYNTHESIZERS = Registry(
    _HERE,
    {
        "bdnf": f"{_HERE}.bdnf:BDNF",
        "kegnet": f"{_HERE}.kegnet:KegNet",
        "dfad": f"{_HERE}.adversarial:DFAD",
        "rdskd": f"{_HERE}.rdskd:RDSKD",
        "deepinversion": f"{_HERE}.deep_inversion:DeepInversion",
        "adaptive-deepinversion": f"{_HERE}.deep_inversion:AdaptiveDeepInversion",
        "kw-gaussian": f"{_HERE}.knowledge_within:KWGaussian",
        "kw-inception": f"{_HERE}.knowledge_within:KWInception",
        "kw-bns": f"{_HERE}.knowledge_within:KWStatistics",
        "kw-mixture": f"{_HERE}.knowledge_within:KWMixture",
        "samples": f"{_HERE}.samples:Samples",
        "leaves": f"{_HERE}.leaves:Leaves",
        "figures": f"{_HERE}.figures:Figures",
        "photos": f"{_HERE}.photos:Photos",
        "proxy": f"{_HERE}.proxy:Proxy",
        "spectral": f"{_HERE}.noise:Spectral",
        "uniform": f"{_HERE}.noise:Uniform",
        "normal": f"{_HERE}.noise:Normal",
    },
    "synthesizer",
)


IMAGE_DEFAULT, VECTOR_DEFAULT = "leaves+figures", "bdnf"
STATISTICS_DEFAULT = f"bdnf+deepinversion+{IMAGE_DEFAULT}"
AUTO = "auto"  # asked for in place of names: a run tries mixtures of these, and chooses
AUTO_TRIES = ("bdnf", "leaves", "figures")


def default_synthesizer(
    is_image: bool, has_statistics: bool = False, has_samples: bool = False
) -> str:
    """What makes the inputs where nothing else is asked for.

    The flow and inverted images are part of it where the teacher keeps batch statistics, which hold
    both near what the teacher was trained on: student 3 of a ResNet14 on Fashion-MNIST gains 1.8
    points by the flow, and some tenths more by inversions beside it. On one development teacher
    either is better than the other, so that both are there. Without statistics the class term alone
    leads the flow astray: of a LeNet5 on the same data student 3 loses 4.5 points where the flow
    makes a third of the images (`benchmarks/results/recovery-development.md`).

    Arguments:
        is_image: Whether the teacher takes images.
        has_statistics: Whether it has batch normalisation.
        has_samples: Whether there are real samples, from which students then learn as well.
    """
    names = [VECTOR_DEFAULT]
    if is_image:
        names = [STATISTICS_DEFAULT if has_statistics else IMAGE_DEFAULT]
    return "+".join(["samples", *names] if has_samples else names)


def build_synthesizers(
    names: str | Synthesizer | Sequence[str | Synthesizer],
    preset: str = "standard",
    options: Mapping[str, Any] | None = None,
) -> list[Synthesizer]:
    """Makes the synthesizers of a run, each of which makes an equal share of its inputs.

    Arguments:
        names: Names of `SYNTHESIZERS` or paths `package.module:Class`, which `+` may join, and
            synthesizers, which stay as they are.
        preset: The preset whose options those given by name take.
        options: Options of theirs that differ. A name without a dot goes to every synthesizer
            that has such an option, one like `"bdnf.steps"` to that synthesizer.

    Raises:
        ConfigError: If there is no such preset or option, or values make no sense.
        UsageError: If there is no such synthesizer, or one comes twice.
    """
    from .contract import Synthesizer

    given = [names] if isinstance(names, (str, Synthesizer)) else list(names)
    parts = [p for g in given for p in (g.split("+") if isinstance(g, str) else [g])]
    found = [part if isinstance(part, Synthesizer) else get_synthesizer(part) for part in parts]
    titles = [part.name for part in found]
    if len(set(titles)) < len(titles) or not found:
        raise UsageError(f"Expected different synthesizers; got {'+'.join(titles) or 'none'}.")
    classes = [part for part in found if isinstance(part, type)]
    chosen: dict[str, dict[str, Any]] = {c.name: {} for c in classes}
    with collect_faults() as collected:
        for key, value in (options or {}).items():
            title, _, option = key.rpartition(".")
            takers = [c for c in classes if option in c.known_options() and title in ("", c.name)]
            known = [f"{c.name}.{name}" for c in classes for name in c.known_options()]
            if not takers:
                collected.faults.append(unknown(key, known))
            for taker in takers:
                chosen[taker.name][option] = value
        made = list[Synthesizer]()
        for part in found:
            with collected:
                if isinstance(part, type):
                    part = part.build(preset, chosen[part.name])
                made.append(part)
    return made


def get_synthesizer(name: str) -> type[Synthesizer]:
    """The class of that name or path.

    Raises:
        UsageError: If there is none.
    """
    from .contract import Synthesizer

    found = SYNTHESIZERS[name]
    if not (isinstance(found, type) and issubclass(found, Synthesizer)):
        raise UsageError(f"Expected a subclass of Synthesizer at {name!r}; got {found!r}.")
    return found


def expect_supported(
    synthesizers: Sequence[Synthesizer], teacher: Teacher, samples: LabelledData | None = None
) -> None:
    """Raises unless all synthesizers can work with a teacher.

    Raises:
        UsageError: If one cannot; the message names those that can.
    """
    for synthesizer in synthesizers:
        reason = synthesizer.unsupported_reason(teacher, samples, options=synthesizer.options)
        if reason is not None:
            raise UsageError(
                f"The synthesizer {synthesizer.name!r} {reason}; those that can work with it are "
                f"{', '.join(supported(teacher, samples))}."
            )


def supported(teacher: Teacher, samples: LabelledData | None = None) -> list[str]:
    """The names of the synthesizers that can work with a teacher."""
    return [
        name
        for name in SYNTHESIZERS
        if get_synthesizer(name).unsupported_reason(teacher, samples) is None
    ]
