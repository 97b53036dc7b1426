"""Errors that carry more than `ValueError` and `TypeError` can say."""


class UsageError(ValueError):
    """The options given do not fit together, or one that is needed is missing (exit code 2)."""


class CheckpointError(ValueError):
    """A file is not what it should be: missing, truncated, hostile, or of another net."""


class TrainingError(RuntimeError):
    """A training loop could not go on (non-finite loss that no rollback cured)."""


class ExportError(ValueError):
    """A net cannot be exported, or the file written does not compute what the net does."""
