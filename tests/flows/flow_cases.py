"""The table of flows that must obey the laws in `flow_laws.py`: a new flow adds one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from FrEIA.modules import (
    AffineCouplingOneSided,
    GINCouplingBlock,
    GLOWCouplingBlock,
    RNVPCouplingBlock,
)

from freia_kd.flows.bases import SpectralBase
from freia_kd.flows.blocks import DCT, AffineCoupling, ClassAffine, Conv1x1, Permute, Squeeze
from freia_kd.flows.compose import INN, Composition, INNFlow
from freia_kd.flows.contract import ConditionalFlow
from freia_kd.flows.glow import Glow
from freia_kd.flows.nice import NICE
from freia_kd.flows.realnvp import RealNVP
from freia_kd.flows.spline import NSF
from freia_kd.flows.squash import BoundedLogit, Linear, ShrunkLogit

CLASSES = 3


@dataclass(frozen=True)
class Case:
    """One row: a name, a constructor, and what the flow claims.

    Arguments:
        name: The name of the test.
        make: Makes the flow; the law tests perturb its parameters, and make it in float64.
        conditional: Whether the flow claims to depend on the class.
        identity: Whether the flow claims to be the identity from `z` to `u` at construction.
        spread: The standard deviation of the perturbation of its parameters.
        learns: Whether it has parameters.
        jacobian: To what autograd's Jacobian is exact; it rounds on the way through bfloat16.
    """

    name: str
    make: Callable[[], ConditionalFlow]
    conditional: bool = True
    identity: bool = True
    spread: float = 0.2
    learns: bool = True
    jacobian: float = 1e-8

    def fresh(self, seed: int = 0) -> ConditionalFlow:
        """The untrained flow in float64, its constants included."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return self.make()
        finally:
            torch.set_default_dtype(before)

    def perturbed(self, seed: int = 0) -> ConditionalFlow:
        """The flow with random parameters: an identity passes every law."""
        flow = self.fresh(seed)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in flow.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(self.spread * noise)
        return flow


def block(shape: tuple[int, ...], *appended, classes: int = CLASSES) -> INNFlow:
    """Blocks alone, as a flow over vectors, so that no squash hides their errors."""
    inn = INN([shape], classes=classes)
    for module_class, options in appended:
        inn.append(module_class, **options)
    return INNFlow(inn, (torch.Size(shape).numel(),), CLASSES)


def couplings(shape: tuple[int, ...], module_class, classes: int = CLASSES) -> INNFlow:
    inn = INN([shape], classes=classes).coupling(module_class, hidden_features=6)
    return INNFlow(inn, (torch.Size(shape).numel(),), CLASSES)


def step() -> INNFlow:
    """A step of Glow: the convolution, then the coupling that hands the labels over apart."""
    inn = INN([(4, 2, 2)], classes=CLASSES).append(Conv1x1, initial=LINEAR)
    inn.coupling(hidden_features=6).append(Conv1x1, initial=torch.linalg.inv(LINEAR))
    return INNFlow(inn, (16,), CLASSES)


def splines(shape: tuple[int, ...]) -> INNFlow:
    inn = INN([shape], classes=CLASSES).spline(bins=4, bound=3.0, hidden_features=6)
    return INNFlow(inn, (torch.Size(shape).numel(),), CLASSES)


def nested(classes: int = CLASSES) -> INNFlow:
    """Two scales of a composed net, with a spline on the inner one."""
    inner = INN([(4, 2, 2)], classes=classes).append(Squeeze).coupling(hidden_features=6)
    inner.spline(bins=4, hidden_features=6).append(Squeeze, undo=True)
    inn = INN([(2, 4, 4)], classes=classes).append(Squeeze).coupling(hidden_features=6)
    inn.split(inner).append(Conv1x1).append(Squeeze, undo=True)
    return INNFlow(inn, (2, 4, 4), CLASSES)


LINEAR = torch.tensor([[0.5, 1.0, 0.0, 0.2], [-1.0, 0.3, 0.1, 0.0], [0, 0, 0, 2.0], [0, 0, -1, 1]])
AFFINE = (ClassAffine, {"conditional": True, "classes": CLASSES})
small = {"hidden_features": 6}

ARCHITECTURES = [
    Case("nice-2d", partial(NICE, (2,), CLASSES, transforms=4, **small)),
    Case("nice-odd", partial(NICE, (5,), CLASSES, transforms=4, **small)),
    Case(
        "nice-spectral",
        lambda: NICE((1, 4, 4), CLASSES, SpectralBase((1, 4, 4)), transforms=4, **small),
    ),
    Case(
        "nice-bf16", partial(NICE, (5,), CLASSES, transforms=4, bf16=True, **small), jacobian=1e-3
    ),
    Case("glow-2d", partial(Glow, (2,), CLASSES, steps=3, **small)),
    Case("glow-image", partial(Glow, (1, 4, 4), CLASSES, levels=2, steps=2, **small), spread=0.15),
    Case(
        "glow-channels-first",
        partial(Glow, (1, 4, 4), CLASSES, steps=2, channels_last=False, **small),
        spread=0.15,
    ),
    Case(
        "glow-bf16",
        partial(Glow, (1, 4, 4), CLASSES, levels=2, steps=2, bf16=True, **small),
        spread=0.15,
        jacobian=1e-3,
    ),
    Case(
        "glow-whitened",
        lambda: Glow(
            (3, 4, 4), CLASSES, SpectralBase((3, 4, 4)), levels=1, steps=2, whiten=True, **small
        ),
        spread=0.1,
    ),
    Case("realnvp-2d", partial(RealNVP, (2,), CLASSES, **small)),
    Case(
        "realnvp-image",
        partial(RealNVP, (1, 4, 4), CLASSES, levels=2, checkerboard=1, channelwise=1, **small),
    ),
    Case("spline-2d", partial(NSF, (2,), CLASSES, transforms=3, bound=3.0, bins=5, **small)),
    Case("spline-image", partial(NSF, (1, 3, 3), CLASSES, transforms=2, bound=3.0, **small)),
    Case(
        "glow-halved",
        partial(Glow, (1, 4, 8), CLASSES, halvings=1, steps=1, levels=1, **small),
        spread=0.1,
    ),
    Case("glow-shrunk", partial(Glow, (1, 4, 4), CLASSES, squash="shrunk", steps=1, **small)),
    Case(
        "composition",
        lambda: Composition(NICE((4,), CLASSES, **small), NSF((4,), CLASSES, **small)),
    ),
    Case("composed", nested),
    Case("composed-unconditional", partial(nested, 0), conditional=False),
]

BLOCKS = [
    Case("affine-vector", partial(block, (4,), AFFINE)),
    Case("affine-image", partial(block, (2, 2, 3), AFFINE)),
    Case(
        "affine-alone", partial(block, (2, 2, 3), (ClassAffine, {}), classes=0), conditional=False
    ),
    Case("conv1x1-vector", partial(block, (4,), (Conv1x1, {})), conditional=False),
    Case("conv1x1-image", partial(block, (4, 2, 2), (Conv1x1, {})), conditional=False),
    Case(
        "conv1x1-initial",
        partial(block, (4, 2, 2), (Conv1x1, {"initial": LINEAR})),
        conditional=False,
        identity=False,
    ),
    Case("logit", partial(block, (4,), (BoundedLogit, {}), AFFINE), identity=False),
    Case("tailed", partial(block, (4,), (BoundedLogit, {"tail": 0.5}), AFFINE), identity=False),
    Case("shrunk", partial(block, (4,), (ShrunkLogit, {}), AFFINE), identity=False),
    Case("linear", partial(block, (4,), (Linear, {}), AFFINE), identity=False),
    Case("dct-vector", partial(block, (5,), (DCT, {}), AFFINE), identity=False),
    Case("dct-image", partial(block, (2, 3, 4), (DCT, {}), AFFINE), identity=False),
    Case(
        "permute",
        partial(block, (3,), (Permute, {"permutation": [2, 0, 1]}), AFFINE),
        identity=False,
    ),
    Case("one-sided", partial(couplings, (4,), AffineCouplingOneSided)),
    Case("coupling", partial(couplings, (5,), AffineCoupling)),
    Case("coupling-image", partial(couplings, (3, 2, 2), AffineCoupling)),
    Case("coupling-alone", partial(couplings, (4,), AffineCoupling, 0), conditional=False),
    Case("fused-step", step, identity=False),  # LINEAR is undone to float32 only
    Case("rnvp-image", partial(couplings, (2, 2, 2), RNVPCouplingBlock)),
    Case("gin", partial(couplings, (4,), GINCouplingBlock)),
    Case("glow-alone", partial(couplings, (4,), GLOWCouplingBlock, 0), conditional=False),
    Case("spline-vector", partial(splines, (3,))),
    Case("spline-convolved", partial(splines, (2, 2, 2))),
]
