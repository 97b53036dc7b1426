"""What `make test-faults` counts: how many inputs each kind of fault had, and which fell short."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "job"))  # whose runs in miniature are used here

from faults_judging import TALLIES


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


def pytest_terminal_summary(terminalreporter):
    if not TALLIES:
        return
    terminalreporter.section("faults")
    for name, tally in TALLIES.items():
        terminalreporter.write_line(f"{name}: {tally}")
