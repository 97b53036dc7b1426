"""A run's folder: options, checkpoints, resume, metrics, progress and the report."""

from .loop import TrainingLoop
from .progress import PlainProgress, Progress, RichProgress
from .run import Run, read_run

__all__ = ["PlainProgress", "Progress", "RichProgress", "Run", "TrainingLoop", "read_run"]
