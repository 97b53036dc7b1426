"""`freiakd extract`: the first half of the main job."""

from __future__ import annotations

from typing import Any

import click

from .command import Command, collecting, make_progress, options, print_json
from .config import asked_options, config_options
from .job import make_plan, remember_run, run_arguments, run_options
from .options import json_option
from .plan import print_plan


@click.command("extract", cls=Command, collects=True, is_shared=True)
@options(run_options, config_options, json_option)
def command(as_json: bool, dry_run: bool, **given: Any) -> None:
    """Make a synthetic set from a teacher, without its training data.

    Example: freiakd extract --teacher lenet5.pt --synthesizer bdnf --out run

    To train students on it, go on with: freiakd distill --resume --out FOLDER
    """
    typed = dict(given)
    asked: dict[str, Any] = {} if typed["resume"] else {"asked": asked_options()}
    with collecting() as faults:
        arguments = run_arguments(faults, given)
    folder = arguments.pop("folder", None) or arguments.pop("out", None)
    remember_run("extract", folder, typed)
    from freia_kd import api

    if dry_run:
        none = {} if typed["resume"] else {"students": ()}
        print_plan(make_plan(typed["resume"], out=folder, **none, **arguments), as_json)
        return
    progress = make_progress(as_json)
    run_folder, sets = api.extract(
        **arguments, **asked, out=folder, again=typed["resume"], progress=progress
    )
    if as_json:
        print_json({"run": str(run_folder), "sets": sets})
        return
    for name, size in sets.items():
        click.echo(f"{run_folder / name}: {size:,} synthetic inputs")
    for picture in sorted(run_folder.glob("inputs-*.png")):
        click.echo(f"Picture: {picture}")
    click.echo(f"Next: freiakd distill --resume --out {run_folder}")
