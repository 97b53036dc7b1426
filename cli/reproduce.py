"""`freiakd reproduce`: the paper's table and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from freia_kd.experiments.published import Family
from freia_kd.experiments.recipes import Size

from .command import (
    Command,
    collecting,
    expect_writable,
    make_progress,
    option,
    options,
    print_json,
    print_table,
    remember_folder,
)
from .config import config_options
from .options import (
    dask_option,
    data_options,
    device_option,
    expect_together,
    force_option,
    json_option,
    repair_option,
    trial_executor,
    workers_option,
)
from .plan import dry_run_option, print_plan
from .toy import command as figure2


@click.group("reproduce")
def command() -> None:
    """Reproduce the paper's Table 1, or its figure 2, 3 or 4."""


@command.command("table1", cls=Command, collects=True)
@options(
    option(
        "--data NAME",
        "Which parts of the table: mnist, fashion-mnist or svhn. By default all whose data are "
        "there.",
        multiple=True,
    ),
    data_options,
    option(
        "--teacher FILE",
        "A trained LeNet5 (for mnist) or ResNet14 (for the others); by default one is trained from "
        "scratch for every seed. It needs one --data.",
    ),
    option(
        "--students",
        "Whose students: those of BDNF's code, on which the paper's table rests (paper), or "
        "KegNet's (kegnet).",
        get_args(Family),
        default="paper",
    ),
    option(
        "--preset",
        "The recipe of the paper's text (paper) or of its published code (code), each of which "
        "takes hours or days; or a small share of the latter (quick).",
        get_args(Size),
        default="quick",
    ),
    option(
        "--row NAME",
        "One row of the table, such as 'T+BDNF'. By default all.",
        name="rows",
        multiple=True,
    ),
    option("--seeds N", "How many seeds.", default=3),
    device_option,
    workers_option,
    dask_option,
    option("--out FOLDER", "The folder of teachers, trials and table.", default="runs/table1"),
    option("--resume", "Go on with what --out holds. Data sets, rows and seeds may be added."),
    repair_option,
    dry_run_option,
    config_options,
    json_option,
)
def table1(
    data: tuple[str, ...], out: str, dry_run: bool, repair: bool, as_json: bool, **given: Any
) -> None:
    """Reproduce the paper's Table 1, ours beside it.

    Each of the paper's rows is as the paper has it. It shows the accuracy of the last weights, and
    beside it the best on the test images over all epochs, which is what the paper prints and a
    leak.

    Example: freiakd reproduce table1 --data mnist --data-root data --download
    """
    with collecting() as faults:
        expect_together(faults, given, "table", repair, dry_run)
    remember_folder(out)
    from freia_kd.experiments.table1 import plan_table1
    from freia_kd.experiments.table1 import table1 as make
    from freia_kd.report.render import terminal
    from freia_kd.report.table1 import table1_document

    given["out"] = out
    if dry_run:
        del given["dask"]
        plan = plan_table1(data, progress=make_progress(as_json), **given)
        print_plan(plan, as_json, "trials")
        return
    with trial_executor(given) as executor:
        result = make(
            data, repair=repair, progress=make_progress(as_json), executor=executor, **given
        )
    if as_json:
        print_json(result)
        return
    terminal(table1_document(result))
    click.echo(f"Report: {out}/table1.html")


command.add_command(figure2, "figure2")

figure_options = options(
    option(
        "--data NAME|FOLDER|FILE.npz",
        "The training data: mnist, fashion-mnist, svhn, cifar10, or your own.",
        default="mnist",
    ),
    data_options,
    option(
        "--teacher FILE",
        "A trained classifier of the data; by default one is trained first, a LeNet5 for grey "
        "images and a ResNet14 for those in colour.",
    ),
    option("--epochs N", "How long it is trained.", default=8),
    option(
        "--steps N", "How many steps each flow trains; by default as many as `freiakd extract`."
    ),
    option(
        "--as-published",
        "A white base and no prior over images, as in the paper, in place of today's default.",
    ),
    option("--seed N", "The seed of all random numbers.", click.INT, default=0),
    option("--out FOLDER", "The folder of teacher, flows and picture.", default="runs/figures"),
    force_option,
    json_option,
)


@command.command("figure3", cls=Command)
@figure_options
def figure3(**given: Any) -> None:
    """Paint each class from a teacher alone.

    Three flows of one teacher, without any data, like the paper's figure 3: figure3-NAME.png in
    --out. What has been trained there with the same options is not trained again.

    Example: freiakd reproduce figure3 --data mnist --data-root data --as-published
    """
    _paint("figure3", **given)


@command.command("figure4", cls=Command)
@figure_options
@option(
    "--gamma WEIGHT",
    "A weight of the images in eq. (9). By default 0.1, 0.01 and 0.001.",
    click.FloatRange(0, min_open=True),
    name="gammas",
    multiple=True,
)
def figure4(**given: Any) -> None:
    """Paint each class with one real image of it.

    One flow for each weight of these images, like the paper's figure 4: figure4-NAME.png in --out,
    and numbers that say how close what the flows make comes to the images. What has been trained
    there with the same options is not trained again.

    Example: freiakd reproduce figure4 --data mnist --data-root data --gamma 0.1
    """
    _paint("figure4", **given)


def _paint(figure: str, *, out: str, force: bool, as_json: bool, **given: Any) -> None:
    from freia_kd.experiments.figures import FIGURES, picture_path

    expect_writable(picture_path(out, figure, given["data"], given["as_published"]), force)
    remember_folder(out, "the same command goes on with it")
    found = FIGURES[figure](out=Path(out), progress=make_progress(as_json), **given)
    if as_json:
        print_json(found)
        return
    if found.rows:
        print_table(list(found.header), [list(row) for row in found.rows])
    click.echo(f"Picture: {found.picture}")
