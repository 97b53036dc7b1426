"""The numbers of reports, against formulas of their own."""

import math

import pytest

from freia_kd.report.schema import Difference, Proportion, Spread, recovery


@pytest.mark.parametrize(("share", "count"), [(0.9, 100), (0.0, 7), (1.0, 50), (1 / 3, 3)])
def test_intervals_are_wilsons(share, count):
    z = 1.959963984540054
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count)
    half *= math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    found = Proportion.of(share, count)
    assert (found.value, found.count) == (share, count)
    assert found.low == pytest.approx(middle - half, abs=1e-9)
    assert found.high == pytest.approx(middle + half, abs=1e-9)
    assert 0 <= found.low <= share <= found.high <= 1


def test_differences_are_paired():
    before = [True] * 90 + [False] * 10
    worse = [True] * 80 + [False] * 10 + [True] * 5 + [False] * 5  # ten lost, five won
    found = Difference.of(before, worse)
    assert found.value == pytest.approx(-0.05)
    # Agresti and Min: half an input more in each cell, 10.5 and 5.5 of 102 differ
    middle, variance = -5 / 102, (16 - 25 / 102) / 102**2
    assert found.low == pytest.approx(middle - 1.96 * math.sqrt(variance), abs=1e-4)
    assert found.high == pytest.approx(middle + 1.96 * math.sqrt(variance), abs=1e-4)
    same = Difference.of(before, before)
    assert same.value == 0
    assert same.low == pytest.approx(-same.high)
    assert Difference.of(worse, before).value == pytest.approx(0.05)
    with pytest.raises(ValueError, match="got none"):
        Difference.of([], [])


def test_paired_intervals_cover():
    """Of 95 % intervals, about 95 % hold the true difference."""
    import numpy as np

    generator = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        kind = generator.choice(4, size=120, p=[0.8, 0.05, 0.1, 0.05])  # true: lost 10 %, won 5 %
        found = Difference.of(np.isin(kind, (0, 2)).tolist(), np.isin(kind, (0, 1)).tolist())
        held += found.low <= -0.05 <= found.high
    assert 0.92 <= held / 300 <= 0.985


def test_a_single_value_has_no_spread():
    assert Spread.of([None, 0.5]) == Spread(0.5, None, 1)
    assert Spread.of([None]) is None
    assert Spread.of([0.2, 0.4]).std == pytest.approx(0.2 / 2**0.5)


def test_recovery_needs_something_to_recover():
    assert recovery(0.5, 0.7, 0.9) == pytest.approx(0.5)
    assert recovery(0.9, 0.1, 0.905) is None
