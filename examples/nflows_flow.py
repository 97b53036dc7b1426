"""A masked autoregressive flow of nflows, unchanged, trained by the distill objective.

pip install freia_kd[nflows]
python examples/nflows_flow.py
"""

from host_training import CLASSES, run
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    ReversePermutation,
)
from torch import nn

from freia_kd.flows import ConditionalFlow
from freia_kd.flows.adapters import as_conditional_flow


def make_flow() -> ConditionalFlow:
    transforms = []
    for _ in range(5):
        transforms.append(MaskedAffineAutoregressiveTransform(2, 32, context_features=4))
        transforms.append(ReversePermutation(2))
    # The class as an index, through the flow's own embedding net.
    embedding = nn.Embedding(CLASSES, 4)
    flow = Flow(CompositeTransform(transforms), StandardNormal([2]), embedding)
    return as_conditional_flow(flow, shape=(2,), classes=CLASSES, condition="index")


if __name__ == "__main__":
    run(make_flow)
