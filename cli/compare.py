"""`freiakd compare`: methods side by side on one teacher."""

from __future__ import annotations

from typing import Any

import click

from freia_kd.config import get_preset
from freia_kd.synthesizers import SYNTHESIZERS

from .command import (
    Command,
    collecting,
    make_progress,
    option,
    options,
    print_json,
    remember_folder,
)
from .config import config_options
from .job import expect_data, pop_training
from .options import (
    arch_options,
    dask_option,
    data_options,
    device_option,
    domain_options,
    eval_option,
    expect_together,
    json_option,
    pop_domain,
    preset_option,
    repair_option,
    samples_option,
    set_size_option,
    settings_option,
    teacher_option,
    trial_executor,
    workers_option,
)
from .plan import dry_run_option, print_plan
from .students import expect_methods, make_students, student_options


@click.command("compare", cls=Command, collects=True)
@options(
    teacher_option,
    arch_options(),
    domain_options,
    option(
        "--synthesizers all|NAME,...",
        "What to compare: names or MODULE:CLASS with commas between them. Those joined by + share "
        "the inputs; (samples) after a name gives it the samples.",
        default="all",
        completes=["all", *SYNTHESIZERS.builtin],
    ),
    student_options,
    settings_option(),
    set_size_option,
    option("--seeds N", "How many seeds each method gets.", default=3),
    samples_option,
    eval_option,
    option(
        "--reference",
        "Also distil on the training split of --eval-data, to show how much of what that reaches "
        "each method recovers.",
    ),
    data_options,
    preset_option("quick"),
    device_option,
    workers_option,
    dask_option,
    option("--out FOLDER", "The comparison's folder.", default="runs/compare"),
    option(
        "--resume",
        "Go on with the comparison in --out. Methods, seeds and --eval-data may be added.",
    ),
    repair_option,
    dry_run_option,
    config_options,
    json_option,
)
def command(teacher: str, synthesizers: str, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Distil students by every method, and name the best by label-free evidence.

    Example: freiakd compare --teacher lenet5.pt --student 2 --seeds 3
    """
    settings = given.pop("settings")
    asked: dict[str, Any] = {"synthesizers": synthesizers}
    with collecting() as faults:
        with faults:
            given["domain"] = pop_domain(given)
        sizes = get_preset(given["preset"])
        students = make_students(faults, given, settings)
        expect_methods(faults, settings)
        training = pop_training(faults, None, settings, sizes.training)
        expect_data(faults, given, "reference", "data_root", "download")
        if settings:
            from freia_kd.comparing import build_methods

            with faults:
                asked["synthesizers"] = build_methods(synthesizers, sizes.name, settings)
        asked |= {"students": students, "training": training}
        repairs = given.pop("repair")
        expect_together(faults, given, "comparison", repairs, dry_run)
    asked = {name: value for name, value in asked.items() if value is not None}
    remember_folder(given["out"])
    from freia_kd import api
    from freia_kd.report.comparison import comparison_document
    from freia_kd.report.render import terminal

    if dry_run:
        del given["dask"]
        plan = api.plan_comparison(teacher, progress=make_progress(as_json), **given, **asked)
        print_plan(plan, as_json, "trials")
        return
    with trial_executor(given) as executor:
        result = api.compare(
            teacher,
            repair=repairs,
            progress=make_progress(as_json),
            executor=executor,
            **given,
            **asked,
        )
    if as_json:
        print_json(result.comparison)
        return
    terminal(comparison_document(result.comparison))
    click.echo(f"Report: {result.folder / 'compare.html'}")
