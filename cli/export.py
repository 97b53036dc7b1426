"""`freiakd export`: students as files of other runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .command import Command, domain_options, json_option, make_domain, options, show_table

FORMAT_NAMES = ("torch", "safetensors", "onnx", "torch-export")  # of freia_kd, see command.py


@click.command("export", cls=Command)
@options(
    click.argument("path", metavar="RUN|FILE", type=click.Path(exists=True)),
    click.option(
        "--to",
        type=click.Choice(FORMAT_NAMES),
        multiple=True,
        required=True,
        help="The format; repeatable.",
    ),
    click.option(
        "--student",
        metavar="NAME",
        help="Which student of a run; by default that of student.safetensors.",
    ),
    click.option(
        "--out",
        type=click.Path(),
        metavar="FILE|FOLDER",
        help="By default beside the student. A folder for several formats.",
    ),
    click.option("--arch", metavar="NAME|MODULE:CLASS", help="If the file does not tell."),
    domain_options,
    json_option,
)
def command(
    path: str,
    to: tuple[str, ...],
    student: str | None,
    out: str | None,
    arch: str | None,
    as_json: bool,
    **domain: Any,
) -> None:
    """Export a student, and check each file in its own runtime.

    What is exported takes pixels in [0, 1] in batches of any size and gives logits. A file that
    does not compute the same as the student is not kept. ONNX needs the extra freia_kd[onnx].
    """
    from freia_kd.exporting import export

    results = export(path, to, out, student=student, arch=arch, domain=make_domain(**domain))
    if as_json:
        click.echo(json.dumps(results))
        return
    rows = [["file", "runs in", "bytes", "max difference", "same top-1", "latency", "torch"]]
    for result in results:
        rows.append(
            [
                Path(result["file"]).name,
                result["runtime"],
                f"{result['bytes']:,}",
                f"{result['max_difference']:.1e}",
                f"{100 * result['same_top1']:.1f} %",
                f"{result['latency_ms']:.2f} ms",
                f"{result['eager_latency_ms']:.2f} ms",
            ]
        )
    show_table(rows)
    first = results[0]
    click.echo(
        f"Written to {Path(first['file']).parent}. Compared on {first['inputs']} "
        f"{first['compared_on']}, together and one by one; latencies of one input on the CPU."
    )
