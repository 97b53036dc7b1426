"""`freiakd compress`: a smaller net without any training."""

from __future__ import annotations

import json
from typing import Any

import click

from .command import Command, domain_options, json_option, make_domain, options, show_table
from .students import make_recipes, recipe_options


@click.command("compress", cls=Command)
@options(
    click.option(
        "--teacher", type=click.Path(dir_okay=False), required=True, help="The checkpoint."
    ),
    click.option("--arch", metavar="NAME|MODULE:CLASS", help="If the file does not tell."),
    domain_options,
    click.option(
        "--student",
        type=click.Choice(["1", "2", "3"]),
        help="The papers' students, from the largest to the smallest. By default 1.",
    ),
    recipe_options,
    click.option(
        "--synthetic",
        type=click.Path(exists=True, file_okay=False),
        metavar="RUN",
        help="The run whose synthetic images are used for what needs some: a --target or "
        "--max-drop, prune, quantize, batch normalisation; without it noise is, which is less like "
        "real images.",
    ),
    click.option(
        "--plot",
        type=click.Path(dir_okay=False),
        metavar="FILE.png",
        help="A picture of what each layer suffers, with a --target or --max-drop.",
    ),
    click.option(
        "--out", type=click.Path(dir_okay=False), required=True, help="A .pt or .safetensors file."
    ),
    json_option,
)
def command(
    teacher: str,
    arch: str | None,
    student: str | None,
    layers: tuple[str, ...],
    ranks: str | None,
    plan: str | None,
    target_params: float | None,
    target_macs: float | None,
    target_latency: float | None,
    max_drop: float | None,
    methods: tuple[str, ...],
    prune_share: float | None,
    synthetic: str | None,
    plot: str | None,
    out: str,
    as_json: bool,
    **domain: Any,
) -> None:
    """Compress a teacher without any training: lower ranks, fewer channels, integers.

    Example: freiakd compress --teacher net.pt --layers 'layers3.*' --ranks 0.25 --out small.pt
    """
    from freia_kd.stages import compress

    recipes = make_recipes(
        () if student is None else (student,),
        layers,
        ranks,
        plan,
        methods,
        prune_share,
        target_params=target_params,
        target_macs=target_macs,
        target_latency=target_latency,
        max_drop=max_drop,
    )
    result = compress(
        teacher,
        out,
        student=recipes[0] if recipes else "1",
        arch=arch,
        domain=make_domain(**domain),
        synthetic=synthetic,
        plot=plot,
    )
    if as_json:
        click.echo(json.dumps(result))
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from freia_kd.runs.details import (
        budget_remarks,
        chosen_ranks,
        cost_rows,
        layer_rows,
        sensitivity_rows,
        skipped_remarks,
    )

    show_table(layer_rows(result["costs"]))
    for remark in skipped_remarks(result["steps"]):
        click.echo(remark)
    if result["budget"]:
        ranks = chosen_ranks(result["steps"])
        show_table(sensitivity_rows(result["budget"]["sensitivity"], ranks))
        for remark in budget_remarks(result["budget"]):
            click.echo(remark)
    show_table(cost_rows(result["costs"]))
    for warning in result["costs"]["warnings"]:
        click.echo(warning)
    click.echo(
        f"{result['file']}: {result['parameters']:,} of {result['teacher_parameters']:,} "
        f"parameters, {result['macs']:,} of {result['teacher_macs']:,} MACs"
    )
