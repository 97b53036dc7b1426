"""`freiakd distill`: the main job."""

from __future__ import annotations

from typing import Any

import click

from .command import Command, collecting, make_progress, option, options, print_json
from .config import asked_options, config_options
from .job import make_plan, remember_run, run_arguments, run_options
from .options import data_options, eval_option, json_option
from .plan import print_plan
from .students import student_options


@click.command("distill", cls=Command, collects=True, is_shared=True)
@options(
    run_options,
    student_options,
    eval_option,
    data_options,
    config_options,
    json_option,
    option("-v --verbose", "Also print the details and all options."),
)
def command(as_json: bool, verbose: bool, dry_run: bool, **given: Any) -> None:
    """Compress a classifier and distil it, without its training data.

    Example: freiakd distill --teacher lenet5.pt --student 1 --student 3

    A run that was stopped goes on with: freiakd distill --resume --out FOLDER. Students and
    --eval-data can be added to it; every other option is the run's own.
    """
    typed = dict(given)
    asked: dict[str, Any] = {} if typed["resume"] else {"asked": asked_options()}
    with collecting() as faults:
        arguments = run_arguments(faults, given)
    remember_run("distill", arguments.get("folder") or arguments.get("out"), typed)
    from freia_kd import api
    from freia_kd.report.render import terminal
    from freia_kd.report.run import run_document

    if dry_run:
        print_plan(make_plan(again=typed["resume"], **arguments), as_json)
        return
    job = api.resume if typed["resume"] else api.distill
    result = job(**arguments, **asked, progress=make_progress(as_json))
    if as_json:
        print_json(result.report)
        return
    terminal(run_document(result.report, str(result.folder)), details=verbose)
    click.echo(f"Report: {result.folder / 'report.html'}")
