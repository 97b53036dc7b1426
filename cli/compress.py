"""`freiakd compress`: Tucker decomposition alone."""

from __future__ import annotations

import json
from typing import Any

import click

from .command import Command, domain_options, json_option, make_domain, options, show_table


@click.command("compress", cls=Command)
@options(
    click.option("--teacher", type=click.Path(dir_okay=False), required=True),
    click.option("--arch", metavar="NAME|MODULE:CLASS", help="If the file does not tell."),
    domain_options,
    click.option("--student", type=click.Choice(["1", "2", "3"]), default="1", show_default=True),
    click.option(
        "--out", type=click.Path(dir_okay=False), required=True, help="A .pt or .safetensors file."
    ),
    json_option,
)
def command(
    teacher: str,
    arch: str | None,
    student: str,
    out: str,
    as_json: bool,
    **domain: Any,
) -> None:
    """Compress a teacher by Tucker-2 with EVBMF ranks, without any training."""
    from freia_kd.stages import compress

    result = compress(teacher, out, student=student, arch=arch, domain=make_domain(**domain))
    if as_json:
        click.echo(json.dumps(result))
        return
    rows = [["layer", "method", "ranks"]]
    for name, layer in result["plan"]["layers"].items():
        rows.append([name, layer["method"], " x ".join(map(str, layer["ranks"]))])
    show_table(rows)
    click.echo(
        f"{out}: {result['parameters']:,} of {result['teacher_parameters']:,} parameters, "
        f"{result['macs']:,} of {result['teacher_macs']:,} MACs"
    )
