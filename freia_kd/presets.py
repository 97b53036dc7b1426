"""How much work a run does: three presets."""

from __future__ import annotations

from dataclasses import dataclass, field

from .distillation import DistillationOptions
from .errors import UsageError


@dataclass(frozen=True)
class Preset:
    """The sizes of a run; those of a synthesizer are its own `presets`.

    Arguments:
        set_size: How many synthetic inputs the students learn from.
        heldout_size: How many more choose the weights and measure agreement.
        student: How the students are trained.
    """

    set_size: int = 65_536
    heldout_size: int = 4_096
    student: DistillationOptions = field(default_factory=DistillationOptions)


PRESETS = {
    "quick": Preset(
        set_size=16_384,
        heldout_size=2_048,
        student=DistillationOptions(steps=600),
    ),
    "standard": Preset(),
    "best": Preset(
        set_size=262_144,
        student=DistillationOptions(steps=8_000, patience=10),
    ),
}


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"Unknown preset {name!r}; known ones are {', '.join(PRESETS)}.")
    return PRESETS[name]
