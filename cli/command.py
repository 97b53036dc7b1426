"""What all commands share: how errors are shown, and options that several commands have."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from freia_kd.domain import Domain
    from freia_kd.runs.progress import Progress

# Of freia_kd.domain.DOMAINS and freia_kd.presets.PRESETS, which a test compares, so that `--help`
# needs neither torch nor them.
DOMAIN_NAMES = ("mnist", "fashion-mnist", "svhn", "cifar10", "digits")
PRESET_NAMES = ("quick", "standard", "best", "paper")

INTERRUPTED = 130  # as shells report a process that SIGINT ended
OBJECT_PATH = re.compile(r"(?<![\w./\\])([A-Za-z_]\w*)(?:\.\w+)*:[A-Za-z_]")  # module:attribute


class Failure(click.ClickException):
    """One line on standard error, and an exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class Command(click.Command):
    """A command whose errors are one line, with a traceback only if `--debug` is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        debug = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
        self.params.append(debug)

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug")
        try:
            find_modules_here(ctx.params)
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            resumable = "resume" in ctx.params
            message = "Interrupted; what was done is kept." if resumable else "Interrupted."
            if resumable:
                message += " Pass --out with the run's folder and --resume to go on."
            raise Failure(message, INTERRUPTED) from None
        except Exception as error:
            if debug:
                raise
            raise _failure(error) from error


def find_modules_here(params: Mapping[str, Any]) -> None:
    """Lets Python find modules of the current folder that are typed, as `module:attribute`.

    A console script does not look there. The folder goes to the end of `sys.path`, so that it hides
    nothing that is installed; and only if a module is typed that is there and nowhere else, so that
    no file of a folder is run just because a command was called in it. What a file names (a
    checkpoint, a run's record, a flow's YAML) is not typed. `PYTHONSAFEPATH` forbids it.

    Arguments:
        params: The values of a command's options.
    """
    if getattr(sys.flags, "safe_path", False):
        return
    for module in dict.fromkeys(m for text in _texts(params) for m in OBJECT_PATH.findall(text)):
        is_known = module in sys.modules or find_spec(module) is not None
        if not is_known and PathFinder.find_spec(module, [os.getcwd()]):
            sys.path.append(os.getcwd())


def _texts(value: Any) -> Iterator[str]:
    """The texts in an option's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)


def _failure(error: Exception) -> Failure:
    from freia_kd.errors import TrainingError, UsageError

    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    expected = isinstance(error, (ValueError, TypeError, OSError, TrainingError))
    if not expected or not text:
        lines = text.splitlines() or [""]
        text = f"{type(error).__name__}: {lines[0]} (--debug shows where)"
    return Failure(text, 2 if isinstance(error, UsageError) else 1)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several option decorators as one, in the order in which `--help` lists them."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def _numbers(kind: type) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def parse(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            return tuple(kind(v) for v in value.split(","))
        except ValueError as error:
            raise click.BadParameter(
                f"expected numbers with commas between them; got {value!r}."
            ) from error

    return parse


def _settings(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """`NAME=VALUE` pairs; a value is JSON if it reads as such, else text."""
    settings = {}
    for pair in values:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"expected NAME=VALUE; got {pair!r}.")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings


domain_options = options(
    click.option("--domain", type=click.Choice(DOMAIN_NAMES), help="The input domain."),
    click.option(
        "--input-shape", metavar="C,H,W", callback=_numbers(int), help="Of another domain; or D."
    ),
    click.option("--mean", metavar="M,...", callback=_numbers(float), help="Per channel."),
    click.option("--std", metavar="S,...", callback=_numbers(float), help="Per channel."),
    click.option("--classes", type=click.IntRange(2), help="How many classes there are."),
)


def make_domain(
    domain: str | None,
    input_shape: tuple[int, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    classes: int | None,
) -> Domain | None:
    """The domain that the options name or spell out, or `None`.

    Raises:
        UsageError: If the options are incomplete or contradict each other.
    """
    from freia_kd.domain import DOMAINS, Domain
    from freia_kd.errors import UsageError

    spelled = {"--input-shape": input_shape, "--mean": mean, "--std": std, "--classes": classes}
    given = [name for name, value in spelled.items() if value is not None]
    if domain is not None:
        if given:
            raise UsageError(f"Pass either --domain or {', '.join(given)}, not both.")
        return DOMAINS[domain]
    if not given:
        return None
    missing = [name for name, value in spelled.items() if value is None]
    if input_shape is None or mean is None or std is None or classes is None:
        raise UsageError(f"A domain spelled out also needs {', '.join(missing)}.")
    try:
        return Domain(input_shape, classes, mean, std)
    except ValueError as error:
        raise UsageError(str(error)) from error


data_options = options(
    click.option("--data-root", type=click.Path(), help="Where torchvision keeps its data sets."),
    click.option("--download", is_flag=True, help="Let torchvision download the data."),
)

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)

run_options = options(
    click.option(
        "--teacher",
        type=click.Path(dir_okay=False),
        help="The checkpoint, .pt, .pth or .safetensors. Required unless a run is resumed.",
    ),
    click.option("--arch", metavar="NAME|MODULE:CLASS", help="If the file does not tell."),
    domain_options,
    click.option(
        "--samples",
        type=click.Path(exists=True),
        metavar="FOLDER|FILE.npz",
        help="A few labelled real images to train on as well.",
    ),
    click.option("--resize", is_flag=True, help="Resize samples of another size."),
    click.option(
        "--synthesizer",
        metavar="NAME[+NAME]|MODULE:CLASS",
        help="What makes the inputs; by default bdnf+spectral, half from each.",
    ),
    click.option(
        "--set",
        "settings",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_settings,
        help="An option that differs, as steps=500 of the synthesizer, or student.mixup=1 of the "
        "student's training; repeatable.",
    ),
    click.option(
        "--loss",
        metavar="NAME|MODULE:FUNCTION",
        help="The student's: l1 (the default), forward-kl, reverse-kl, js, activation-boundaries.",
    ),
    click.option("--fresh", is_flag=True, help="New inputs in every step of the student."),
    click.option(
        "--gamma",
        type=click.FloatRange(0),
        help="Weight of the samples; by default the paper's 0.01. With 0.1 images follow them.",
    ),
    click.option(
        "--flow", metavar="NAME|FILE.yaml|MODULE:FUNCTION", help="By default the preset's, nice."
    ),
    click.option(
        "--preset",
        type=click.Choice(PRESET_NAMES),
        default="standard",
        show_default=True,
        help="How much work to do.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of all random numbers."),
    device_option,
    click.option(
        "--out",
        type=click.Path(file_okay=False),
        help="The run's folder; by default a new one under runs/.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in --out."),
)

compare_options = options(
    click.option(
        "--teacher", type=click.Path(dir_okay=False), required=True, help="The checkpoint."
    ),
    click.option("--arch", metavar="NAME|MODULE:CLASS", help="If the file does not tell."),
    domain_options,
    click.option(
        "--synthesizers",
        default="all",
        show_default=True,
        metavar="all|NAME,...",
        help="What to compare: names or MODULE:CLASS, also joined by +, with commas between.",
    ),
    click.option("--students", default="1", show_default=True, metavar="1,2,3", help="Which ones."),
    click.option(
        "--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many seeds."
    ),
    click.option(
        "--samples",
        type=click.Path(exists=True),
        metavar="FOLDER|FILE.npz",
        help="A few labelled real inputs for the methods that take them.",
    ),
    click.option(
        "--eval-data",
        metavar="NAME|FOLDER|FILE.npz",
        help="Real test data, read after the last weight is fixed; names no winner.",
    ),
    click.option(
        "--reference",
        is_flag=True,
        help="Also distil on the training split of --eval-data, to show the recovery.",
    ),
    data_options,
    click.option(
        "--set",
        "settings",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_settings,
        help="An option of a synthesizer that differs, as kegnet.steps=500; repeatable.",
    ),
    click.option(
        "--preset",
        type=click.Choice(PRESET_NAMES),
        default="quick",
        show_default=True,
        help="How much work to do for each.",
    ),
    device_option,
    click.option(
        "--workers", type=click.IntRange(1), help="Cells at a time; by default one a core."
    ),
    click.option(
        "--out",
        type=click.Path(file_okay=False),
        default="runs/compare",
        show_default=True,
        help="The comparison's folder.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on with the comparison in --out; methods and seeds may be added.",
    ),
)

json_option = click.option("as_json", "--json", is_flag=True, help="Print JSON, and nothing else.")


def make_progress(quiet: bool) -> Progress:
    """Bars on a terminal, plain lines elsewhere, nothing if quiet."""
    from freia_kd.runs.progress import PlainProgress, Progress, RichProgress

    if quiet:
        return Progress()
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


def open_from_options(
    progress: Progress,
    teacher: str | None,
    domain: str | None,
    input_shape: tuple[int, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    classes: int | None,
    **fields: Any,
) -> dict[str, Any]:
    """What `freia_kd.open_job` takes, from the command's options.

    A resumed run takes what is not given on the command line from its folder.
    """
    from freia_kd.errors import UsageError

    fields["domain"] = make_domain(domain, input_shape, mean, std, classes)
    if teacher is None and fields["resume"] and fields["out"]:
        return {**_remembered(fields), "progress": progress}
    if teacher is None:
        raise UsageError("Pass --teacher FILE (or --out and --resume to go on with a run).")
    return {"teacher": teacher, **fields, "progress": progress}


def _remembered(fields: dict[str, Any]) -> dict[str, Any]:
    from freia_kd.domain import Domain
    from freia_kd.errors import UsageError
    from freia_kd.runs.run import read_run

    old = read_run(fields["out"])["options"]
    flow = old["synthesizers"].get("bdnf", {}).get("flow")
    for name, value in (
        ("arch", old["arch"]),
        ("synthesizer", old["synthesizer"]),
        ("flow", flow or ""),
        ("loss", old["preset"]["student"]["divergence"]),
    ):
        if ":" in value and not fields[name]:  # importing what a file names would run it
            raise UsageError(
                f"The run in {fields['out']} used code of its own, --{name} {value}; "
                "if you trust that code, pass the option again."
            )
    settings = {
        f"{name}.{option}": value
        for name, options in {**old["synthesizers"], "student": old["preset"]["student"]}.items()
        for option, value in options.items()
    }
    return {
        "teacher": old["teacher"],
        "arch": fields["arch"] or old["arch"],
        "synthesizer": fields["synthesizer"] or old["synthesizer"],
        "settings": settings,
        "fresh": old["preset"]["fresh"],
        "domain": fields["domain"] or Domain.from_dict(old["domain"]),
        "samples": fields["samples"] or old["samples"],
        "resize": True,
        "preset": old["preset"]["name"],
        "seed": old["seed"],
        "device": old["device"],
        "out": fields["out"],
        "resume": True,
    }


def show_table(rows: list[list[str]]) -> None:
    """Prints a table whose first row is the header."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(*rows[0], header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*row, style="bold" if row[0].startswith("student") else None)
    console.print(table)
