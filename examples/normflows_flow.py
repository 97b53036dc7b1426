"""A conditional flow of normflows, unchanged, trained by the distill objective.

    python examples/normflows_flow.py

normflows lacks a conditional affine coupling and a conditional Glow block: here are both, among its
own layers.
"""

import normflows as nf
from host_training import CLASSES, run

from freia_kd.flows import ConditionalFlow
from freia_kd.flows.adapters import as_conditional_flow
from freia_kd.flows.normflows_blocks import ConditionalAffineCoupling, ConditionalGlowBlock


def make_flow() -> ConditionalFlow:
    layers = [
        ConditionalGlowBlock((2,), context=CLASSES),
        nf.flows.CoupledRationalQuadraticSpline(2, 1, 32, num_context_channels=CLASSES),
        ConditionalAffineCoupling((2,), context=CLASSES),
        nf.flows.Permute(2, mode="swap"),
        ConditionalAffineCoupling((2,), context=CLASSES),
    ]
    base = nf.distributions.DiagGaussian(2, trainable=False)
    model = nf.ConditionalNormalizingFlow(base, layers)
    return as_conditional_flow(model, shape=(2,), classes=CLASSES)


if __name__ == "__main__":
    run(make_flow)
