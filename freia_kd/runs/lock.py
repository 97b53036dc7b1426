"""A lock on a run's folder: one process works on it at a time, and another is told who does."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import write_json

LOCK, HOLDER = ".lock", ".lock-holder.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder within the block; the folder is made if there is none.

    The operating system gives the lock back when the process ends, however it ends, so that one
    that was killed blocks nobody. Folders that are empty at the end, and were not there before, are
    removed.

    Arguments:
        folder: The run's folder.

    Raises:
        UsageError: If another process holds it; the message says which.
        OSError: If the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        # Not at once, since whoever looks whether it is held holds it for a moment.
        lock.acquire(timeout=0.3, poll_interval=0.05)
    except Timeout:
        raise _held(folder) from None
    try:
        write_json(folder / HOLDER, _myself())
        yield
    finally:
        for name in (HOLDER, LOCK):  # while it is held, so that nobody else's is removed
            (folder / name).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # as a rule they are not empty
            for path in new:
                path.rmdir()


def holder(folder: Path) -> dict[str, Any]:
    """Who holds a folder's lock, or held it last: `pid`, `host` and `since`, where that is known.

    Arguments:
        folder: The run's folder.
    """
    try:
        said = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def is_locked(folder: Path) -> bool:
    """Whether a process works on a folder; nothing in it is changed.

    Arguments:
        folder: The run's folder.
    """
    from filelock import FileLock, Timeout

    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def expect_free(folder: Path) -> None:
    """Raises if a process works on a folder; nothing in it is changed.

    Arguments:
        folder: The run's folder.

    Raises:
        UsageError: If one does; the message says which.
    """
    if is_locked(folder):
        raise _held(folder)


def _held(folder: Path) -> UsageError:
    return UsageError(
        f"Another process works on the run in {folder}{_said(holder(folder))}. Wait until it "
        "ends, or stop it, or choose another --out."
    )


def _myself() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _said(who: dict[str, Any]) -> str:
    known = {"pid", "host", "since"} <= set(who)
    return f": process {who['pid']} on {who['host']}, since {who['since']}" if known else ""
