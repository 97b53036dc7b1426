"""How much work a run does: the presets."""

from __future__ import annotations

from dataclasses import dataclass, field

from .distillation import DistillationOptions
from .errors import UsageError


@dataclass(frozen=True)
class Preset:
    """The sizes of a run; those of a synthesizer are its own `presets`.

    Arguments:
        name: Its name, by which synthesizers choose their options.
        set_size: How many synthetic inputs the students learn from.
        heldout_size: How many more choose the weights and measure agreement.
        student: How the students are trained.
    """

    name: str = "standard"
    set_size: int = 65_536
    heldout_size: int = 4_096
    student: DistillationOptions = field(default_factory=DistillationOptions)


PRESETS = {
    "quick": Preset(
        "quick",
        set_size=16_384,
        heldout_size=2_048,
        student=DistillationOptions(steps=600),
    ),
    "standard": Preset(),
    "best": Preset(
        "best",
        set_size=262_144,
        student=DistillationOptions(steps=8_000, patience=10),
    ),
    "paper": Preset(
        "paper",
        set_size=6_400,
        student=DistillationOptions("forward-kl", steps=5_000, learning_rate=1e-5),
    ),
}


def get_preset(name: str | Preset) -> Preset:
    """A preset by name, or as it is.

    Raises:
        UsageError: If there is none of that name.
    """
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise UsageError(f"Unknown preset {name!r}; known ones are {', '.join(PRESETS)}.")
    return PRESETS[name]
