"""`freiakd train-teacher`: a classifier from real data."""

from __future__ import annotations

import json

import click

from .command import Command, data_options, device_option, json_option, make_progress, options


@click.command("train-teacher", cls=Command)
@options(
    click.argument("data", metavar="DATA"),
    click.option(
        "--arch",
        metavar="NAME|MODULE:CLASS",
        help="The architecture; lenet5 for images and mlp for tables if not given.",
    ),
    data_options,
    click.option("--resize", is_flag=True, help="Resize images of a folder to 32 x 32."),
    click.option(
        "--epochs",
        type=click.IntRange(1),
        help="Passes over the data; 8 for images, and 1,000 steps for tables, if not given.",
    ),
    click.option("--batch-size", type=click.IntRange(2), default=128, show_default=True),
    click.option("--learning-rate", type=float, default=1e-3, show_default=True),
    click.option("--seed", type=int, default=0, show_default=True),
    device_option,
    click.option("--out", type=click.Path(dir_okay=False), required=True, help="The checkpoint."),
    json_option,
)
def command(
    data: str,
    arch: str | None,
    data_root: str | None,
    download: bool,
    resize: bool,
    epochs: int | None,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: str,
    out: str,
    as_json: bool,
) -> None:
    """Train a classifier on DATA and say how accurate it is.

    DATA is digits, mnist, fashion-mnist, svhn, cifar10, one of the tables iris, wine,
    breast-cancer and digits-table, a folder of images with one subfolder a class, or a file .npz.
    The weights after the last step are kept; test data choose nothing.
    """
    from freia_kd.stages import train_teacher

    result = train_teacher(
        data,
        out,
        arch=arch,
        data_root=data_root,
        download=download,
        resize=resize,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        progress=make_progress(as_json),
    )
    if as_json:
        click.echo(json.dumps(result))
        return
    held_out = "test" if result["has_test_split"] else "training (there is no test split)"
    click.echo(
        f"{out}: {result['arch']}, {result['parameters']:,} parameters, "
        f"{100 * result['accuracy']:.2f} % of {result['count']} {held_out} inputs right"
    )
