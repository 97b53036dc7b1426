"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from typing import Any, get_args

import click

from freia_kd.config import BatchNormMode, Device, PresetName
from freia_kd.domain import DOMAINS, Domain
from freia_kd.errors import UsageError

from .command import Faults, option, options

DATA = "NAME|FOLDER|FILE.npz"
OBJECT = "NAME|MODULE:CLASS"
EXISTING = click.Path(exists=True)


def _numbers(kind: type) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def parse(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else tuple(kind(v) for v in value.split(","))
        except ValueError:
            raise click.BadParameter(
                f"expected numbers with commas between them; got {value!r}."
            ) from None

    return parse


def _settings(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """`NAME=VALUE` pairs; a value is JSON or a literal of Python if it reads as such, else text."""
    settings = {}
    for pair in values:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"expected {parameter.metavar}; got {pair!r}.")
        value: Any = text
        for read in (ast.literal_eval, json.loads):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = read(text)
        settings[name] = tuple(value) if isinstance(value, list) else value
    return settings


TEACHER = (
    "The teacher's checkpoint: .pt, .pth, .ckpt or .safetensors; or weights that torchvision "
    "publishes, by its name for them, such as ResNet18_Weights.IMAGENET1K_V1."
)
teacher_option = option("--teacher FILE|WEIGHTS", TEACHER, required=True)


def arch_options(help: str = "The architecture, if the file does not record it.") -> Any:
    """The options of the architecture; :class:`Command` makes one value of both."""
    return options(
        option(f"--arch {OBJECT}", help),
        option(
            "--arch-arg NAME=VALUE",
            "An argument of the architecture's constructor, such as width=64; the number of "
            "classes is passed by itself.",
            name="arch_args",
            multiple=True,
            callback=_settings,
        ),
    )


domain_options = options(
    option(
        "--domain",
        "The data that the net was made for, if its file does not say so. For any other net give "
        "the next four options instead.",
        list(DOMAINS),
    ),
    option(
        "--input-shape C,H,W|D",
        "The shape of one input: channels, height and width, or the number of features.",
        callback=_numbers(int),
    ),
    option(
        "--mean M,...",
        "The mean of each channel, of pixels in [0, 1], that is subtracted from inputs.",
        callback=_numbers(float),
    ),
    option(
        "--std S,...",
        "The standard deviation of each channel, by which inputs are then divided.",
        callback=_numbers(float),
    ),
    option("--classes N", "The number of classes.", click.IntRange(2)),
)
data_options = options(
    option(
        "--data-root FOLDER", "Where torchvision keeps its data sets; data/ if it is not given."
    ),
    option("--download", "Let torchvision download the data set."),
)
samples_option = option(
    "--samples FOLDER|FILE.npz", "A few labelled real inputs to train on as well.", EXISTING
)
eval_option = option(
    f"--eval-data {DATA}",
    "Labelled test data to measure accuracy on; they are read after the last weight is fixed.",
)
set_size_option = option(
    "--set-size N", "How many synthetic inputs to make, if not as many as the preset says."
)
seed_option = option("--seed N", "The seed of all random numbers.", click.INT, default=0)
device_option = option("--device", "Where to compute.", get_args(Device), default="auto")
bn_option = option(
    "--bn",
    "The statistics of batch normalisation in the students: the teacher's, moved by what "
    "compression did to the features (match, the default), or as they are (freeze).",
    get_args(BatchNormMode),
)
workers_option = option("--workers N", "How many trials run at a time; by default one per core.")
dask_option = option(
    "--dask ADDRESS",
    "Run the trials on the workers of a Dask cluster, such as tcp://HOST:8786, in place of "
    "processes of this machine; all must see --out and the teacher under the same paths.",
)
repair_option = option(
    "--repair",
    "With --resume: delete what is damaged in the run (a shard, a student, a checkpoint), and "
    "make it again.",
)
force_option = option("--force", "Replace what exists.")
json_option = option("--json", "Print JSON, and nothing else.", name="as_json")


ANYTHING = (
    "an option of a synthesizer (bdnf.steps=500), of the students' training (student.mixup=1) or "
    "of a method of compression (prune.keep_ratio=0.3)."
)


def settings_option(what: str = ANYTHING) -> Any:
    """The option that changes options of what a command is made of."""
    return option(
        "--set NAME.OPTION=VALUE",
        f"Change {what}",
        name="settings",
        multiple=True,
        callback=_settings,
    )


def preset_option(default: str) -> Any:
    """The option of how much work to do."""
    return option("--preset", "How much work to do.", get_args(PresetName), default=default)


@contextmanager
def trial_executor(given: dict[str, Any]) -> Iterator[Executor | None]:
    """Takes `--dask` out of a command's options: what runs its trials, if not this machine."""
    address = given.pop("dask")
    if address is None:
        yield None
        return
    if given["workers"] is not None:
        raise UsageError("--workers is of this machine, and --dask has its own; pass one of them.")
    from freia_kd.comparing.cluster import connect

    with connect(address, given["out"]) as executor:
        yield executor


def expect_together(
    faults: Faults, given: dict[str, Any], what: str, repair: bool, dry_run: bool
) -> None:
    """Collects what the options of a command of trials say against each other.

    Arguments:
        faults: What collects them.
        given: The other options.
        what: What goes on with `--resume`, as "table".
        repair: Whether `--repair` was given.
        dry_run: Whether `--dry-run` was.
    """
    faults.expect(
        given["resume"] or not repair,
        f"--repair is of a {what} that goes on; pass --resume as well.",
    )
    faults.expect(
        not (dry_run and given["dask"]),
        "--dry-run measures this machine, and --dask has others; pass one of them.",
    )


def pop_domain(given: dict[str, Any]) -> Domain | None:
    """Takes the options of the domain out of those given: the domain that they name or spell out.

    Raises:
        UsageError: If they are incomplete or contradict each other.
    """
    name = given.pop("domain")
    values = [given.pop(k) for k in ("input_shape", "mean", "std", "classes")]
    spelled = dict(zip(("--input-shape", "--mean", "--std", "--classes"), values, strict=True))
    there = [typed for typed, value in spelled.items() if value is not None]
    if name is not None:
        if there:
            raise UsageError(f"Pass either --domain or {', '.join(there)}, not both.")
        return DOMAINS[name]
    if not there:
        return None
    if None in values:
        missing = ", ".join(typed for typed in spelled if typed not in there)
        raise UsageError(f"A domain that is spelled out also needs {missing}.")
    shape, mean, std, classes = values
    try:
        return Domain(shape, classes, mean, std)
    except ValueError as error:
        raise UsageError(str(error)) from error
