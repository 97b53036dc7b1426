"""`freiakd compare`: methods side by side on one teacher."""

from __future__ import annotations

import json
from typing import Any

import click

from .command import (
    Command,
    compare_options,
    json_option,
    make_domain,
    make_progress,
    options,
    show_table,
)


@click.command("compare", cls=Command)
@options(compare_options, json_option)
def command(
    teacher: str,
    students: str,
    domain: str | None,
    input_shape: tuple[int, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    classes: int | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Distil students by every method, and name the best by label-free evidence.

    Example: freiakd compare --teacher lenet5.pt --students 1,2,3 --seeds 3
    """
    from freia_kd.compare import compare
    from freia_kd.compare.report import remarks, table

    comparison = compare(
        teacher,
        students=students.split(","),
        domain=make_domain(domain, input_shape, mean, std, classes),
        progress=make_progress(as_json),
        **fields,
    )
    if as_json:
        click.echo(json.dumps(comparison.data))
        return
    show_table(table(comparison.data))
    for remark in remarks(comparison.data):
        click.echo(remark)
    click.echo(f"Report: {comparison.folder / 'compare.html'}")
