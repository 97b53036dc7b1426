"""`freiakd evaluate`: checkpoints on real data."""

from __future__ import annotations

import json
from typing import Any

import click

from .command import (
    Command,
    data_options,
    domain_options,
    json_option,
    make_domain,
    options,
    show_table,
)


@click.command("evaluate", cls=Command)
@options(
    click.argument("path", metavar="FILE|RUN", type=click.Path(exists=True)),
    click.option("--eval-data", metavar="NAME|FOLDER|FILE.npz", required=True),
    data_options,
    click.option("--resize", is_flag=True, help="Resize images of another size."),
    click.option("--arch", metavar="NAME|MODULE:CLASS", help="If the file does not tell."),
    domain_options,
    json_option,
)
def command(
    path: str,
    eval_data: str,
    data_root: str | None,
    download: bool,
    resize: bool,
    arch: str | None,
    as_json: bool,
    **domain: Any,
) -> None:
    """Measure the accuracy of a checkpoint, or of all students of a run."""
    from freia_kd.stages import evaluate

    results = evaluate(
        path,
        eval_data,
        data_root=data_root,
        download=download,
        resize=resize,
        arch=arch,
        domain=make_domain(**domain),
    )
    if as_json:
        click.echo(json.dumps(results))
        return
    rows = [["", "accuracy", "images"]]
    for result in results:
        rows.append([result["file"], f"{100 * result['accuracy']:.2f} %", f"{result['count']:,}"])
    show_table(rows)
