"""`freiakd reproduce`: the paper's table."""

from __future__ import annotations

from typing import Any

import click

from .command import (
    Choice,
    Command,
    argument,
    make_progress,
    option,
    options,
    print_json,
    remember_folder,
)
from .config import config_options
from .options import data_options, device_option, json_option, workers_option


@click.command("reproduce", cls=Command)
@options(
    argument("what", type=Choice(["table1"])),
    option(
        "--data NAME",
        "Which parts of the table: mnist, fashion-mnist or svhn.",
        multiple=True,
        default=["mnist", "fashion-mnist"],
    ),
    data_options,
    option(
        "--preset quick|paper", "What fits two cores, or the paper's own settings.", default="quick"
    ),
    option("--seeds N", "How many seeds, each with a teacher of its own.", default=3),
    device_option,
    workers_option,
    option("--out FOLDER", "The folder of teachers, trials and table.", default="runs/table1"),
    option("--resume", "Go on with what --out holds. Data sets and seeds may be added."),
    config_options,
    json_option,
)
def command(what: str, data: tuple[str, ...], out: str, as_json: bool, **given: Any) -> None:
    """Train teachers from scratch and reproduce the paper's Table 1, every row.

    Example: freiakd reproduce table1 --data mnist --data-root data --download
    """
    remember_folder(out)
    from freia_kd.experiments.table1 import table1
    from freia_kd.report.render import terminal
    from freia_kd.report.table1 import table1_document

    result = table1(data, out=out, progress=make_progress(as_json), **given)
    if as_json:
        print_json(result)
        return
    terminal(table1_document(result))
    click.echo(f"Report: {out}/table1.html")
