"""`freiakd extract`: the first half of the main job."""

from __future__ import annotations

import json
from typing import Any

import click

from .command import Command, json_option, make_progress, open_from_options, options, run_options


@click.command("extract", cls=Command)
@options(run_options, json_option)
def command(as_json: bool, **fields: Any) -> None:
    """Train a flow on a teacher and make a synthetic set, without data.

    `freiakd distill --out DIR --resume` goes on from there.
    """
    from freia_kd.pipeline import open_job

    job = open_job(**open_from_options(make_progress(as_json), **fields))
    data, heldout = job.extract()
    result = {"run": str(job.run.folder), "train": len(data), "heldout": len(heldout)}
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{job.run.folder}: {len(data):,} synthetic inputs to learn from, in synthetic/train"
    )
    if (job.run / "synthetic.png").exists():
        click.echo(f"Picture: {job.run / 'synthetic.png'}")
