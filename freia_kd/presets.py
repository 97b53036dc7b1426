"""How much work a run does: the presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .distillation import DistillationOptions
from .errors import UsageError
from .options import change


@dataclass(frozen=True)
class Preset:
    """The sizes of a run; those of a synthesizer are its own `presets`.

    Arguments:
        name: Its name, by which synthesizers choose their options.
        set_size: How many synthetic inputs the students learn from.
        heldout_size: How many more choose the weights and measure agreement.
        student: How the students are trained.
        fresh: Whether the students see new inputs in every step, and not those of a stored set.
    """

    name: str = "standard"
    set_size: int = 65_536
    heldout_size: int = 4_096
    student: DistillationOptions = field(default_factory=DistillationOptions)
    fresh: bool = False


STUDENT = "student."  # what the names of the students' settings begin with

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
        student=DistillationOptions(
            "forward-kl", temperature=1.0, steps=5_000, learning_rate=1e-5, bn="freeze"
        ),
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


def resize_preset(
    preset: Preset, settings: Mapping[str, Any], loss: str | None = None, fresh: bool = False
) -> Preset:
    """A preset with other options of the students.

    Arguments:
        preset: The preset.
        settings: Options that differ; those whose names begin with `"student."` count.
        loss: The students' loss by name, if not the preset's.
        fresh: Whether the students see new inputs in every step.

    Raises:
        UsageError: If there is no such option or loss.
    """
    changes = {k.removeprefix(STUDENT): v for k, v in settings.items() if k.startswith(STUDENT)}
    student = change(preset.student, changes, "student")
    student = student if loss is None else student.with_loss(loss)
    return replace(preset, student=student, fresh=fresh or preset.fresh)
