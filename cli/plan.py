"""`--dry-run`: what a command would take, in place of doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .command import option, print_json, print_table

if TYPE_CHECKING:
    from freia_kd.job import Plan

dry_run_option = option(
    "--dry-run",
    "Say what the run would take (stages, time, memory, disk), after a few real steps of each "
    "stage, and write nothing.",
)


def print_plan(plan: Plan, as_json: bool, header: str = "steps or inputs") -> None:
    """Prints a plan.

    Arguments:
        plan: The plan.
        as_json: Whether as JSON.
        header: What its stages count.
    """
    from freia_kd.job.planning import told

    if as_json:
        print_json(plan.to_dict())
        return
    rows = [[s.name, f"{s.steps:,}" if s.steps else "", told(s.seconds)] for s in plan.stages]
    print_table(["stage", header, "about"], rows)
    click.echo(plan.describe())
    click.echo("Nothing was written.")
