"""A neural spline flow of zuko, unchanged, trained by the distill objective.

pip install freia_kd[zuko]
python examples/zuko_flow.py
"""

import zuko
from host_training import CLASSES, run

from freia_kd.flows import ConditionalFlow
from freia_kd.flows.adapters import as_conditional_flow


def make_flow() -> ConditionalFlow:
    flow = zuko.flows.NSF(features=2, context=CLASSES, transforms=3, hidden_features=(64, 64))
    return as_conditional_flow(flow, shape=(2,), classes=CLASSES)


if __name__ == "__main__":
    run(make_flow)
