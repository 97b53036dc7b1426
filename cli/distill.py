"""`freiakd distill`: the main job."""

from __future__ import annotations

import json
from typing import Any

import click

from .command import (
    Command,
    data_options,
    json_option,
    make_progress,
    open_from_options,
    options,
    run_options,
    show_table,
)
from .students import bn_option, make_recipes, recipe_options


@click.command("distill", cls=Command)
@options(
    run_options,
    click.option(
        "--student",
        "students",
        type=click.Choice(["1", "2", "3"]),
        multiple=True,
        help="The papers' students, from the largest to the smallest; repeatable. By default 1, "
        "or those of a resumed run.",
    ),
    recipe_options,
    bn_option,
    click.option(
        "--eval-data",
        metavar="NAME|FOLDER|FILE.npz",
        help="Real test data, read only after the last weight is fixed.",
    ),
    data_options,
    json_option,
    click.option("-v", "--verbose", is_flag=True, help="Also print the resolved options."),
)
def command(
    students: tuple[str, ...],
    layers: tuple[str, ...],
    ranks: str | None,
    plan: str | None,
    target_params: float | None,
    target_macs: float | None,
    target_latency: float | None,
    max_drop: float | None,
    methods: tuple[str, ...],
    prune_share: float | None,
    bn: str | None,
    eval_data: str | None,
    data_root: str | None,
    download: bool,
    as_json: bool,
    verbose: bool,
    **fields: Any,
) -> None:
    """Compress a classifier and distil it, without its training data.

    Example: freiakd distill --teacher lenet5.pt --domain mnist
    """
    from freia_kd.pipeline import distill

    recipes = make_recipes(
        students,
        layers,
        ranks,
        plan,
        methods,
        prune_share,
        bn,
        target_params=target_params,
        target_macs=target_macs,
        target_latency=target_latency,
        max_drop=max_drop,
    )
    progress = make_progress(as_json)
    report = distill(
        students=recipes,
        eval_data=eval_data,
        data_root=data_root,
        download=download,
        **open_from_options(progress, **fields),
    )
    if as_json:
        click.echo(json.dumps(report.data))
        return
    if verbose:
        click.echo(json.dumps(report.data["options"], indent=2))
    show_table(report.table())
    for remark in report.remarks():
        click.echo(remark)
    for block in report.sensitivities():
        click.echo(block.title)
        show_table(block.rows)
        for remark in block.remarks:
            click.echo(remark)
    click.echo(f"Students: {', '.join(str(report.folder / s['file']) for s in report.students)}")
    click.echo(f"Report: {report.folder / 'report.html'}")
