"""`freiakd compress`: a smaller net without any training."""

from __future__ import annotations

from typing import Any

import click

from freia_kd.registry import COMPRESSIONS

from .command import (
    Command,
    collecting,
    expect_writable,
    make_progress,
    option,
    options,
    print_json,
    print_sections,
)
from .config import config_options
from .options import (
    arch_options,
    domain_options,
    force_option,
    json_option,
    pop_domain,
    seed_option,
    settings_option,
    teacher_option,
)
from .students import TARGETS, expect_methods, make_students, student_options


@click.command("compress", cls=Command, collects=True)
@options(
    teacher_option,
    arch_options(),
    domain_options,
    student_options,
    settings_option("an option of a method of compression, such as prune.keep_ratio=0.3."),
    seed_option,
    option(
        "--plot FILE.png",
        "A picture of how the agreement with the teacher drops as each layer gets smaller; with "
        "--max-drop or one of the --target options.",
    ),
    option("--out FILE", "The student's file, .pt or .safetensors.", required=True),
    force_option,
    config_options,
    json_option,
)
def command(plot: str | None, out: str, force: bool, as_json: bool, **given: Any) -> None:
    """Compress a teacher without any training: lower ranks, fewer channels, integers.

    Example: freiakd compress --teacher net.pt --layers 'layers3.*' --ranks 0.25 --out small.pt

    The student is the one that distill would train with the same options: its report calls it
    "compressed only".
    """
    teacher, settings, domain = given.pop("teacher"), given.pop("settings"), None
    with collecting() as faults:
        with faults:
            domain = pop_domain(given)
        for file, suffixes, name in (
            (out, (".pt", ".safetensors"), "--out"),
            (plot, (".png",), "--plot"),
        ):
            with faults:
                expect_writable(file, force, suffixes, (teacher, given["plan"]), name)
        has_target = any(given[name] is not None for name in TARGETS)
        faults.expect(
            plot is None or has_target or "tucker.target" in settings,
            "--plot shows what the search for a target measured; pass --max-drop or one of the "
            "--target options as well.",
        )
        specs = make_students(faults, given, settings) or []
        faults.expect(len(specs) < 2, "--student: compress makes one student; several are given.")
        expect_methods(faults, settings)
        for key in settings:
            if key.rpartition(".")[0] not in COMPRESSIONS.builtin:
                faults.add(f"--set {key}: no method of compression that is given has this option.")
    from freia_kd import api
    from freia_kd.report.student import compression_sections

    spec = specs[0] if specs else "1"
    progress = make_progress(as_json)
    result = api.compress(
        teacher, out, student=spec, domain=domain, plot=plot, progress=progress, **given
    )
    if as_json:
        print_json(result)
        return
    print_sections(compression_sections(result.costs, result.steps, result.searches), details=True)
    click.echo(f"Student: {result.file}")
