"""What an answer to a bad input may be, and how many inputs had another one."""

import os
import signal
import traceback
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

import freia_kd
from freia_kd.cli.main import main
from freia_kd.errors import CheckpointError, ExportError, TrainingError, UsageError

OWN = (CheckpointError, ExportError, TrainingError, UsageError)
# How many inputs each test takes, as a share of what `make test-faults` does.
SHARE = float(os.environ.get("FREIAKD_FAULTS", "1"))
LONGEST = 120  # seconds that the answer to one input of a test may take on a busy machine
SEVERAL = ("these two lines make a checkpoint", "are damaged; add --repair")  # lines, on purpose
HOME = Path(freia_kd.__file__).parent
CLI = Path(main.callback.__code__.co_filename).parent
TALLIES = {}


def many(count):
    """The number of inputs of a test."""
    return max(10, round(SHARE * count))


class Hung(BaseException):
    """An input that had no answer in time."""


class Enough(BaseException):
    """Work has begun, and a test wants no more of it."""


class Tally:
    """How many inputs there were, and what became of them."""

    def __init__(self, name):
        self.sound = self.refused = self.begun = 0
        self.short, self.said = [], ""  # and the last error
        TALLIES[name] = self

    @property
    def inputs(self):
        return self.sound + self.refused + self.begun + len(self.short)

    def check(self, least):
        """Fails with all that fell short, or if there were too few inputs to say anything."""
        shown = "\n\n".join(dict.fromkeys(self.short))
        if self.short:
            pytest.fail(f"{len(self.short)} of {self.inputs} fell short:\n{shown}", pytrace=False)
        assert self.inputs >= least

    def judge(self, what, function):
        """Calls a function of the library: its result, or an error of ours in a line.

        Arguments:
            what: The input in words.
            function: What reads it, and checks what comes of it.
        """
        try:
            with in_time():
                function()
        except OWN as error:
            self._note(what, message_fault(str(error)))
        except (Exception, Hung) as error:
            self.short.append(f"{what}: {shown(error)}")
        else:
            self.sound += 1

    def judge_command(self, arguments, check):
        """Calls a command: it ends with 0 and a right result, or with 1 or 2 and words of ours.

        Arguments:
            arguments: What is typed.
            check: Called with what was printed after exit code 0; raises if the result is wrong.

        Returns:
            The exit code, `None` if long work began.
        """
        arguments = [str(a) for a in arguments]
        what = f"freiakd {' '.join(map(repr, arguments))}"
        try:
            with in_time():
                result = CliRunner().invoke(main, arguments, standalone_mode=False)
        except (Enough, Hung) as end:
            if isinstance(end, Enough):
                self.begun += 1
            else:
                self.short.append(f"{what}: {shown(end)}")
            return None
        error = result.exception
        if error is None:
            self._check(what, result, check)
            return 0
        if not isinstance(error, click.ClickException):
            self.short.append(f"{what}: {shown(error)}")
            return 1
        fault = None if error.exit_code in (1, 2) else f"exit code {error.exit_code}"
        fault = fault or message_fault(error.format_message(), error.exit_code == 2)
        fault = fault or origin_fault(error.__cause__)
        self.said = error.format_message()
        self._note(what, fault)
        return error.exit_code

    def _check(self, what, result, check):
        try:
            check(result.stdout)
        except Exception as error:
            self.short.append(f"{what}: exit code 0, and then {shown(error)}")
        else:
            self.sound += 1

    def _note(self, what, fault):
        if fault is None:
            self.refused += 1
        else:
            self.short.append(f"{what}: {fault}")


def message_fault(text, may_be_several=False):
    """What is wrong with an error's text, if anything."""
    if not text.strip():
        return "an error without words"
    if "Traceback" in text or "--debug shows where" in text:
        return f"an error that nobody expected: {text}"
    if "\n" in text and not may_be_several and not any(s in text for s in SEVERAL):
        return f"an error of several lines: {text}"
    return None


def origin_fault(error):
    """What is wrong with an error that became a command's line: it must be this package's own."""
    if error is None or isinstance(error, (*OWN, OSError)):
        return None
    place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    is_ours = any(home in place.parents for home in (HOME, CLI))
    return None if is_ours else f"an error of somebody else's code: {shown(error)}"


def shown(error):
    """An error with the places of this package that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if any(h in Path(f.filename).parents for h in (HOME, CLI))]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-4:]))
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first} [{places}]"


@contextmanager
def in_time():
    """Ends what takes too long."""

    def ring(number, frame):
        raise Hung(f"no answer in {LONGEST} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def expect_answers(classifier):
    """Raises unless a classifier answers a batch as one does."""
    domain = classifier.domain
    x = torch.rand(4, *domain.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = classifier.eval()(x)
    assert logits.shape == (4, domain.classes), logits.shape
    assert torch.isfinite(logits).all()
