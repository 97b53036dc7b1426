"""What every training of this package runs in: a resumable loop, its states, and what it shows."""

from .checkpoints import Checkpoints
from .loop import Remedies, Stateful, TrainingLoop, own_generator
from .progress import LoggedProgress, PlainProgress, Progress, RichProgress
from .rehearsal import Rehearsal
from .weights import Best, MovingAverage, channels_last, keep_layout

__all__ = [
    "Best",
    "Checkpoints",
    "LoggedProgress",
    "MovingAverage",
    "PlainProgress",
    "Progress",
    "Rehearsal",
    "Remedies",
    "RichProgress",
    "Stateful",
    "TrainingLoop",
    "channels_last",
    "keep_layout",
    "own_generator",
]
