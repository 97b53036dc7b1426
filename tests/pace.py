"""Which of several like cases are in the quick suite."""

import pytest


def slow_but(first, names):
    """Names of which all but the first, or those in a tuple of them, are for the slow suite."""
    quick = first if isinstance(first, tuple) else (first,)
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]
