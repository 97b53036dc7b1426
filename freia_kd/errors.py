"""Errors that carry more than `ValueError` and `TypeError` can say."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """The options given do not fit together, or one that is needed is missing (exit code 2)."""


class ConfigError(UsageError):
    """Options that make no sense, all of them together.

    Arguments:
        faults: One sentence for each fault, which names the option and what is allowed.
    """

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(" ".join(self.faults))


class CheckpointError(ValueError):
    """A file is not what it should be: missing, truncated, hostile, or of another net."""


class TrainingError(RuntimeError):
    """A training loop could not go on (non-finite loss that no rollback cured), or has failed."""


class LostError(TrainingError):
    """Another process that shares the job has ended."""


class ExportError(ValueError):
    """A net cannot be exported, or the file written does not compute what the net does."""


def unknown(name: str, known: Iterable[str], kind: str = "option") -> str:
    """The sentence for a name that does not exist.

    Example:
        >>> unknown("stpes", ["steps", "ema"])
        "Unknown option 'stpes'; did you mean 'steps'? Known ones are steps, ema."
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    meant = f" did you mean {near[0]!r}? Known" if near else " known"
    return f"Unknown {kind} {name!r};{meant} ones are {', '.join(names) or 'none'}."
