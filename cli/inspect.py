"""`freiakd inspect`: what a file or folder holds."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from .command import Command, argument, options, print_json, print_table
from .options import json_option

# Where the command is not called as what it leaves.
GO_ON = {"table1": "reproduce table1", "trial": "reproduce table1"}


@click.command("inspect", cls=Command)
@options(argument("path", metavar="FILE|RUN", type=click.Path(exists=True)), json_option)
def command(path: str, as_json: bool) -> None:
    """Say what a checkpoint or a run's folder holds, without running anything in it."""
    from freia_kd import api

    result = api.inspect(path)
    if as_json:
        print_json(result)
        return
    rows = [[name.replace("_", " "), _text(value)] for name, value in result.items() if value]
    print_table(["", path], rows, numeric=set())
    click.echo(f"Next: freiakd {next_command(path, result)}")


def _text(value: Any) -> str:
    """A value in lines, one for each entry."""
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_short(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return "\n".join(map(_short, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def next_command(path: str, held: dict[str, Any]) -> str:
    """The command that goes on with a run, or uses what it made or what a checkpoint holds.

    Arguments:
        path: The file or folder.
        held: What it holds (:func:`freia_kd.inspect`).
    """
    return _after_run(path, held) if held["kind"] == "run" else _after_checkpoint(path, held)


def _after_checkpoint(path: str, held: dict[str, Any]) -> str:
    if held["compression"]:
        return shlex.join(["export", path]) + " --to onnx"
    missing = [name for name in ("arch", "domain") if held[name] == "not recorded"]
    needs = f", with {' and '.join(f'--{name}' for name in missing)}" if missing else ""
    return shlex.join(["distill", "--teacher", path]) + needs


def _after_run(path: str, run: dict[str, Any]) -> str:
    if run["made_by"] == "distill":
        does = "export" if "measure" in run["done"] else "distill --resume --out"
        return shlex.join([*does.split(), path]) + (" --to onnx" if does == "export" else "")
    command, folder = GO_ON.get(run["made_by"], run["made_by"]), Path(path)
    if run["made_by"] == "train-teacher":
        folder = Path(path.rstrip("/").removesuffix(".training"))
    if run["made_by"] == "trial":  # of one data set, in the folder of its table
        folder = folder.absolute().parent.parent
    words = shlex.join([*command.split(), "--resume", "--out", str(folder)])
    return f"{words}, with the options of before"
