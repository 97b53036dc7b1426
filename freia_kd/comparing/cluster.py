"""Trials on a cluster of machines, by Dask."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..optional import require

WAIT = 10  # seconds for a scheduler to answer


@contextmanager
def connect(address: str, folder: str | os.PathLike[str]) -> Iterator[Executor]:
    """An executor whose trials run on the workers of a Dask cluster; it is closed at the end.

    Each worker runs one trial at a time. When one dies, Dask gives its trial to another, which goes
    on from the trial's folder; a trial that has brought down several is given up. So all machines
    must see the same files, under the same paths; working folders may differ.

    Arguments:
        address: The scheduler's, such as `"tcp://127.0.0.1:8786"`.
        folder: Where the trials will be.

    Raises:
        ImportError: If Dask is not installed; the message names the extra.
        UsageError: If no scheduler answers, it has no workers, they run several trials in one
            process, or do not see the folder.
    """
    distributed = require("distributed", "dask")
    try:
        distributed.comm.get_address_host_port(address)  # a client of none fails in several ways
        client = distributed.Client(address, timeout=WAIT, set_as_default=False)
    except (OSError, ValueError, AssertionError) as error:
        raise UsageError(
            f"Expected a Dask scheduler at {address}; none answers ({error}). Start one by "
            f"`dask scheduler`, and a worker for each trial at a time by `dask worker {address} "
            "--nthreads 1`."
        ) from error
    with client:
        _check(client, address, Path(folder))
        yield client.get_executor(pure=False)  # equal trials of two calls are not the same work


def _check(client: Any, address: str, folder: Path) -> None:
    threads = client.nthreads()
    if not threads:
        raise UsageError(
            f"The Dask scheduler at {address} has no workers; start some by `dask worker {address} "
            "--nthreads 1`."
        )
    # Weights are drawn from torch's global generator, which threads of a process share.
    wide = [worker for worker, count in threads.items() if count > 1]
    if wide:
        raise UsageError(
            "Expected Dask workers that run one trial at a time; these have several threads: "
            f"{', '.join(sorted(wide))}. Start them with --nthreads 1, and several on one machine "
            "with --nworkers N."
        )
    folder = folder.absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    with tempfile.NamedTemporaryFile(dir=there, prefix=".freiakd-") as file:
        seen = client.run(os.path.exists, file.name)
    blind = [worker for worker, sees in seen.items() if not sees]
    if blind:
        raise UsageError(
            f"The Dask workers {', '.join(sorted(blind))} do not see {there}, where the trials "
            "are kept: choose an --out on a file system that all machines share."
        )
