"""`freiakd evaluate`: checkpoints on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .command import (
    Command,
    argument,
    option,
    options,
    print_json,
    print_sections,
    print_table,
)
from .inspect import next_command
from .options import DATA, arch_options, data_options, domain_options, json_option, pop_domain


@click.command("evaluate", cls=Command)
@options(
    argument("path", metavar="FILE|RUN|WEIGHTS"),
    option(f"--eval-data {DATA}", "The labelled test data.", required=True),
    data_options,
    option("--resize", "Resize images of another size."),
    arch_options(),
    domain_options,
    json_option,
)
def command(path: str, eval_data: str, as_json: bool, **given: Any) -> None:
    """Measure the accuracy of a checkpoint, or of all students of a run.

    Of a run, its teacher and the agreement with it are measured too, if the teacher's file is still
    there. A second table has each class.
    """
    from freia_kd import api
    from freia_kd.evaluation import ONE_SIDED
    from freia_kd.report.document import Section
    from freia_kd.report.student import class_table
    from freia_kd.report.words import proportion

    results = api.evaluate(path, eval_data, domain=pop_domain(given), **given)
    if as_json:
        print_json(results)
        return
    header = ["file", "accuracy (95 % interval)", "agreement with the teacher", "inputs"]
    rows = [
        [r.file, proportion(r.accuracy), proportion(r.agreement), f"{r.accuracy.count:,}"]
        for r in results
    ]
    print_table(header, rows)
    print_sections([Section(f"{r.file}, by class", [class_table(r.per_class)]) for r in results])
    for r in results:
        if r.commonest >= ONE_SIDED:
            click.echo(
                f"{r.file} gives the same class to {100 * r.commonest:.1f} % of all inputs: check "
                "its weights, and the mean and std by which its training normalised pixels in "
                "[0, 1].",
                err=True,
            )
    if Path(path).is_dir() and not any(r.agreement for r in results):
        click.echo(
            "The run's teacher is not where its record says, or is code that --arch does not name; "
            "so neither it nor the agreement with it was measured.",
            err=True,
        )
    if Path(path).exists():  # and is no name of published weights
        click.echo(f"Next: freiakd {next_command(path, api.inspect(path))}")
