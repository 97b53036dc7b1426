"""`freiakd toy`: the paper's figure 2."""

from __future__ import annotations

import json
from functools import partial

import click

from .command import Command, json_option, options, show_table

# Of freia_kd.data.toy.TOYS, which a test compares, so that `--help` needs no torch.
TOY_NAMES = ("moons", "circles", "mixture", "pinwheel", "pizza")


@click.command("toy", cls=Command)
@options(
    click.option(
        "--data",
        multiple=True,
        metavar="NAME|MODULE:FUNCTION",
        help=f"One of {', '.join(TOY_NAMES)}; may be repeated. By default all of them.",
    ),
    click.option(
        "--out",
        type=click.Path(file_okay=False),
        default="toy",
        show_default=True,
        help="The folder of the pictures.",
    ),
    click.option(
        "--samples-per-class",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        help="Real samples that the second flow sees.",
    ),
    click.option(
        "--gamma", type=float, default=2.0, show_default=True, help="Weight of the real samples."
    ),
    click.option(
        "--steps", type=click.IntRange(1), default=800, show_default=True, help="Of each flow."
    ),
    click.option("--seed", type=int, default=0, show_default=True),
    json_option,
)
def command(
    data: tuple[str, ...],
    out: str,
    samples_per_class: int,
    gamma: float,
    steps: int,
    seed: int,
    as_json: bool,
) -> None:
    """Reproduce the paper's figure 2 on two-dimensional data.

    For each data set a teacher is trained, then a flow without data and one with a few real
    samples. NAME.png shows all three, NAME.json has the numbers.
    """
    import torch

    from freia_kd.toy import figure2

    results = []
    for name in data or TOY_NAMES:
        result = figure2(
            name,
            torch.Generator().manual_seed(seed),
            samples_per_class=samples_per_class,
            gamma=gamma,
            steps=steps,
            on_stage=None if as_json else partial(_say, name),
        )
        path = result.save(out)
        results.append({**result.numbers, "figure": str(path)})
    if as_json:
        click.echo(json.dumps(results))
        return
    rows = [["data", "distance, data-free", "with samples", "right side", "with samples", "figure"]]
    for numbers in results:
        panels = numbers["data_free"], numbers["with_samples"]
        rows.append(
            [
                numbers["data"],
                *(f"{panel['energy_distance']:.3f}" for panel in panels),
                *(f"{panel['right_side']:.1%}" for panel in panels),
                numbers["figure"],
            ]
        )
    show_table(rows)


def _say(name: str, stage: str) -> None:
    click.echo(f"{name}: {stage.replace('_', ' ')}", err=True)
