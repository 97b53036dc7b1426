"""`freiakd reproduce`: the paper's table."""

from __future__ import annotations

import json

import click

from .command import (
    Command,
    data_options,
    device_option,
    json_option,
    make_progress,
    options,
    show_table,
)

PARTS = ("mnist", "svhn", "fashion-mnist")  # of freia_kd.reproduce.TABLE1, which a test compares


@click.command("reproduce", cls=Command)
@options(
    click.argument("what", type=click.Choice(["table1"])),
    click.option(
        "--data",
        type=click.Choice(PARTS),
        multiple=True,
        default=["mnist", "fashion-mnist"],
        show_default=True,
        help="Which parts of the table; repeatable.",
    ),
    data_options,
    click.option(
        "--preset",
        type=click.Choice(["quick", "paper"]),
        default="quick",
        show_default=True,
        help="What fits two cores, or the paper's own settings.",
    ),
    click.option(
        "--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many seeds."
    ),
    device_option,
    click.option(
        "--workers", type=click.IntRange(1), help="Cells at a time; by default one a core."
    ),
    click.option(
        "--out",
        type=click.Path(file_okay=False),
        default="runs/table1",
        show_default=True,
        help="The folder of it all.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on with what --out holds; data sets and seeds may be added.",
    ),
    json_option,
)
def command(
    what: str,
    data: tuple[str, ...],
    data_root: str | None,
    download: bool,
    preset: str,
    seeds: int,
    device: str,
    workers: int | None,
    out: str,
    resume: bool,
    as_json: bool,
) -> None:
    """Train teachers from scratch and reproduce the paper's Table 1, every row.

    Example: freiakd reproduce table1 --data mnist --data-root data --download
    """
    from freia_kd.reproduce import remarks, table, table1

    result = table1(
        data,
        preset=preset,
        seeds=seeds,
        data_root=data_root,
        download=download,
        device=device,
        workers=workers,
        out=out,
        resume=resume,
        progress=make_progress(as_json),
    )
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, part in result["parts"].items():
        show_table(table(name, part))
    for remark in remarks(result):
        click.echo(remark)
    click.echo(f"Report: {out}/table1.md")
