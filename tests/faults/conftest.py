"""What `make test-faults` counts: how many inputs each kind of fault had, and which fell short."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "job"))  # whose runs in miniature are used here

from faults_judging import TALLIES

TALLY = "tally"  # a property of a test, which its report takes from the process that ran it


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(autouse=True)
def tallied(request):
    """Hands on what a test has counted."""
    yield
    for name, tally in TALLIES.items():
        counts = (tally.refused, tally.sound, tally.begun, len(tally.short))
        request.node.user_properties.append((TALLY, (name, *counts)))
    TALLIES.clear()


def pytest_terminal_summary(terminalreporter):
    reports = [r for rs in terminalreporter.stats.values() for r in rs]
    properties = [p for r in reports for p in getattr(r, "user_properties", ())]
    found = sorted({tuple(value) for name, value in properties if name == TALLY})
    if not found:
        return
    terminalreporter.section("faults")
    rows = [("inputs", "refused", "sound", "began", "fell short", "")]
    rows += [(sum(counts), *counts, name) for name, *counts in found]
    rows.append((*[sum(row[k] for row in rows[1:]) for k in range(5)], "all"))
    for *counts, name in rows:
        terminalreporter.write_line("".join(f"{count!s:>11}" for count in counts) + f"  {name}")
