"""A network of FrEIA, built the way FrEIA's own tutorial does, trained by the distill objective.

python examples/freia_flow.py
"""

import FrEIA.framework as ff
import FrEIA.modules as fm
from host_training import CLASSES, run
from torch import nn

from freia_kd.flows import ConditionalFlow
from freia_kd.flows.adapters import as_conditional_flow


def subnet(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(c_in, 64), nn.ReLU(), nn.Linear(64, c_out))


def make_flow() -> ConditionalFlow:
    inn = ff.SequenceINN(2)
    for _ in range(4):
        inn.append(
            fm.GLOWCouplingBlock,
            cond=0,
            cond_shape=(CLASSES,),
            subnet_constructor=subnet,
            clamp=1.0,
        )
    return as_conditional_flow(inn, shape=(2,), classes=CLASSES)


if __name__ == "__main__":
    run(make_flow)
