"""How the tests call commands."""

import pytest
from click.testing import CliRunner

from freia_kd.cli.command import TERMINATED
from freia_kd.cli.main import main

FLOW = ("--synthesizer", "bdnf+leaves")  # where the flow is what a test is about


def call(*arguments, code=0):
    """Runs a command that ends with an exit code."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exit_code == TERMINATED != code:  # which was meant for the tests, as by `timeout`
        pytest.exit("terminated", TERMINATED)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def faults(*arguments, code=2):
    """The lines that a command which does nothing prints, one for each fault."""
    result = call(*arguments, code=code)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return [x for x in result.stderr.splitlines() if x and not x.startswith(("Usage:", "Try '"))]


def fails(*arguments, code=2):
    """The one line of a command that finds one fault."""
    lines = faults(*arguments, code=code)
    assert len(lines) == 1, lines
    return lines[0]
