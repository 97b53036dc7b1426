"""How much work a run does: three presets."""

from __future__ import annotations

from dataclasses import dataclass, field

from .distillation import DistillationOptions
from .errors import UsageError
from .synthesizers.bdnf import BDNFOptions


@dataclass(frozen=True)
class Preset:
    """The sizes of a run.

    Arguments:
        flow: The hyper-parameters of the flow and its training.
        set_size: How many synthetic inputs the students learn from.
        prior_share: The share of them that comes from the base (spectral noise) and not from the
            flow, so that the set keeps the base's variety.
        heldout_size: How many more, from both, only measure agreement.
        student: How the students are trained.
    """

    flow: BDNFOptions = field(default_factory=BDNFOptions)
    set_size: int = 65_536
    prior_share: float = 0.5
    heldout_size: int = 4_096
    student: DistillationOptions = field(default_factory=DistillationOptions)


PRESETS = {
    "quick": Preset(
        flow=BDNFOptions(steps=200, batch_size=64),
        set_size=16_384,
        heldout_size=2_048,
        student=DistillationOptions(steps=600),
    ),
    "standard": Preset(),
    "best": Preset(
        flow=BDNFOptions(steps=2_000),
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
