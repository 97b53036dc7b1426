"""Methods side by side on one teacher: which makes the best students of it."""

from .main import ComparisonResult, compare, plan_comparison
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
    "plan_comparison",
    "rank_methods",
    "run_trials",
]
