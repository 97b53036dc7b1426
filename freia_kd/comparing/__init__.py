"""Methods side by side on one teacher: which makes the best students of it."""

from .main import ComparisonResult, compare
from .methods import Method, build_methods
from .ranking import rank_methods
from .runner import run_trials
from .trials import Trial, TrialOptions

__all__ = [
    "ComparisonResult",
    "Method",
    "Trial",
    "TrialOptions",
    "build_methods",
    "compare",
    "rank_methods",
    "run_trials",
]
