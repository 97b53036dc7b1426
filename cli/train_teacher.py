"""`freiakd train-teacher`: a classifier from real data."""

from __future__ import annotations

import shutil
from typing import Any

import click

from .command import (
    Command,
    argument,
    expect_writable,
    make_progress,
    option,
    options,
    print_json,
    remember_folder,
)
from .config import config_options
from .options import (
    arch_options,
    data_options,
    device_option,
    force_option,
    json_option,
    seed_option,
)
from .plan import dry_run_option, print_plan


@click.command("train-teacher", cls=Command, is_shared=True)
@options(
    argument("data", metavar="DATA"),
    arch_options("The architecture; by default lenet5 for images and mlp for tables."),
    data_options,
    option("--resize", "Resize images of a folder or file to 32 x 32."),
    option(
        "--epochs N",
        "Passes over the data; by default 8 for images, and for tables 1,000 steps.",
    ),
    option("--batch-size N", "How many inputs a step takes.", click.IntRange(2), default=128),
    option(
        "--learning-rate RATE",
        "Adam's learning rate at the start; it falls to 0.",
        click.FloatRange(0, min_open=True),
        default=1e-3,
    ),
    seed_option,
    device_option,
    option("--resume", "Go on with a training that was stopped; --out FILE.training has it."),
    option("--out FILE", "The checkpoint, .pt, .pth or .safetensors.", required=True),
    force_option,
    dry_run_option,
    config_options,
    json_option,
)
def command(
    data: str, out: str, resume: bool, force: bool, dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Train a classifier on DATA and say how accurate it is.

    DATA is digits, mnist, fashion-mnist, svhn, cifar10, one of the tables iris, wine,
    breast-cancer and digits-table, a folder of images with one subfolder for each class, or an .npz
    file. The weights after the epoch that is best on a tenth of the training data, which is held
    out, are kept; test data choose nothing. A training that was stopped goes on with --resume.

    Example: freiakd train-teacher digits --out lenet5.pt
    """
    from freia_kd import api, ranks
    from freia_kd.report.words import proportion
    from freia_kd.runs.lock import locked

    folder = api.training_folder(out)
    # A training that stopped while it ended may have written the checkpoint already.
    goes_on = resume and (folder / "run.json").exists()
    expect_writable(out, force or goes_on, (".pt", ".pth", ".safetensors"), (data,))
    begins_anew = force and not resume and (folder / "run.json").exists()
    if dry_run:
        fresh = f"{out}.new" if begins_anew else out  # what is there would be deleted
        print_plan(api.plan_teacher(data, fresh, resume=resume, **given), as_json)
        return
    if begins_anew and ranks.is_first():
        with locked(folder):
            shutil.rmtree(folder)
    ranks.wait()
    remember_folder(str(folder))
    result = api.train_teacher(data, out, resume=resume, progress=make_progress(as_json), **given)
    if as_json:
        print_json(result)
        return
    held_out = "test" if result.has_test_split else "training (there is no test split)"
    click.echo(
        f"{out}: {result.arch}, {result.parameters:,} parameters, an accuracy of "
        f"{proportion(result.accuracy)} on {result.accuracy.count:,} {held_out} inputs"
    )
