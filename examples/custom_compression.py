"""A method of compression of your own, in a file of your own: low ranks of what layers give. Here,

    freiakd distill --teacher ../lenet5.pt --method custom_compression:Responses

picks it up (`make demo` leaves that teacher); so does the entry-point group freia_kd.compressions.
"""

from dataclasses import dataclass

import torch
from torch import nn

from freia_kd.compression import Compressed, Compression, Plan
from freia_kd.compression.modules import candidates, hooked
from freia_kd.compression.tucker.plan import LayerPlan, no_gain_reason, restructure
from freia_kd.config import Share
from freia_kd.modes import evaluating


@dataclass(frozen=True)
class Responses(Compression):
    """Linear layers keep the principal components of their outputs (Zhang et al., 2015)."""

    energy: Share = 0.98  # of the sum of the squares of W x on the calibration set

    def apply(self, net, inputs, arch=""):
        layers, skipped = candidates(net)
        names = {m: name for name, m in layers.items() if isinstance(m, nn.Linear)}
        outputs, planned, bases = {}, {}, {}

        def watch(layer, x, _):
            outputs[names[layer]] = (x[0] @ layer.weight.T).flatten(0, -2).double()

        with evaluating(net), hooked(m.register_forward_hook(watch) for m in names):
            net(inputs)
        for name, y in outputs.items():
            squares, vectors = torch.linalg.eigh(y.T @ y)  # in ascending order
            rank = max(1, int((squares.cumsum(0) > (1 - self.energy) * squares.sum()).sum()))
            if reason := no_gain_reason(layers[name], plan := LayerPlan("svd", (rank,))):
                skipped[name] = reason
            else:
                planned[name], bases[name] = plan, vectors[:, -rank:]
        step = {"method": self.name, **Plan(planned, skipped).to_dict()}
        student = self.rebuild(net, step)
        for name, basis in bases.items():
            first, last = student.get_submodule(name)
            first.weight.data.copy_(basis.T @ layers[name].weight.data.double())
            last.weight.data.copy_(basis)
            if last.bias is not None:
                last.bias.data.copy_(layers[name].bias.data)
        return Compressed(student, step)

    @classmethod
    def rebuild(cls, net, step):
        return restructure(net, step)  # which checks what a file says

    @classmethod
    def describe(cls, step):
        return f"{len(step['layers'])} linear layers at lower ranks"
