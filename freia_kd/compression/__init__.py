"""Compression: ranks by EVBMF, low-rank layers, plans of which layers, and what they cost."""

from .cost import Latency, count_macs, count_parameters, measure_latencies, measure_latency
from .evbmf import EVBMF, evbmf, evbmf_rank
from .plans import LayerPlan, Plan, Skipped, make_plan, student_plan
from .surgery import apply_plan, restructure
from .tucker import evbmf_ranks, svd_linear, tucker2

__all__ = [
    "EVBMF",
    "Latency",
    "LayerPlan",
    "Plan",
    "Skipped",
    "apply_plan",
    "count_macs",
    "count_parameters",
    "evbmf",
    "evbmf_rank",
    "evbmf_ranks",
    "make_plan",
    "measure_latencies",
    "measure_latency",
    "restructure",
    "student_plan",
    "svd_linear",
    "tucker2",
]
