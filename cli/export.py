"""`freiakd export`: students as files of other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from freia_kd.config import ExportFormat

from .command import Command, argument, option, options, print_json, print_table
from .options import arch_options, domain_options, force_option, json_option, pop_domain


@click.command("export", cls=Command)
@options(
    argument("path", metavar="RUN|FILE", type=click.Path(exists=True)),
    option("--to", "The format.", get_args(ExportFormat), multiple=True, required=True),
    option("--student NAME", "Which student of a run; by default the one in student.safetensors."),
    option(
        "--out FILE|FOLDER",
        "Where to write, a folder for several formats; by default beside the student.",
        click.Path(),
    ),
    arch_options(),
    option(
        "--method MODULE:CLASS",
        "A method of compression of your own that the student was made by.",
        name="trusted",
        multiple=True,
    ),
    domain_options,
    force_option,
    json_option,
)
def command(
    path: str, to: tuple[ExportFormat, ...], force: bool, as_json: bool, **given: Any
) -> None:
    """Export a student, and check each file in its own runtime.

    What is exported takes pixels in [0, 1] in batches of any size and gives logits. A file that
    does not compute the same as the student is not kept. ONNX needs the extra freia_kd[onnx].

    Example: freiakd export runs/lenet5-1 --to onnx
    """
    from freia_kd import api

    results = api.export(path, to, replace=force, domain=pop_domain(given), **given)
    if as_json:
        print_json(results)
        return
    header = ["file", "runs in", "bytes", "largest difference", "same class", "latency", "torch"]
    rows = [
        [
            Path(result.file).name,
            result.runtime,
            f"{result.bytes:,}",
            f"{result.max_difference:.1e}",
            f"{100 * result.same_top1:.1f} %",
            f"{result.latency_ms:.2f} ms",
            f"{result.eager_latency_ms:.2f} ms",
        ]
        for result in results
    ]
    print_table(header, rows)
    first = results[0]
    click.echo(
        f"Written to {Path(first.file).parent}. Each file was compared with the student on "
        f"{first.inputs} {first.compared_on}, together and one by one. Latencies are those "
        "of one input on the CPU."
    )
