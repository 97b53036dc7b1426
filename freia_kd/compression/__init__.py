"""Compression: methods that make a net smaller, and what they cost and save."""

from .batchnorm import batchnorm_layers, match_batchnorm
from .comparison import Comparison, compare_costs
from .cost import Latency, Speed, count_macs, count_parameters, measure_latencies
from .loading import load_classifier, load_teacher
from .method import (
    Compressed,
    Compression,
    Step,
    get_compression,
    method_of,
    original_state,
    rebuild,
)
from .prune import Prune
from .quantize import Quantize
from .tucker import Tucker
from .tucker.papers import student_plan
from .tucker.plan import Plan, apply_plan, make_plan, parse_ranks, read_rules

__all__ = [
    "Comparison",
    "Compressed",
    "Compression",
    "Latency",
    "Plan",
    "Prune",
    "Quantize",
    "Speed",
    "Step",
    "Tucker",
    "apply_plan",
    "batchnorm_layers",
    "compare_costs",
    "count_macs",
    "count_parameters",
    "get_compression",
    "load_classifier",
    "load_teacher",
    "make_plan",
    "match_batchnorm",
    "measure_latencies",
    "method_of",
    "original_state",
    "parse_ranks",
    "read_rules",
    "rebuild",
    "student_plan",
]
