"""`freiakd runs`: the runs of a folder."""

from __future__ import annotations

import click

from .command import Command, argument, options, print_json, print_table
from .options import json_option


@click.command("runs", cls=Command)
@options(
    argument(
        "folder", metavar="[FOLDER]", default="runs", type=click.Path(exists=True, file_okay=False)
    ),
    json_option,
)
def command(folder: str, as_json: bool) -> None:
    """List the runs in FOLDER (by default runs) and below it, and how each stands.

    Example: freiakd runs
    """
    from freia_kd import api
    from freia_kd.report.words import duration, percent

    found = api.list_runs(folder)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo(f"There are no runs in {folder}.")
        return
    header = ["run", "by", "state", "teacher", "students", "accuracy", "agreement", "time"]
    rows = []
    for run in found:
        shares = [
            ", ".join(percent(share.value) for share in shares.values())
            for shares in (run.accuracy, run.agreement)
        ]
        students = ", ".join(run.students)
        time = duration(run.seconds)
        rows.append([run.folder, run.kind, run.state, run.teacher, students, *shares, time])
    print_table(header, rows, numeric={5, 6, 7})
