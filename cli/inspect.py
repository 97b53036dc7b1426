"""`freiakd inspect`: what a file or folder holds."""

from __future__ import annotations

import json

import click

from .command import Command, json_option, options


@click.command("inspect", cls=Command)
@options(click.argument("path", type=click.Path(exists=True)), json_option)
def command(path: str, as_json: bool) -> None:
    """Say what a checkpoint or a run's folder holds, without running anything in it."""
    from freia_kd.stages import inspect

    result = inspect(path)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        text = value if isinstance(value, str) else json.dumps(value)
        click.echo(f"{name}: {text}")
