"""What a student is to be: options that `distill` and `compress` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .command import options

if TYPE_CHECKING:
    from freia_kd.compression import Recipe

# Of freia_kd.compression.recipe and batchnorm, which a test compares, so that `--help` needs no
# torch.
METHOD_NAMES = ("tucker", "prune", "quantize")
BATCHNORM_NAMES = ("match", "freeze", "reestimate", "train")
TARGETS = {
    "target_params": "params",
    "target_macs": "macs",
    "target_latency": "latency",
    "max_drop": "drop",
}

recipe_options = options(
    click.option(
        "--layers",
        multiple=True,
        metavar="PATTERN",
        help="Compress the layers of these names, as 'layers3.*.conv1', or all; repeatable.",
    ),
    click.option(
        "--ranks",
        metavar="evbmf|RATIO|N|IN,OUT",
        help="Of --layers (or all): found by EVBMF (the default), a ratio of the channels as 0.25, "
        "one number, or the input and the output rank.",
    ),
    click.option(
        "--plan",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE.yaml",
        help="Patterns of layers with the ranks of each, one a line, as 'conv2: 0.25'.",
    ),
    click.option(
        "--target-params",
        type=float,
        metavar="SHARE",
        help="Find the layers and ranks that leave this share of the parameters, as 0.3.",
    ),
    click.option(
        "--target-macs",
        type=float,
        metavar="SHARE",
        help="The same for the multiply-accumulates.",
    ),
    click.option(
        "--target-latency",
        type=float,
        metavar="SHARE",
        help="The same for the time of one input, measured on this machine.",
    ),
    click.option(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="Compress as far as the agreement with the teacher drops by at most so many "
        "percentage points before distillation.",
    ),
    click.option(
        "--method",
        "methods",
        type=click.Choice(METHOD_NAMES),
        multiple=True,
        help="What is done to the net, in this order: low ranks (tucker, the default), fewer "
        "channels (prune), eight-bit integers (quantize, last); repeatable.",
    ),
    click.option(
        "--prune-share",
        type=float,
        metavar="SHARE",
        help="Of the multiply-accumulates, which --method prune leaves. By default 0.5.",
    ),
)

bn_option = click.option(
    "--bn",
    type=click.Choice(BATCHNORM_NAMES),
    help="Batch normalisation of the students: the teacher's statistics, moved by what compression "
    "did to the features (match, the default) or as they are (freeze), those of the synthetic "
    "images (reestimate), or those of the batches (train).",
)


def make_recipes(
    students: tuple[str, ...],
    layers: tuple[str, ...],
    ranks: str | None,
    plan: str | None,
    methods: tuple[str, ...],
    prune_share: float | None = None,
    bn: str | None = None,
    **targets: float | None,
) -> list[Recipe] | None:
    """The students that the options ask for, or `None` where they ask for nothing.

    Raises:
        UsageError: If options contradict each other or make no sense.
    """
    from freia_kd.compression import Recipe, read_rules
    from freia_kd.compression.recipe import as_usage
    from freia_kd.errors import UsageError

    shared: dict[str, Any] = {"methods": methods} if methods else {}
    shared |= {} if bn is None else {"bn": bn}
    shared |= {} if prune_share is None else {"prune_share": prune_share}
    if prune_share is not None and "prune" not in methods:
        raise UsageError("--prune-share is of --method prune, which is not given.")
    _expect_one_choice(students, layers, ranks, plan, targets)
    goals = {name: goal for name, goal in targets.items() if goal is not None}
    if goals:
        ((name, goal),) = goals.items()
        return [Recipe(target=TARGETS[name], goal=goal, **shared)]  # type: ignore[arg-type]
    if plan is not None:
        with as_usage():
            return [Recipe(rules=read_rules(plan), **shared)]
    if layers or ranks:
        return [Recipe(rules=_rules(layers, ranks), **shared)]
    if methods and "tucker" not in methods and not students:
        return [Recipe(**shared)]
    if students or shared:
        return [Recipe(student=student, **shared) for student in students or ("1",)]
    return None


def _rules(layers: tuple[str, ...], ranks: str | None) -> dict[str, Any]:
    from freia_kd.compression import parse_ranks

    return dict.fromkeys(layers or ("all",), parse_ranks(ranks or "evbmf"))


def _expect_one_choice(
    students: tuple[str, ...],
    layers: tuple[str, ...],
    ranks: str | None,
    plan: str | None,
    targets: dict[str, float | None],
) -> None:
    from freia_kd.errors import UsageError

    given = {
        "--student": bool(students),
        "--layers" if layers else "--ranks": bool(layers or ranks),
        "--plan": plan is not None,
        **{f"--{k.replace('_', '-')}": goal is not None for k, goal in targets.items()},
    }
    names = [name for name, there in given.items() if there]
    if len(names) > 1:
        raise UsageError(
            f"Pass only one of {' and '.join(names)}: each says by itself which layers are "
            "compressed, and how far."
        )
