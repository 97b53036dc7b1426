"""What all commands share: how options are read, and how faults and interruptions are shown."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from freia_kd.config import FaultCollector
from freia_kd.errors import ConfigError, LostError, TrainingError, UsageError
from freia_kd.version import COMMAND

from .sharing import is_one_of_several, is_silent, leave_last, leave_quietly, sharing

if TYPE_CHECKING:
    from freia_kd.report.document import Section
    from freia_kd.training import Progress

INTERRUPTED, TERMINATED = 130, 143  # as shells report a process that SIGINT or SIGTERM ended
OBJECT_PATH = re.compile(r"(?<![\w./\\])([A-Za-z_]\w*)(?:\.\w+)*:[A-Za-z_]")  # module:attribute
# What a context remembers: faults, what an interruption says, the log's file, and who writes it.
FAULTS, GO_ON = "freia_kd.faults", "freia_kd.go_on"
LOG, PROGRESS = "freia_kd.log", "freia_kd.progress"
TYPED = "freia_kd.typed"  # the command line

# Options that are gone, and what to do instead.
GONE = {
    "--fresh": "It is now --on-the-fly.",
    "--prune-share": "It is now --keep-ratio.",
    "--students": "It is now --student, once for each student.",
    "--synthetic": (
        "Noise is now what compress and distill both calibrate on, so that both make the same "
        "student; leave the option out."
    ),
}


class Failure(click.ClickException):
    """One line on standard error for each fault, and an exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send: what was done is kept, as after Ctrl-C."""


@contextmanager
def terminating() -> Iterator[None]:
    """Makes SIGTERM an exception within the block, where this thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Choice(click.Choice):
    """One of some names; what is said of another reads like what the library says."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.choices:
            return value
        near = difflib.get_close_matches(str(value), self.choices, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        self.fail(f"expected one of {', '.join(self.choices)}; got {value!r}.{meant}", param, ctx)


class _Gathering:
    """An option or argument whose fault does not end the search for others."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)  # type: ignore[misc]
        except click.MissingParameter as fault:
            ctx.meta.setdefault(FAULTS, []).append(fault.format_message())
        except click.BadParameter as fault:
            ctx.meta.setdefault(FAULTS, []).append(f"{self.opts[0]}: {fault.message}")  # type: ignore[attr-defined]
        if ctx.default_map:  # where a wrong value would be found again
            ctx.default_map.pop(self.name, None)  # type: ignore[attr-defined]
        if self.required:  # type: ignore[attr-defined]
            return None
        try:
            return super().process_value(ctx, self.get_default(ctx))  # type: ignore[attr-defined,misc]
        except click.BadParameter:  # such as a folder that is not there by default
            return None


class Option(_Gathering, click.Option):
    """An option whose fault is reported together with all others."""


class Argument(_Gathering, click.Argument):
    """An argument whose fault is reported together with all others."""


TYPES: dict[str, click.ParamType] = {  # of options, by what their help calls their value
    "N": click.IntRange(1),
    "LABEL": click.INT,
    "SHARE": click.FLOAT,
    "POINTS": click.FLOAT,
    "WEIGHT": click.FLOAT,
    "FILE": click.Path(dir_okay=False),
    "FILE.png": click.Path(dir_okay=False),
    "FOLDER": click.Path(file_okay=False),
}


def option(
    usage: str,
    help: str,
    kind: click.ParamType | Sequence[str] | None = None,
    name: str = "",
    completes: Iterable[str] = (),
    **rest: Any,
) -> Callable[[Any], Any]:
    """An option of a command.

    Arguments:
        usage: How it is typed, such as `"--count -n N"`; without a value it is a flag.
        help: What it does.
        completes: Names that a shell completes, besides files.
        kind: What its value is: one of some names, or a type if that of `TYPES` is not meant.
        name: The parameter that gets it, if the option is not called so.
        rest: What else click's options take.
    """
    words = usage.split()
    metavar = next((word for word in words if not word.startswith("-")), None)
    if isinstance(kind, (list, tuple)):
        kind = Choice(kind)
    return click.option(
        *[word for word in words if word != metavar],
        *([name] if name else []),
        cls=Option,
        type=kind or TYPES.get(metavar or ""),
        metavar=metavar,
        # Not False, by which click 8.5 lets the value be left out: then it is as if not typed.
        is_flag=True if metavar is None and kind is None else None,
        help=f"{help} May be repeated." if rest.get("multiple") else help,
        show_default="default" in rest,
        **({"shell_complete": partial(_complete, tuple(completes))} if completes else {}),
        **rest,
    )


def _complete(
    names: tuple[str, ...], ctx: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """The names that go on from what was typed, after a + or a comma too; else files."""
    start = re.match(r"(.*[+,])?", typed).group()  # type: ignore[union-attr]
    found = [CompletionItem(start + n) for n in names if (start + n).startswith(typed)]
    return found or [CompletionItem(typed, type="file")]


argument: Any = partial(click.argument, cls=Argument)


class Command(click.Command):
    """A command whose errors are one line each, with a traceback only if `--debug` is given.

    Arguments:
        collects: Whether it raises by :func:`collecting`, with faults of its own, what click finds
            wrong with its options; otherwise that is raised before it begins.
        is_shared: Whether several processes may share its work, under `torchrun`.
    """

    def __init__(
        self, *args: Any, collects: bool = False, is_shared: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.collects, self.is_shared = collects, is_shared
        debug = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
        self.params.append(debug)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = shlex.join(["freiakd", *_names(ctx), *args])
        broken = next((arg for arg in args if len(arg.splitlines()) > 1), None)
        if broken is not None:  # no name has one, and an error is one line
            raise click.UsageError(f"Expected arguments without line breaks; got {broken!r}.", ctx)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name not in GONE:
                raise
            raise Failure(
                f"There is no {error.option_name}. {GONE[error.option_name]}", 2
            ) from None

    def invoke(self, ctx: click.Context) -> Any:
        token = COMMAND.set(ctx.meta[TYPED])
        try:
            with sharing():
                return self._invoke(ctx, ctx.params.pop("debug"))
        finally:
            COMMAND.reset(token)

    def _invoke(self, ctx: click.Context, debug: bool) -> Any:
        try:
            _add_arguments(ctx)
            if not self.collects:
                raise_faults(ctx)
            expect_one_process(self)
            find_modules_here(ctx.params)
            with terminating():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt as stop:
            code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
            leave_quietly(code)
            raise _logged(ctx, Failure(ctx.meta.get(GO_ON, _nothing_kept)(), code)) from None
        except LostError as error:
            leave_quietly(1)
            said = f"{error} {ctx.meta.get(GO_ON, _nothing_kept)()}"
            raise _logged(ctx, Failure(said)) from error
        except Exception as error:
            if debug:
                raise
            leave_last(_failure(error))
            raise _logged(ctx, _failure(error)) from error


def _names(ctx: click.Context) -> list[str]:
    """How a command is called, after the name of the program."""
    return [] if ctx.parent is None else [*_names(ctx.parent), str(ctx.info_name)]


def expect_one_process(command: Command) -> None:
    """Refuses `torchrun` for a command whose work processes do not share.

    Raises:
        UsageError: If it has started several.
    """
    if is_one_of_several() and not command.is_shared:
        raise UsageError(
            "torchrun shares the work of distill, extract and train-teacher, not of "
            f"{command.name}; call freiakd {command.name} itself. (compare and reproduce have "
            "--dask.)"
        )


def _logged(ctx: click.Context, failure: Failure) -> Failure:
    """The failure, which the log has as well, if work has begun that writes one."""
    if PROGRESS in ctx.meta:
        ctx.meta[PROGRESS].log.note(failure.message)
    return failure


def _add_arguments(ctx: click.Context) -> None:
    """Puts a constructor's arguments behind the architecture that they are of."""
    arguments = ctx.params.pop("arch_args", None)
    if not arguments:
        return
    if ctx.params["arch"] is None:
        fault = "--arch-arg is of --arch MODULE:CLASS, which is not given."
        ctx.meta.setdefault(FAULTS, []).append(fault)
        return
    from freia_kd.teachers.build import with_arguments

    ctx.params["arch"] = with_arguments(ctx.params["arch"], arguments)


def _nothing_kept() -> str:
    return "Interrupted; nothing was written."


def _failure(error: Exception) -> Failure:
    text = str(error).strip()
    if isinstance(error, ConfigError):
        text = "\n".join(error.faults)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    expected = isinstance(error, (ValueError, TypeError, OSError, TrainingError))
    if not expected or not text:
        lines = text.splitlines() or [""]
        text = f"{type(error).__name__}: {lines[0]} (--debug shows where)"
    return Failure(text, 2 if isinstance(error, UsageError) else 1)


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
    elif isinstance(value, (Mapping, tuple)):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(entry)


class Faults(FaultCollector):
    """All that is wrong with what was typed; blocks `with faults:` may raise any UsageError.

    Arguments:
        faults: What is known to be wrong.
        names: How options of the library were typed, by their names there, such as
            `{"prune.keep_ratio": "--keep-ratio"}`.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__(faults)
        self.names: dict[str, str] = {}

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, UsageError) and not isinstance(error, ConfigError):
            error = ConfigError([str(error)])
        return super().__exit__(kind, error, traceback)

    def add(self, fault: str) -> None:
        """Adds a fault, a sentence."""
        self.faults.append(fault)

    def expect(self, fits: object, fault: str) -> None:
        """Adds a fault unless something holds."""
        if not fits:
            self.add(fault)

    def typed(self) -> Iterator[str]:
        """The faults, each with the name of its option as it was typed."""
        for fault in dict.fromkeys(self.faults):
            name, colon, rest = fault.partition(": ")
            is_option = colon and re.fullmatch(r"[\w-]+\.\w+", name)
            name = self.names.get(name, f"--set {name}") if is_option else name
            yield f"{name}{colon}{rest}"


@contextmanager
def collecting() -> Iterator[Faults]:
    """Gathers what is wrong with the options, and raises all of it together at its end.

    What click has found is among it. Whatever follows the block can rely on the options.

    Raises:
        ConfigError: If anything is wrong.
    """
    faults = Faults([*click.get_current_context().meta.get(FAULTS, ())])
    yield faults
    if faults.faults:
        raise ConfigError(faults.typed())


def raise_faults(ctx: click.Context) -> None:
    """Raises what click has found wrong with the options, all of it together."""
    if ctx.meta.get(FAULTS):
        raise ConfigError(ctx.meta[FAULTS])


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several option decorators as one, in the order in which `--help` lists them."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def typed_options() -> dict[str, Any]:
    """The options that were typed, without those that have their default."""
    ctx = click.get_current_context()
    here = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)  # the latter by --config
    return {k: v for k, v in ctx.params.items() if ctx.get_parameter_source(k) in here}


def expect_writable(
    file: str | Path | None,
    force: bool,
    suffixes: tuple[str, ...] = (),
    inputs: tuple[str | None, ...] = (),
    name: str = "--out",
) -> None:
    """Raises unless a file can be written and nothing is lost by it, before any work.

    Arguments:
        file: The file, if there is one to be written.
        force: Whether one that is there may be replaced.
        suffixes: How its name may end; anyhow if empty.
        inputs: Files that are read, which are never replaced.
        name: The option.

    Raises:
        UsageError: If its name ends otherwise, it exists, or it is an input.
        OSError: If its folder cannot be written.
    """
    import tempfile

    if file is None:
        return
    path = Path(file)
    log = click.get_current_context().meta.get(LOG)
    if log is not None and path.absolute() == Path(log).absolute():
        raise UsageError(f"--log-file: {log} is what {name} writes; choose another file.")
    if suffixes and path.suffix not in suffixes:
        raise UsageError(f"{name}: expected a file {' or '.join(suffixes)}; got {file}.")
    if path.exists():
        for given in inputs:
            if given is not None and Path(given).exists() and path.samefile(given):
                raise UsageError(f"{name}: {file} is what is read; choose another file.")
        if not force:
            raise UsageError(
                f"{name}: {file} exists; pass --force to replace it, or choose another file."
            )
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"Cannot write in {folder} ({error.strerror})") from error


def remember_folder(folder: str, how: str = "to go on, add --resume to the command") -> None:
    """Lets an interruption name the folder of a command that goes on with the same options.

    Arguments:
        folder: The folder.
        how: How it goes on.
    """

    def said() -> str:
        is_kept = Path(folder).is_dir() and any(Path(folder).iterdir())
        kept = f"Interrupted. What was done is kept in {folder}; {how}."
        return kept if is_kept else _nothing_kept()

    click.get_current_context().meta[GO_ON] = said


def make_progress(quiet: bool) -> Progress:
    """Bars on a terminal, plain lines elsewhere, nothing if quiet."""
    from freia_kd.training import LoggedProgress, PlainProgress, Progress, RichProgress

    shown = Progress()
    if is_silent():
        return shown
    if not quiet:
        shown = RichProgress() if sys.stderr.isatty() else PlainProgress()
    ctx = click.get_current_context()
    if LOG not in ctx.meta:
        return shown
    ctx.meta[PROGRESS] = LoggedProgress(shown, ctx.meta[LOG])
    ctx.call_on_close(ctx.meta[PROGRESS].close)
    return ctx.meta[PROGRESS]


def print_json(result: Any) -> None:
    """Prints a dataclass of the library, or a list of such, as JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        return str(value)

    click.echo(json.dumps(result, default=plain))


def print_table(header: list[str], rows: list[list[str]], numeric: set[int] | None = None) -> None:
    """Prints a table; by default all columns but the first are numbers."""
    from freia_kd.report.document import Section, Table

    columns = None if numeric is None else frozenset(numeric)
    print_sections([Section("", [Table(header, rows, columns)])])


def print_sections(sections: list[Section], details: bool = False) -> None:
    """Prints parts of a report."""
    from freia_kd.report.document import Document
    from freia_kd.report.render import terminal

    terminal(Document("", [], sections), details)
