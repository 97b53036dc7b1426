"""What flows and students are trained by; every part works on any :class:`ConditionalFlow`."""

from ..ranks import moments
from .activation_boundaries import ActivationBoundaries, boundary_layers
from .batchnorm import BatchStatistics, LayerStatistics, normalization_layers
from .bidirectional import Bidirectional
from .contract import Batch, Objective, Terms
from .distill import Distill, Exact, cross_entropy, vary_contrast
from .divergences import (
    DIVERGENCES,
    centred_l1,
    centred_mse,
    forward_kl,
    jensen_shannon,
    l1,
    reverse_kl,
)
from .image_priors import BasePrior, GaussianPrior, Prior, SpectralPrior, TotalVariation
from .monitors import Diagnostics, diagnose, diagnose_flow, not_finite
from .reverse_likelihood import ReverseLikelihood, dequantize

__all__ = [
    "DIVERGENCES",
    "ActivationBoundaries",
    "BasePrior",
    "Batch",
    "BatchStatistics",
    "Bidirectional",
    "Diagnostics",
    "Distill",
    "Exact",
    "GaussianPrior",
    "LayerStatistics",
    "Objective",
    "Prior",
    "ReverseLikelihood",
    "SpectralPrior",
    "Terms",
    "TotalVariation",
    "boundary_layers",
    "centred_l1",
    "centred_mse",
    "cross_entropy",
    "dequantize",
    "diagnose",
    "diagnose_flow",
    "forward_kl",
    "jensen_shannon",
    "l1",
    "moments",
    "normalization_layers",
    "not_finite",
    "reverse_kl",
    "vary_contrast",
]
