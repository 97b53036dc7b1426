"""A run's folder: what was asked for, what is done, and what each stage left."""

from .store import Run, RunRecord

__all__ = ["Run", "RunRecord"]
