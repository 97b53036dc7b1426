"""Flows of FrEIA, normflows, zuko and nflows as external flows, for the laws in `flow_laws.py`."""

from dataclasses import dataclass
from functools import partial

import FrEIA.framework as ff
import FrEIA.modules as fm
import nflows.distributions as nd
import nflows.flows
import nflows.transforms as nt
import normflows as nf
import torch
import zuko
from flow_cases import CLASSES, Case
from nflows.nn.nets import ConvResidualNet
from normflows.distributions.base import ConditionalDiagGaussian
from torch import nn

from freia_kd.flows.adapters import as_conditional_flow
from freia_kd.flows.squash import BoundedLogit


@dataclass(frozen=True)
class Guest(Case):
    """One row more: what the host's condition and base can do.

    Arguments:
        soft: Whether the flow takes soft labels.
        temperature: Whether its base takes a temperature.
    """

    identity: bool = False
    spread: float = 0.1
    soft: bool = True
    temperature: bool = True


def dense(c_in, c_out):
    return nn.Sequential(nn.Linear(c_in, 8), nn.Tanh(), nn.Linear(8, c_out))


def conv(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, c_out, 1))


GLOW = partial(dict, clamp=1.0, clamp_activation="TANH")


def freia_sequence(conditional=True):
    inn = ff.SequenceINN(2)
    options = {"cond": 0, "cond_shape": (CLASSES,)} if conditional else {}
    for _ in range(2):
        inn.append(fm.GLOWCouplingBlock, subnet_constructor=dense, **GLOW(), **options)
        inn.append(fm.PermuteRandom, seed=None)
    return as_conditional_flow(inn, (2,), CLASSES)


def freia_images():
    inn = ff.SequenceINN(2, 2, 2)
    cond = {"cond": 0, "cond_shape": (CLASSES, 2, 2)}
    inn.append(fm.GLOWCouplingBlock, subnet_constructor=conv, **GLOW(), **cond)
    inn.append(fm.Flatten)
    inn.append(fm.GLOWCouplingBlock, subnet_constructor=dense, **GLOW())
    squash = BoundedLogit([(2, 2, 2)])
    return as_conditional_flow(inn, (2, 2, 2), CLASSES, squash=squash)


def freia_graph():
    """Two conditions of different resolutions, two outputs."""
    image = ff.InputNode(4, 2, 2, name="x")
    plane, vector = ff.ConditionNode(CLASSES, 2, 2), ff.ConditionNode(CLASSES)
    first = ff.Node(
        image,
        fm.GLOWCouplingBlock,
        {"subnet_constructor": conv, **GLOW()},
        conditions=plane,
        name="first",
    )
    parts = ff.Node(first, fm.Split, {"section_sizes": [1, 3], "dim": 0}, name="parts")
    flat = ff.Node(parts.out1, fm.Flatten, {}, name="flat")
    last = ff.Node(
        flat,
        fm.GLOWCouplingBlock,
        {"subnet_constructor": dense, **GLOW()},
        conditions=vector,
        name="last",
    )
    other = ff.Node(parts.out0, fm.Flatten, {}, name="other")
    branch = ff.Node(
        other,
        fm.GLOWCouplingBlock,
        {"subnet_constructor": dense, **GLOW()},
        conditions=vector,
        name="branch",
    )
    nodes = [image, plane, vector, first, parts, flat, last, other, branch]
    nodes += [ff.OutputNode(last, name="z1"), ff.OutputNode(branch, name="z0")]
    return as_conditional_flow(ff.GraphINN(nodes), (4, 2, 2), CLASSES)


def freia_block():
    block = fm.GLOWCouplingBlock([(4,)], [(CLASSES,)], subnet_constructor=dense, **GLOW())
    embed = nn.Linear(CLASSES, CLASSES)
    return as_conditional_flow(block, (4,), CLASSES, condition=embed)


def normflows_coupling():
    net = partial(nf.nets.MLP, [1, 8, 2])
    permute = partial(nf.flows.Permute, 2, mode="swap")
    return [nf.flows.AffineCouplingBlock(net()), permute(), nf.flows.AffineCouplingBlock(net())]


def normflows_plain(base=None):
    base = base or nf.distributions.DiagGaussian(2)
    return as_conditional_flow(nf.NormalizingFlow(base, normflows_coupling()), (2,), CLASSES)


def normflows_mixture():
    return normflows_plain(
        nf.distributions.GaussianMixture(
            3, 2, loc=[[-1, 0], [1, 0], [0, 2]], scale=[[0.5, 0.7]] * 3
        )
    )


def normflows_conditional():
    flows = [
        nf.flows.MaskedAffineAutoregressive(2, 8, context_features=CLASSES),
        nf.flows.Permute(2, mode="swap"),
        nf.flows.AutoregressiveRationalQuadraticSpline(2, 1, 8, num_context_channels=CLASSES),
    ]
    base = ConditionalDiagGaussian(2, nn.Linear(CLASSES, 4))
    return as_conditional_flow(nf.ConditionalNormalizingFlow(base, flows), (2,), CLASSES)


def normflows_class_cond():
    base = nf.distributions.ClassCondDiagGaussian(2, CLASSES)
    return as_conditional_flow(nf.ClassCondFlow(base, normflows_coupling()), (2,), CLASSES)


def normflows_multiscale(class_cond=True):
    classes = CLASSES if class_cond else None
    bases = [nf.distributions.GlowBase(s, classes) for s in ((8, 1, 1), (2, 2, 2))]
    flows = [
        [nf.flows.GlowBlock(c, 4, leaky=0.1, use_lu=False), nf.flows.Squeeze()] for c in (8, 4)
    ]
    merges = [nf.flows.Merge()]
    host = nf.MultiscaleFlow(bases, flows, merges, class_cond=class_cond)
    for module in host.modules():  # its ActNorm waits for a first batch; the laws perturb it
        if isinstance(module, nf.flows.ActNorm):
            module.data_dep_init_done = torch.tensor(1.0)
    return as_conditional_flow(host, (1, 4, 4), CLASSES)


def zuko_spline():
    return as_conditional_flow(zuko.flows.NSF(2, CLASSES, transforms=2, bins=4), (2,), CLASSES)


def zuko_autoregressive():
    host = zuko.flows.MAF(3, CLASSES, transforms=2, hidden_features=(16,))
    return as_conditional_flow(host, (3,), CLASSES)


def zuko_coupling():
    host = zuko.flows.NICE(4, 2, transforms=2, hidden_features=(16,))
    return as_conditional_flow(host, (1, 2, 2), CLASSES, condition=nn.Linear(CLASSES, 2))


def zuko_unconditional():
    host = zuko.flows.NICE(2, transforms=2, hidden_features=(16,))
    return as_conditional_flow(host, (2,), CLASSES, condition=None)


def zuko_mixture_base():
    transform = zuko.flows.MAF(2, CLASSES, transforms=1, hidden_features=(16,)).transform
    host = zuko.flows.Flow(transform, zuko.flows.GMM(2, CLASSES, components=2))
    return as_conditional_flow(host, (2,), CLASSES)


def nflows_autoregressive(base=None):
    make = nt.MaskedAffineAutoregressiveTransform
    transforms = [make(2, 8, context_features=4), nt.ReversePermutation(2), make(2, 8, 4)]
    base = base or nd.ConditionalDiagonalNormal([2], nn.Linear(4, 4))
    host = nflows.flows.Flow(nt.CompositeTransform(transforms), base, nn.Linear(CLASSES, 4))
    return as_conditional_flow(host, (2,), CLASSES)


def nflows_trainable_base():
    return nflows_autoregressive(nd.DiagonalNormal([2]))


def nflows_mog_base():
    return nflows_autoregressive(nd.MADEMoG(2, 8, 4, num_mixture_components=2))


def nflows_embedding():
    host = nflows.flows.Flow(
        nt.MaskedAffineAutoregressiveTransform(3, 8, context_features=4),
        nd.StandardNormal([3]),
        nn.Embedding(CLASSES, 4),
    )
    return as_conditional_flow(host, (3,), CLASSES, condition="index")


def nflows_multiscale():
    """Latents come flattened, and nothing is conditional."""
    transform = nt.MultiscaleCompositeTransform(2)
    net = partial(ConvResidualNet, hidden_channels=4, num_blocks=1)
    hidden = transform.add_transform(nt.AffineCouplingTransform([1, 0, 1, 0], net), (4, 2, 2))
    transform.add_transform(nt.AffineCouplingTransform([0, 1], net), hidden)
    host = nflows.flows.Flow(transform, nd.StandardNormal([16]))
    return as_conditional_flow(host, (4, 2, 2), CLASSES, condition=None)


plain = {"conditional": False}
no_heat = {"temperature": False}

EXTERNAL = [
    Guest("freia-sequence", freia_sequence),
    Guest("freia-unconditional", partial(freia_sequence, conditional=False), **plain),
    Guest("freia-images", freia_images),
    Guest("freia-graph", freia_graph),
    Guest("freia-block", freia_block),
    Guest("normflows", normflows_plain, **plain),
    Guest("normflows-mixture", normflows_mixture, **plain, **no_heat),
    Guest("normflows-conditional", normflows_conditional, **no_heat),
    Guest("normflows-class-cond", normflows_class_cond),
    Guest("normflows-multiscale", normflows_multiscale),
    Guest("normflows-multiscale-plain", partial(normflows_multiscale, False), **plain),
    Guest("zuko-spline", zuko_spline),
    Guest("zuko-autoregressive", zuko_autoregressive),
    Guest("zuko-coupling", zuko_coupling),
    Guest("zuko-unconditional", zuko_unconditional, **plain),
    Guest("zuko-mixture-base", zuko_mixture_base, **no_heat),
    Guest("nflows-autoregressive", nflows_autoregressive),
    Guest("nflows-trainable-base", nflows_trainable_base),
    Guest("nflows-mog-base", nflows_mog_base, **no_heat),
    Guest("nflows-embedding", nflows_embedding, soft=False),
    Guest("nflows-multiscale", nflows_multiscale, **plain),
]
