"""Methods that make a teacher's inputs without its data, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
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
        "photos": f"{_HERE}.photos:Photos",
        "proxy": f"{_HERE}.proxy:Proxy",
        "spectral": f"{_HERE}.noise:Spectral",
        "uniform": f"{_HERE}.noise:Uniform",
        "normal": f"{_HERE}.noise:Normal",
    },
    "synthesizer",
)


def build_synthesizers(
    names: str, preset: str = "best", settings: Mapping[str, Any] | None = None
) -> list[Synthesizer]:
    """Makes the synthesizers that a name like `"bdnf+spectral"` joins.

    Arguments:
        names: Names of `SYNTHESIZERS` or paths `package.module:Class`, joined by `+`.
        preset: The preset whose options they take.
        settings: Options that differ. A name without a dot goes to every synthesizer that has such
            an option, one like `"bdnf.steps"` to that synthesizer.

    Raises:
        UsageError: If there is no such synthesizer or option, or one comes twice.
    """
    classes = [get_synthesizer(name) for name in names.split("+")]
    if len({c.name for c in classes}) < len(classes):
        raise UsageError(f"Expected different synthesizers; got {names!r}.")
    chosen: dict[str, dict[str, Any]] = {c.name: {} for c in classes}
    for key, value in (settings or {}).items():
        title, _, option = key.rpartition(".")
        takers = [c for c in classes if option in c.known_options() and title in ("", c.name)]
        if not takers:
            known = [f"{c.name}.{name}" for c in classes for name in c.known_options()]
            raise UsageError(
                f"Unknown option {key!r} of {names}; known ones are {', '.join(known) or 'none'}."
            )
        for taker in takers:
            chosen[taker.name][option] = value
    return [c.build(preset, chosen[c.name]) for c in classes]


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


def expect_able(
    synthesizers: Sequence[Synthesizer], teacher: Teacher, samples: LabelledData | None = None
) -> None:
    """Raises unless all synthesizers can work with a teacher.

    Raises:
        UsageError: If one cannot; the message names those that can.
    """
    for synthesizer in synthesizers:
        reason = synthesizer.why_not(teacher, samples, options=synthesizer.options)
        if reason is not None:
            raise UsageError(
                f"The synthesizer {synthesizer.name!r} {reason}; those that can work with it are "
                f"{', '.join(able(teacher, samples))}."
            )


def able(teacher: Teacher, samples: LabelledData | None = None) -> list[str]:
    """The names of the synthesizers that can work with a teacher."""
    return [
        name for name in SYNTHESIZERS if get_synthesizer(name).why_not(teacher, samples) is None
    ]
