"""What flows and students are trained by; every part works on any :class:`ConditionalFlow`."""

from .batchnorm import BatchStatistics, LayerStatistics, moments, normalization_layers
from .bidirectional import Bidirectional
from .contract import Batch, Objective, Terms
from .distill import Distill, Exact, cross_entropy, vary_contrast
from .divergences import DIVERGENCES, forward_kl, jensen_shannon, l1, reverse_kl
from .image_priors import BasePrior, GaussianPrior, Prior, SpectralPrior, TotalVariation
from .reverse_likelihood import ReverseLikelihood, dequantize

__all__ = [
    "DIVERGENCES",
    "BasePrior",
    "Batch",
    "BatchStatistics",
    "Bidirectional",
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
    "cross_entropy",
    "dequantize",
    "forward_kl",
    "jensen_shannon",
    "l1",
    "moments",
    "normalization_layers",
    "reverse_kl",
    "vary_contrast",
]
