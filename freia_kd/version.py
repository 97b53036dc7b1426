"""What a result is made by: the version, once, and the command line."""

from contextvars import ContextVar

__version__ = "0.2.0"
COMMAND: ContextVar[str | None] = ContextVar("freia_kd.command", default=None)  # if it is one
