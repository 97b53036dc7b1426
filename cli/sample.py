"""`freiakd sample`: images from what a run has learned."""

from __future__ import annotations

import click

from .command import Command, options


@click.command("sample", cls=Command)
@options(
    click.argument("run", type=click.Path(exists=True, file_okay=False)),
    click.option("--count", "-n", type=click.IntRange(1), default=10, show_default=True),
    click.option("--label", "-l", "labels", type=int, multiple=True, help="Default: every class."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option(
        "--synthesizer",
        metavar="NAME|MODULE:CLASS",
        help="Which of the run's synthesizers; by default the first.",
    ),
    click.option("--flow", metavar="MODULE:FUNCTION", help="Of a flow that is code of its own."),
    click.option(
        "--out", type=click.Path(dir_okay=False), required=True, help="A .png or .npz file."
    ),
)
def command(
    run: str,
    count: int,
    labels: tuple[int, ...],
    seed: int,
    synthesizer: str | None,
    flow: str | None,
    out: str,
) -> None:
    """Draw COUNT images of each label from what RUN has learned, as a picture or as arrays.

    A .npz file holds `x` (uint8 images) and `y` (labels).
    """
    from freia_kd.stages import draw_samples

    total = draw_samples(
        run, out, count=count, labels=labels, seed=seed, synthesizer=synthesizer, flow=flow
    )
    click.echo(f"{out}: {total} images")
