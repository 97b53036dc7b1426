"""Commands whose work several processes share, under `torchrun`: one of them speaks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import click

PAUSE = 10.0  # seconds in which the first process, if it has the same fault, says so and ends all


def is_one_of_several() -> bool:
    """Whether `torchrun` has started this process beside others."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # so that torch is not loaded to ask
        return False
    from freia_kd.ranks import is_launched

    return is_launched()


def is_silent() -> bool:
    """Whether this is not the process that speaks for all."""
    return is_one_of_several() and os.environ.get("RANK") != "0"


@contextmanager
def sharing() -> Iterator[None]:
    """Joins the processes within the block; what all but the first would print is dropped."""
    if not is_one_of_several():
        yield
        return
    from freia_kd import ranks

    with ranks.joined(), open(os.devnull, "w") as nowhere:
        if not is_silent():
            yield
            return
        with redirect_stdout(nowhere):
            yield


def leave_quietly(code: int) -> None:
    """Ends a process that does not speak.

    Raises:
        click.exceptions.Exit: If this is one.
    """
    if is_silent():
        raise click.exceptions.Exit(code)


def leave_last(failure: click.ClickException) -> None:
    """Ends a process that does not speak, with a word if the first one has had nothing to say.

    Arguments:
        failure: What went wrong here; where it went wrong everywhere, `torchrun` ends this process
            while it waits.

    Raises:
        click.exceptions.Exit: If this is such a process.
    """
    if is_silent():
        time.sleep(PAUSE)
        click.echo(f"Error: process {os.environ['RANK']}: {failure.message}", err=True)
        raise click.exceptions.Exit(failure.exit_code)
