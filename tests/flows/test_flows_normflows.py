"""Layers for normflows: the laws, normflows' conventions, and its models around them."""

from functools import partial

import flow_laws
import FrEIA.modules as fm
import normflows as nf
import pytest
import torch
from flow_cases import CLASSES, Case
from flow_laws import LABELS, LAWS, close
from torch import nn

from freia_kd.flows.adapters import as_conditional_flow
from freia_kd.flows.blocks import ClassAffine, Squeeze
from freia_kd.flows.normflows_blocks import (
    ConditionalAffineCoupling,
    ConditionalGlowBlock,
    FreiaLayer,
)


def model(shape, *layers, conditional=True):
    """Layers in a model of normflows, as a conditional flow, so that all laws can be asked."""
    base = nf.distributions.DiagGaussian(shape, trainable=False)
    kind = nf.ConditionalNormalizingFlow if conditional else nf.NormalizingFlow
    return as_conditional_flow(kind(base, list(layers)), shape, CLASSES)


def coupling(shape, context=CLASSES, **options):
    return ConditionalAffineCoupling(shape, context, hidden_features=6, **options)


def couplings(shape, context=CLASSES):
    permute = nf.flows.Permute(shape[0], mode="swap")
    layers = coupling(shape, context), permute, coupling(shape, context)
    return model(shape, *layers, conditional=bool(context))


def glow(shape, context=CLASSES):
    layers = [ConditionalGlowBlock(shape, context, hidden_features=6) for _ in range(2)]
    return model(shape, *layers, conditional=bool(context))


def two_scales():
    """Squeezed by a FrEIA block: normflows' own Squeeze takes no context."""
    squeeze = FreiaLayer(Squeeze([(1, 4, 4)]))
    inner = ConditionalGlowBlock((4, 2, 2), CLASSES, hidden_features=6)
    base = nf.distributions.DiagGaussian((4, 2, 2), trainable=False)
    flow = nf.ConditionalNormalizingFlow(base, [inner, squeeze])
    return as_conditional_flow(flow, (1, 4, 4), CLASSES)


def wide_context():
    """More features than a plane has pixels."""
    flow = nf.ConditionalNormalizingFlow(
        nf.distributions.DiagGaussian((2, 2, 2), trainable=False),
        [ConditionalGlowBlock((2, 2, 2), 7, hidden_features=6)],
    )
    return as_conditional_flow(flow, (2, 2, 2), CLASSES, condition=nn.Linear(CLASSES, 7))


def mixed():
    """Among layers of normflows that take a context of their own."""
    spline = nf.flows.AutoregressiveRationalQuadraticSpline
    layers = coupling((2,)), spline(2, 1, 8, num_context_channels=CLASSES)
    return model((2,), *layers)


CASES = [
    Case("coupling-2d", partial(couplings, (2,)), identity=False),
    Case("coupling-alone", lambda: model((4,), coupling((4,)))),
    Case("coupling-odd", partial(couplings, (3,)), identity=False),
    Case("coupling-image", partial(couplings, (2, 2, 2)), identity=False),
    Case("coupling-plain", partial(couplings, (2,), 0), identity=False, conditional=False),
    Case("glow-2d", partial(glow, (2,)), identity=False),
    Case("glow-image", partial(glow, (4, 2, 2)), identity=False),
    Case("glow-plain", partial(glow, (4, 2, 2), 0), identity=False, conditional=False),
    Case("two-scales", two_scales, identity=False),
    Case("wide-context", wide_context, identity=False),
    Case("among-normflows", mixed, identity=False, spread=0.1),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_laws_in_a_model_of_normflows(case, law):
    law(case)


@pytest.mark.parametrize("make", [coupling, ConditionalGlowBlock], ids=["coupling", "glow"])
def test_the_identity_is_no_excuse(make):
    """A perturbed layer changes the volume, or the laws of log-determinants say nothing."""
    case = Case("", lambda: model((4,), make((4,), CLASSES)))
    flow = case.perturbed()
    assert flow.encode(flow_laws.latents(flow), LABELS)[1].abs().max() > 0.05


def perturbed(layer):
    generator = torch.Generator().manual_seed(0)
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.2 * noise)
    return layer


def test_forward_is_from_latents_to_data():
    """normflows' forward is FrEIA's reverse, with the log-determinant of what was evaluated."""
    block = fm.GLOWCouplingBlock([(4,)], [(3,)], subnet_constructor=nn.Linear)
    layer = perturbed(FreiaLayer(block, context=3))
    z = flow_laws.latents(model((4,)))
    soft = nn.functional.one_hot(LABELS, 3).double()
    x, log_det = layer(z, LABELS)
    (expected,), expected_log_det = block([z], c=[soft], rev=True)
    close(x, expected)
    close(log_det, expected_log_det)
    close(layer.inverse(x, context=soft)[0], z)


def test_the_first_half_passes_unchanged():
    layer = perturbed(coupling((5,)))
    z = flow_laws.latents(model((5,)))
    x, _ = layer(z, LABELS)
    assert torch.equal(x[:, :2], z[:, :2])
    assert (x[:, 2:] != z[:, 2:]).all()


@pytest.mark.parametrize("clamp", [0.3, 1.0])
def test_the_clamp_bounds_the_volume(clamp):
    layer = coupling((4,), clamp=clamp)
    nn.init.constant_(layer.block.subnet.last.bias, 1000.0)
    z = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    close(layer(z, LABELS)[1], torch.full((4,), -2 * clamp), 1e-6)
    close(layer.inverse(z, LABELS)[1], torch.full((4,), 2 * clamp), 1e-6)


def test_constant_log_determinants_get_the_shape_of_the_batch():
    """FrEIA's Flatten returns a plain 0."""
    x, log_det = FreiaLayer(fm.Flatten([(2, 2, 2)]))(torch.ones(3, 8))
    assert x.shape == (3, 2, 2, 2)
    assert torch.equal(log_det, torch.zeros(3))


def test_models_without_a_condition_take_them_too():
    """normflows' multi-scale model gives its layers no context at all."""
    glow = partial(ConditionalGlowBlock, context=0, hidden_features=6)
    flow = nf.MultiscaleFlow(
        [nf.distributions.DiagGaussian(s) for s in ((8, 1, 1), (2, 2, 2))],
        [[glow((8, 1, 1)), nf.flows.Squeeze()], [glow((4, 2, 2)), nf.flows.Squeeze()]],
        [nf.flows.Merge()],
        class_cond=False,
    )
    x, log_q = perturbed(flow).sample(5)
    assert x.shape == (5, 1, 4, 4)
    close(flow.log_prob(x, None), log_q)


def test_a_conditional_density_is_learned():
    """By normflows' own loss: each class has its own mean, which an unconditional flow misses."""
    torch.manual_seed(0)
    flow = nf.ConditionalNormalizingFlow(
        nf.distributions.DiagGaussian(2, trainable=False),
        [ConditionalGlowBlock((2,), CLASSES, hidden_features=16) for _ in range(3)],
    )
    c = torch.arange(300) % CLASSES
    means = 3 * torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    x = means[c] + 0.5 * torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    for _ in range(80):
        optimizer.zero_grad()
        loss = flow.forward_kld(x, context=c)
        loss.backward()
        optimizer.step()
    entropy = 2 * (0.5 + 0.5 * torch.log(torch.tensor(2 * torch.pi * 0.25)))
    assert loss.item() < entropy + 0.35  # 1.1 more, log 3, without the condition
    samples, _ = flow.sample(300, context=c)
    for label in range(CLASSES):
        assert (samples[c == label].mean(0) - means[label]).norm() < 0.5


@pytest.mark.parametrize("make", [coupling, ConditionalGlowBlock], ids=["coupling", "glow"])
@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, r"Expected a context with shape \(4, 3\).*got None"),
        (torch.zeros(4, 5), r"got \(4, 5\)"),
        (torch.zeros(3, 3), r"got \(3, 3\)"),
        (torch.zeros(4), r"got \(4,\)"),
    ],
)
def test_a_wrong_context_is_named(make, context, message):
    layer = make((4,), 3)
    for call in (layer, layer.inverse):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(4, 4), context)


def test_what_cannot_be_coupled_is_named():
    with pytest.raises(ValueError, match="at least two channels"):
        coupling((1, 4, 4))
    with pytest.raises(ValueError, match="one input and 1 conditions"):
        FreiaLayer(ClassAffine([(2,)]), context=3)
    with pytest.raises(ValueError, match="one input and 0 conditions"):
        FreiaLayer(ClassAffine([(2,)], [(3,)], classes=3))


def test_layers_compile_into_one_graph():
    layer = perturbed(ConditionalGlowBlock((4, 2, 2), CLASSES, hidden_features=6))
    z = flow_laws.latents(model((4, 2, 2)))
    context = nn.functional.one_hot(LABELS, CLASSES).double()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for one, two in zip(compiled(z, context), layer(z, context), strict=True):
        close(one, two)
    if flow_laws.CAN_EXPORT:
        exported = torch.export.export(layer, (z, context)).module()
        close(exported(z, context)[0], layer(z, context)[0])
