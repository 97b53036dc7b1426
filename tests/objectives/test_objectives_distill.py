import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from tiny_flows import IMAGE, Sigmoid, TinyFlow, make_teacher

from freia_kd.flows.bases import GaussianBase
from freia_kd.objectives import (
    BasePrior,
    Batch,
    Bidirectional,
    Distill,
    Exact,
    GaussianPrior,
    ReverseLikelihood,
    TotalVariation,
    cross_entropy,
    dequantize,
    vary_contrast,
)


def log_volume(flow, z, c):
    """log|det dx/dz| of each sample, from autograd's Jacobian."""
    volumes = []
    for i in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=i: flow.decode(v[None], c[i : i + 1])[0][0], z[i]
        )
        dims = z[i].numel()
        volumes.append(torch.linalg.slogdet(jacobian.reshape(dims, dims))[1].item())
    return np.array(volumes)


def expected_cls(flow, teacher, batch, temperature=1.0):
    logits = teacher(flow.decode(batch.z, batch.c)[0]).detach().numpy() / temperature
    return -log_softmax(logits, 1)[np.arange(len(logits)), batch.c.numpy()].mean()


def expected_batchnorm(teacher, x):
    total, value = 0.0, x
    for layer in teacher:
        if hasattr(layer, "running_mean"):
            channels = np.moveaxis(value.detach().numpy(), 1, 0).reshape(value.shape[1], -1)
            total += np.linalg.norm(channels.mean(1) - layer.running_mean.numpy())
            total += np.linalg.norm(channels.var(1) - layer.running_var.numpy())
        value = layer(value)
    return total


def test_distill_is_eq_4_to_7(flow, teacher, batch):
    terms = dict(Distill(alpha=0.3, beta=0.7)(flow, teacher, batch).items())
    x = flow.decode(batch.z, batch.c)[0]
    assert list(terms) == ["cls", "volume", "batchnorm"]
    np.testing.assert_allclose(terms["cls"].item(), expected_cls(flow, teacher, batch))
    volume = log_volume(flow, batch.z, batch.c).mean()
    np.testing.assert_allclose(terms["volume"].item(), -0.3 * volume)
    np.testing.assert_allclose(terms["batchnorm"].item(), 0.7 * expected_batchnorm(teacher, x))


def test_volume_per_dimension(flow, plain_teacher, batch):
    terms = dict(Distill(alpha=0.3, volume="dimension")(flow, plain_teacher, batch).items())
    expected = -0.3 * log_volume(flow, batch.z, batch.c).mean() / math.prod(flow.shape)
    np.testing.assert_allclose(terms["volume"].item(), expected)


def test_temperature_and_soft_labels(flow, plain_teacher, batch):
    objective = Distill(temperature=3.0)
    hard = dict(objective(flow, plain_teacher, batch).items())["cls"]
    np.testing.assert_allclose(hard.item(), expected_cls(flow, plain_teacher, batch, 3.0))

    soft = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).expand(6, 3)
    mixed = dict(objective(flow, plain_teacher, replace(batch, c=soft)).items())["cls"]
    logits = plain_teacher(flow.decode(batch.z, soft)[0]).detach().numpy() / 3
    np.testing.assert_allclose(mixed.item(), -(soft.numpy() * log_softmax(logits, 1)).sum(1).mean())


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_no_batchnorm_term_without_layers_or_weight(flow, teacher, plain_teacher, batch, beta):
    chosen = plain_teacher if beta else teacher
    terms = Distill(beta=beta)(flow, chosen, batch)
    assert [name for name, _ in terms.items()] == ["cls", "volume"]


def test_prior_term(flow, plain_teacher, batch):
    base = GaussianBase(flow.shape).double()
    terms = Distill(prior=BasePrior(base), prior_weight=0.4)(flow, plain_teacher, batch)
    u, _ = flow.decode_unbounded(batch.z, batch.c)
    x = flow.to_input(u)[0].detach()
    # log p_X from x alone: N(logit(x)) / (x (1 - x)) for images, N(x) for vectors
    u, log_slope = (x, 0 * x) if flow.squash is None else (x.logit(), (x * (1 - x)).log())
    log_prob = (-0.5 * u**2 - 0.5 * math.log(2 * math.pi) - log_slope).flatten(1).sum(1)
    np.testing.assert_allclose(dict(terms.items())["prior"].item(), -0.4 * log_prob.mean().item())


def test_total_is_the_sum(flow, teacher, batch):
    terms = Distill(prior=BasePrior())(flow, teacher, batch)
    total = sum(term.item() for _, term in terms.items())
    np.testing.assert_allclose(terms.total.item(), total)


OBJECTIVES = {
    "distill": Distill(),
    "prior": Distill(prior=BasePrior()),
    "dimension": Distill(volume="dimension", contrast=(1.0, 2.0)),
    "exact": Exact(),
    "reverse": ReverseLikelihood(),
    "bidirectional": Bidirectional(),
    "bidirectional-exact": Bidirectional(Exact(), gamma=0.1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_reach_every_flow_parameter_and_no_other(name, flow, teacher, batch):
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    OBJECTIVES[name](flow, teacher, batch).total.backward()
    for parameter in flow.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in teacher.modules())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_is_that_of_the_total(name, flow, teacher, batch):
    """The gradient of one parameter against a central difference, with the same random numbers."""
    state = batch.generator.get_state()

    def loss():
        batch.generator.set_state(state)
        return OBJECTIVES[name](flow, teacher, batch).total

    loss().backward()
    gradient, step = flow.scale.grad[1, 0].item(), 1e-5
    with torch.no_grad():
        flow.scale[1, 0] += step
        above = loss().item()
        flow.scale[1, 0] -= 2 * step
        below = loss().item()
    np.testing.assert_allclose(gradient, (above - below) / (2 * step), rtol=1e-5, atol=1e-8)


def test_exact_is_distill_with_a_base_prior_plus_constants(flow, plain_teacher, batch):
    distill = Distill(alpha=1.0, prior=BasePrior())(flow, plain_teacher, batch)
    constants = -math.log(3) + flow.base.log_prob(batch.z).mean().item()
    total = Exact()(flow, plain_teacher, batch).total.item()
    np.testing.assert_allclose(total, distill.total.item() + constants)


def test_exact_is_a_divergence_between_joint_densities():
    """KL(p(y) q(x|y) || p_0(x) p_T(y|x)), the expectation against an integral over x."""
    flow, teacher = TinyFlow(classes=2).double(), make_teacher((2,), classes=2, normalized=False)
    edges = torch.linspace(-4, 4, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(edges, edges)
    divergence = 0.0
    for y in range(2):
        log_q = flow.log_prob(grid, torch.full((len(grid),), y))
        log_p = GaussianBase((2,)).double().log_prob(grid) + teacher(grid).log_softmax(1)[:, y]
        integrand = 0.5 * log_q.exp() * (math.log(0.5) + log_q - log_p)
        divergence += integrand.sum().item() * (8 / 400) ** 2

    # A lattice that is equidistributed under the base stands for the expectation over z.
    steps = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    z = torch.cartesian_prod(*[torch.special.ndtri(steps)] * 2).repeat(2, 1)
    c = torch.arange(2).repeat_interleave(len(z) // 2)
    total = Exact()(flow, teacher, Batch(z, c)).total.item()
    assert divergence > 0.1
    np.testing.assert_allclose(total, divergence, rtol=5e-3)


def test_exact_is_zero_at_the_optimum():
    flow, batch_z = TinyFlow(classes=2).double(), torch.randn(64, 2, dtype=torch.float64)
    flow.decode_unbounded = lambda z, c: (z, z.new_zeros(len(z)))
    undecided = lambda x: x.new_zeros(len(x), 2)  # noqa: E731
    total = Exact()(flow, undecided, Batch(batch_z, torch.arange(64) % 2)).total
    assert abs(total.item()) < 1e-12


def test_exact_survives_saturated_pixels(batch):
    """In float32 x is 0 or 1 here, and a prior evaluated at x would be infinite."""
    flow, teacher = TinyFlow(IMAGE, squash=Sigmoid()), make_teacher(IMAGE).float()
    with torch.no_grad():
        flow.shift += 1e12
    z = torch.randn(6, *IMAGE, generator=torch.Generator().manual_seed(0))
    loss = Exact()(flow, teacher, replace(batch, z=z)).total
    loss.backward()
    assert flow.decode(z, batch.c)[0].eq(1).any()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in flow.parameters())


def test_sharpness_multiplies_the_teacher(flow, plain_teacher, batch):
    one = dict(Exact()(flow, plain_teacher, batch).items())
    two = dict(Exact(sharpness=2.0)(flow, plain_teacher, batch).items())
    np.testing.assert_allclose(two.pop("cls").item(), 2 * one.pop("cls").item())
    assert {k: v.item() for k, v in one.items()} == {k: v.item() for k, v in two.items()}


def test_reverse_is_the_density_of_pixels(flow, teacher, batch):
    """log p(x) = log N(z) - log|det dx/dz|, the second from autograd at the dequantised samples."""
    state = batch.generator.get_state()
    loss = ReverseLikelihood()(flow, teacher, batch).total.item()
    x = batch.x
    if len(flow.shape) == 3:
        noise = torch.rand(x.shape, generator=batch.generator.set_state(state), dtype=torch.float64)
        x = (x * 255 + noise) / 256
    z = flow.encode(x, batch.y)[0].detach()
    log_prob = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1).numpy()
    np.testing.assert_allclose(loss, -(log_prob - log_volume(flow, z, batch.y)).mean())


def test_noise_smooths_vectors(teacher, batch):
    flow = TinyFlow().double()
    batch = replace(batch, x=torch.zeros(5000, 2, dtype=torch.float64), y=torch.arange(5000) % 3)
    seen = []
    flow.log_prob = lambda x, y: seen.append(x) or x.sum(1)
    ReverseLikelihood(noise=0.3)(flow, teacher, batch)
    ReverseLikelihood()(flow, teacher, batch)
    np.testing.assert_allclose(seen[0].std(0), 0.3, rtol=0.05)
    assert torch.equal(seen[1], batch.x)
    with pytest.raises(ValueError, match="noise of at least 0"):
        ReverseLikelihood(noise=-1.0)


def test_bidirectional_is_eq_9(flow, teacher, batch):
    state = batch.generator.get_state()
    both = dict(Bidirectional(Distill(), gamma=0.25)(flow, teacher, batch).items())
    batch.generator.set_state(state)
    reverse = ReverseLikelihood()(flow, teacher, batch).total.item()
    distill = dict(Distill()(flow, teacher, batch).items())
    assert list(both) == ["cls", "volume", "batchnorm", "reverse"]
    np.testing.assert_allclose(both["reverse"].item(), 0.25 * reverse)
    assert all(both[name].item() == distill[name].item() for name in distill)


def test_dequantize_keeps_levels():
    levels = torch.arange(256, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    spread = torch.stack([dequantize(levels / 255, generator) for _ in range(50)])
    assert torch.equal((spread * 256 + 1e-9).floor(), levels.expand(50, 256))
    offsets = spread * 256 - levels
    assert 0.48 < offsets.mean() < 0.52
    assert offsets.max() > 0.99


def test_contrast_is_a_factor_per_image_around_grey(flow, plain_teacher, batch):
    seen = []
    plain_teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for _ in range(2):
        batch.generator.manual_seed(5)
        Distill(contrast=(1.0, 2.0))(flow, plain_teacher, batch)
    x = flow.decode(batch.z, batch.c)[0]
    factors = ((seen[0] - 0.5) / (x - 0.5)).flatten(1)
    assert torch.allclose(factors, factors[:, :1])
    assert 1 <= factors.min() < factors.max() <= 2
    assert torch.equal(seen[0], seen[1])
    assert factors[:, 0].unique().numel() == len(factors)


def test_contrast_of_one_changes_nothing():
    x = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    assert torch.allclose(vary_contrast(x, 1.0, 1.0), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Distill(alpha=-1.0), "alpha, beta and prior_weight of at least 0"),
        (lambda: Distill(temperature=0.0), "positive temperature"),
        (lambda: Distill(volume="pixel"), "'image' or 'dimension'; got 'pixel'"),
        (lambda: Distill(contrast=(2.0, 1.0)), "contrast"),
        (lambda: Exact(sharpness=0.0), "sharpness"),
        (lambda: Bidirectional(gamma=-1.0), "gamma"),
        (lambda: GaussianPrior(std=0.0), "positive std"),
    ],
)
def test_senseless_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_misfits_are_refused_before_the_teacher_is_asked(flow, batch):
    def never(x):
        raise AssertionError

    for objective in (Distill(), Exact()):
        with pytest.raises(ValueError, match="Expected values with shape"):
            objective(flow, never, replace(batch, z=batch.z[..., :1]))
        with pytest.raises(ValueError, match="Expected class indices"):
            objective(flow, never, replace(batch, c=batch.c[:3]))


def test_teacher_of_other_classes_is_refused(flow, batch):
    with pytest.raises(ValueError, match=r"logits with shape \(6, 3\).*got \(6, 4\)"):
        Distill()(flow, make_teacher(flow.shape, classes=4), batch)
    with pytest.raises(ValueError, match="same classes"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4))


def test_samples_are_asked_for(flow, teacher, batch):
    with pytest.raises(ValueError, match=r"Expected real samples"):
        Bidirectional()(flow, teacher, replace(batch, x=None))


def test_image_priors_refuse_vectors():
    flow = TinyFlow().double()
    z = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="Expected images with shape"):
        TotalVariation()(flow, z, z, z.sum(1))
