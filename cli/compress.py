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
from .options import (
    arch_option,
    domain_options,
    force_option,
    json_option,
    pop_domain,
    seed_option,
    settings_option,
    teacher_option,
)
from .students import TARGETS, make_students, student_options


@click.command("compress", cls=Command, collects=True)
@options(
    teacher_option,
    arch_option,
    domain_options,
    student_options,
    settings_option,
    seed_option,
    option(
        "--plot FILE.png",
        "A picture of how the agreement with the teacher drops as each layer gets smaller; with "
        "--max-drop or one of the --target options.",
    ),
    option("--out FILE", "The student's file, .pt or .safetensors.", required=True),
    force_option,
    json_option,
)
def command(plot: str | None, out: str | None, force: bool, as_json: bool, **given: Any) -> None:
    """Compress a teacher without any training: lower ranks, fewer channels, integers.

    Example: freiakd compress --teacher net.pt --layers 'layers3.*' --ranks 0.25 --out small.pt

    The student is the one that distill would train with the same options: its report calls it
    "compressed only".
    """
    teacher, settings, domain = given.pop("teacher"), given.pop("settings"), None
    with collecting() as faults:
        with faults:
            domain = pop_domain(given)
        has_target = any(given[name] is not None for name in TARGETS)
        faults.expect(
            plot is None or has_target or "tucker.target" in settings,
            "--plot shows what the search for a target measured; pass --max-drop or one of the "
            "--target options as well.",
        )
        specs = make_students(faults, given, settings) or []
        faults.expect(len(specs) < 2, "--student: compress makes one student; several are given.")
        for key in settings:
            name = key.rpartition(".")[0]
            if name in COMPRESSIONS.builtin:
                faults.add(f"--set {key} is of --method {name}, which is not given.")
            else:
                faults.add(
                    f"--set {key} has no effect: compress trains nothing and makes no inputs."
                )
        if out is not None:
            with faults:
                expect_writable(out, force, (".pt", ".safetensors"), (teacher, given.get("plan")))
        if plot is not None:
            with faults:
                expect_writable(plot, force, (".png",), (teacher, out), "--plot")
    from freia_kd import api
    from freia_kd.report.student import compression_sections

    result = api.compress(
        teacher,
        out,
        domain=domain,
        plot=plot,
        progress=make_progress(as_json),
        **given,
        **({"student": specs[0]} if specs else {}),
    )
    if as_json:
        print_json(result)
        return
    print_sections(compression_sections(result.costs, result.steps, result.searches), details=True)
    click.echo(f"Student: {result.file}")
