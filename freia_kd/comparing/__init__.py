"""Methods side by side on one teacher: which makes the best students of it."""

from .evidence import Ranking, rank_methods
from .main import Comparison, compare

__all__ = ["Comparison", "Ranking", "compare", "rank_methods"]
