"""`freiakd sample`: inputs from what a run has learned."""

from __future__ import annotations

from typing import Any

import click

from .command import Command, argument, expect_writable, option, options
from .options import OBJECT, force_option, seed_option


@click.command("sample", cls=Command)
@options(
    argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False)),
    option("--count -n N", "How many inputs of each label.", default=10),
    option("--label -l LABEL", "A class; by default all of them.", name="labels", multiple=True),
    seed_option,
    option(
        f"--synthesizer {OBJECT}",
        "Which of the run's synthesizers; by default the first that can do without the teacher.",
    ),
    option("--flow MODULE:FUNCTION", "The run's flow, if it is code of your own."),
    option("--out FILE", "A picture, .png, or a file of arrays, .npz.", required=True),
    force_option,
)
def command(run: str, out: str, force: bool, **given: Any) -> None:
    """Sample inputs of each label from what RUN has learned, as a picture or as arrays.

    A .npz file holds `x` (uint8 images, or vectors) and `y` (labels).

    Example: freiakd sample runs/lenet5-1 --count 20 --out samples.png
    """
    from freia_kd import api

    expect_writable(out, force, (".png", ".npz"))
    total = api.sample(run, out, **given)
    click.echo(f"{out}: {total} inputs")
