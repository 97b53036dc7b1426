"""`freiakd toy`, which is `freiakd reproduce figure2` too: the paper's figure 2."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from freia_kd.registry import TOYS

from .command import (
    Command,
    expect_writable,
    option,
    options,
    print_json,
    print_table,
    remember_folder,
)
from .options import force_option, json_option, seed_option


@click.command("toy", cls=Command)
@options(
    option(
        "--data NAME|MODULE:FUNCTION",
        f"The data: {', '.join(TOYS.builtin)}, or your own. By default all of these.",
        multiple=True,
    ),
    option("--out FOLDER", "The folder of the pictures.", default="toy"),
    option(
        "--samples-per-class N",
        "How many real samples of each class the second flow sees.",
        default=10,
    ),
    option("--gamma WEIGHT", "The weight of the real samples.", click.FloatRange(0), default=2.0),
    option("--as-published", "Train the flows by the objective of the paper's toy code."),
    option("--steps N", "How many steps each flow trains.", default=800),
    seed_option,
    force_option,
    json_option,
)
def command(
    data: tuple[str, ...],
    out: str,
    as_published: bool,
    seed: int,
    force: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Reproduce the paper's figure 2 on two-dimensional data.

    For each data set a teacher is trained, then a flow without data and one with a few real
    samples. NAME.png shows all three, NAME.json has the numbers.

    Example: freiakd toy --data moons
    """
    names = data or tuple(TOYS.builtin)
    for name in names:
        TOYS[name]  # which raises if there is none
        stem = name.replace(":", "-") + ("-as-published" if as_published else "")
        for suffix in (".png", ".json"):
            expect_writable(Path(out, stem + suffix), force)
    import torch

    from freia_kd.experiments.figure2 import figure2, time_flow
    from freia_kd.report import words

    remember_folder(out, "choose by --data what is left")
    if not as_json:
        steps = given["steps"]
        seconds = 2 * len(names) * time_flow(steps, as_published)
        click.echo(
            f"Plan: {', '.join(names)}, each a teacher and two flows of {steps:,} steps; about "
            f"{words.duration(seconds)} besides teachers and pictures. Folder: {out}",
            err=True,
        )
    results = []
    for name in names:
        generator = torch.Generator().manual_seed(seed)
        say = None if as_json else partial(_say, name)
        result = figure2(name, generator, as_published=as_published, on_stage=say, **given)
        results.append({**result.numbers, "figure": str(result.save(out))})
    if as_json:
        print_json(results)
        return
    header = ["data", "distance, data-free", "with samples", "right side", "with samples", "figure"]
    print_table(header, [_row(numbers) for numbers in results])


def _row(numbers: dict[str, Any]) -> list[str]:
    panels = numbers["data_free"], numbers["with_samples"]
    return [
        numbers["data"],
        *(f"{panel['energy_distance']:.3f}" for panel in panels),
        *(f"{panel['right_side']:.1%}" for panel in panels),
        numbers["figure"],
    ]


def _say(name: str, stage: str) -> None:
    click.echo(f"{name}: {stage.replace('_', ' ')}", err=True)
