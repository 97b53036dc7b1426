"""`--config` and `--log-file`: options from a file, and progress into one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from freia_kd.errors import unknown

from .command import FAULTS, LOG, option, options

# Of how a command is called, not of what it does; `run.yaml` has none of them.
MANNERS = (
    "config",
    "log_file",
    "out",
    "resume",
    "repair",
    "dry_run",
    "as_json",
    "verbose",
    "debug",
)


def _read_config(ctx: click.Context, parameter: click.Parameter, file: str | None) -> None:
    """Takes the options of a YAML file as defaults; what is wrong with it joins other faults."""
    if file is None:
        return
    import yaml

    faults = ctx.meta.setdefault(FAULTS, [])
    try:
        with open(file, encoding="utf-8") as stream:
            given = yaml.safe_load(stream)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        faults.append(f"--config: {file} is not YAML ({' '.join(str(error).split())}).")
        return
    if not isinstance(given, dict):
        faults.append(
            f"--config: expected options by name in {file}, such as seed: 1; got {given!r}."
        )
        return
    known = {_name(p): p for p in ctx.command.params if isinstance(p, click.Option)}
    known = {name: p for name, p in known.items() if p.name not in ("config", "resume")}
    ctx.default_map = dict[str, Any]()
    for name, value in given.items():
        if name not in known:
            faults.append(f"--config: {file}: {unknown(str(name), known)}")
        elif value is not None:
            text = _as_typed(known[name], value)
            if text is None:
                faults.append(
                    f"--config: {file}: {name}: expected what --{name} takes; got {value!r}."
                )
            else:
                ctx.default_map[str(known[name].name)] = text


def _name(parameter: click.Parameter) -> str:
    """An option's name as it is typed, without the dashes."""
    return next(o for o in parameter.opts if o.startswith("--")).removeprefix("--")


def _as_typed(parameter: click.Option, value: Any) -> Any:
    """A YAML value as it would be typed; `None` if it cannot be."""
    if isinstance(value, bool) and parameter.is_flag:
        return value
    if isinstance(value, Mapping):
        is_settings = parameter.name == "settings"
        return tuple(f"{k}={json.dumps(v)}" for k, v in value.items()) if is_settings else None
    values = value if isinstance(value, list) else [value]
    plain = all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in values)
    if parameter.is_flag or not plain:
        return None
    return tuple(map(str, values)) if parameter.multiple else ",".join(map(str, values))


def asked_options() -> dict[str, Any]:
    """The options of the command that is called, as `--config` reads them."""
    ctx = click.get_current_context()
    asked: dict[str, Any] = {}
    for parameter in ctx.command.params:
        value = ctx.params.get(str(parameter.name))
        if parameter.name in MANNERS or value in (None, False, (), {}):
            continue
        # A copy, since what reads the options takes out of them what it has read.
        value = dict(value) if isinstance(value, dict) else value
        asked[_name(parameter)] = list(value) if isinstance(value, tuple) else value
    return asked


def _remember_log(ctx: click.Context, parameter: click.Parameter, file: str | None) -> None:
    if file is None:
        return
    path, start = Path(file), ""
    try:
        if path.is_file():
            with path.open("rb") as stream:
                start = stream.read(len("2026-01-31 ")).decode("ascii", "replace")
    except OSError as error:
        raise click.BadParameter(f"{file} cannot be a log ({error.strerror}).") from error
    if start and not re.match(r"\d{4}-\d\d-\d\d ", start):
        raise click.BadParameter(f"{file} is there and is no log; choose another file.")
    ctx.meta[LOG] = file


config_options = options(
    option(
        "--config FILE.yaml",
        "Take options from a file, by their names without the dashes, such as seed: 1; run.yaml in "
        "a run's folder is one. Where the same option is typed, what is typed wins.",
        click.Path(exists=True, dir_okay=False),
        callback=_read_config,
        is_eager=True,
        expose_value=False,
    ),
    option(
        "--log-file FILE",
        "Append what is shown while it works to a file, each line with its time.",
        callback=_remember_log,
        expose_value=False,
    ),
)
