"""Compression: ranks by EVBMF, low-rank layers, plans of which layers, and what they cost."""

from .batchnorm import match_batchnorm, prepare_batchnorm, reestimate_batchnorm, train_mode
from .budget import Budget, search_plan
from .comparison import Comparison, compare_costs
from .cost import Latency, count_macs, count_parameters, measure_latencies, measure_latency
from .evbmf import EVBMF, evbmf_rank
from .methods import METHODS, Method, apply_methods, rebuild
from .plans import LayerPlan, Plan, Skipped, make_plan, read_rules, student_plan
from .recipe import Recipe, as_recipes, parse_ranks
from .sensitivity import Sensitivity, measure_sensitivity, plot_sensitivity
from .surgery import apply_plan, restructure
from .tucker import evbmf_ranks, svd_linear, tucker2

__all__ = [
    "EVBMF",
    "METHODS",
    "Budget",
    "Comparison",
    "Latency",
    "LayerPlan",
    "Method",
    "Plan",
    "Recipe",
    "Sensitivity",
    "Skipped",
    "apply_methods",
    "apply_plan",
    "as_recipes",
    "compare_costs",
    "count_macs",
    "count_parameters",
    "evbmf_rank",
    "evbmf_ranks",
    "make_plan",
    "match_batchnorm",
    "measure_latencies",
    "measure_latency",
    "measure_sensitivity",
    "parse_ranks",
    "plot_sensitivity",
    "prepare_batchnorm",
    "read_rules",
    "rebuild",
    "reestimate_batchnorm",
    "restructure",
    "search_plan",
    "student_plan",
    "svd_linear",
    "train_mode",
    "tucker2",
]
