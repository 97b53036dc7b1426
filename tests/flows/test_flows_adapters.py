"""Flows of FrEIA, normflows, zuko and nflows adapted: laws of conditional flows, and traps."""

import sys
from importlib import import_module

import flow_laws
import FrEIA.framework as ff
import FrEIA.modules as fm
import nflows.distributions as nd
import normflows as nf
import pytest
import torch
import zuko
from external_cases import CLASSES, EXTERNAL, GLOW, dense
from flow_laws import LABELS, close, inputs, latents
from torch import nn

from freia_kd.flows.adapters import as_conditional_flow, as_distribution
from freia_kd.flows.adapters.common import as_log_det, join, split
from freia_kd.flows.adapters.normflows import as_normflows
from freia_kd.flows.bases import GaussianBase

BY_NAME = {case.name: case for case in EXTERNAL}
PLANE = [case for case in EXTERNAL if case.fresh().shape == (2,)]
every = pytest.mark.parametrize("case", EXTERNAL, ids=lambda case: case.name)
plane = pytest.mark.parametrize("case", PLANE, ids=lambda case: case.name)

# The others are about bases without a class and soft labels, see below for those of external flows.
LAWS = [
    flow_laws.round_trip,
    flow_laws.log_det_of_decode,
    flow_laws.log_det_of_encode,
    flow_laws.saving_keeps_log_prob,
    flow_laws.copies_are_equal,
    flow_laws.freezing_changes_nothing,
    flow_laws.train_equals_eval,
    flow_laws.rows_do_not_depend_on_the_batch,
]


def seed(n=0):
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@every
def test_laws_of_external_flows(case, law):
    law(case)


@every
def test_the_volume_changes(case):
    """Or the laws of log-determinants say nothing."""
    flow = case.perturbed()
    assert flow.encode(inputs(flow), LABELS)[1].abs().max() > 0.02


def integral(log_density, power=lambda log_p: 1.0):
    """Of a density over the plane, on a grid that is dense at 0 and reaches far (x = sinh t)."""
    t = torch.linspace(-7, 7, 151, dtype=torch.float64)
    x = torch.cartesian_prod(t.sinh(), t.sinh())
    weight = torch.cartesian_prod(t.cosh(), t.cosh()).prod(1) * (t[1] - t[0]) ** 2
    with torch.no_grad():
        log_p = log_density(x, torch.full((len(x),), 1))
    inside = log_p > -torch.inf
    assert not log_p.isnan().any()
    return (log_p.exp() * power(log_p) * weight)[inside].sum().item()


@plane
def test_density_integrates_to_one(case):
    assert integral(case.perturbed().log_prob) == pytest.approx(1, abs=5e-3)


@every
def test_every_parameter_learns(case):
    """From likelihoods and from samples, those of the base included."""
    flow = case.perturbed()
    z = latents(flow)
    x, ladj = flow.decode(z, LABELS)
    sampled = x.square().sum() - ladj.sum() - flow.base_log_prob(z, LABELS).sum()
    for loss in (flow.log_prob(inputs(flow), LABELS).sum(), sampled):
        flow.zero_grad()
        loss.backward()
        dead = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
        assert dead == []


@every
def test_condition_counts_if_there_is_one(case):
    flow = case.perturbed()
    x, others = inputs(flow), (LABELS + 1) % CLASSES
    changed = (flow.log_prob(x, LABELS) - flow.log_prob(x, others)).abs() > 1e-4
    assert changed.all() if case.conditional else not changed.any()


@every
def test_soft_labels(case):
    flow = case.perturbed()
    x, soft = inputs(flow), nn.functional.one_hot(LABELS, CLASSES).double()
    if case.soft:
        close(flow.log_prob(x, soft), flow.log_prob(x, LABELS))
    else:
        with pytest.raises(ValueError, match="Expected class indices"):
            flow.log_prob(x, soft)


@every
def test_nothing_is_stored_twice(case):
    """safetensors refuses tensors that share memory."""
    tensors = [t.data_ptr() for t in case.fresh().state_dict().values()]
    assert len(set(tensors)) == len(tensors)


@every
def test_samples_come_from_the_generator(case):
    flow = case.fresh().float()
    c = torch.arange(60) % CLASSES
    state = torch.random.get_rng_state()
    first = flow.sample(c, generator=seed(3))
    assert torch.equal(first, flow.sample(c, generator=seed(3)))
    assert not torch.equal(first, flow.sample(c, generator=seed(4)))
    flow.base.sample(5, generator=seed(3))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.shape == (60, *flow.shape)
    assert first.dtype == torch.float32


@every
def test_temperature(case):
    flow = case.fresh().float()
    c = torch.zeros(400, dtype=torch.long)
    if not case.temperature:
        with pytest.raises(ValueError, match="Expected temperature 1 for the base"):
            flow.sample_base(c, temperature=0.5)
        return
    wide = flow.sample_base(c, temperature=1.0, generator=seed(3))
    before = flow.base_log_prob(wide, c)
    narrow = flow.sample_base(c, temperature=0.25, generator=seed(3))
    assert torch.equal(flow.base_log_prob(wide, c), before)  # the host is left at its own
    close(narrow.std(0), 0.25 * wide.std(0), 1e-6)


@plane
def test_base_samples_follow_the_base_density(case):
    """The mean of log p under its own samples is minus the entropy, here by integration."""
    flow = case.perturbed()
    negentropy = integral(flow.base_log_prob, power=lambda log_p: log_p)
    c = torch.full((5000,), 1)
    with torch.no_grad():
        log_p = flow.float().base_log_prob(flow.sample_base(c, generator=seed(5)), c)
    assert log_p.mean().item() == pytest.approx(negentropy, abs=4 * log_p.std().item() / 5000**0.5)


@every
def test_a_base_without_condition_is_the_mixture_of_classes(case):
    flow = case.perturbed()
    z = inputs(flow)
    each = [flow.base_log_prob(z, torch.full((len(z),), k)) for k in range(CLASSES)]
    expected = torch.stack(each).logsumexp(0) - torch.tensor(3.0).log()
    close(flow.base.log_prob(z), expected)


@every
def test_training_the_adapter_trains_the_external_flow(case):
    flow = case.fresh().float()
    host = {id(p) for p in flow.flow.parameters()}
    assert host <= {id(p) for p in flow.parameters()}


# Traps of single libraries


@pytest.mark.parametrize(
    "ladj", [2, 2.0, torch.tensor(2.0), torch.full((1,), 2.0), torch.full((4,), 2.0)]
)
def test_log_determinants_of_any_form(ladj):
    assert torch.equal(as_log_det(ladj, torch.zeros(4, 2)), torch.full((4,), 2.0))


@pytest.mark.parametrize("shape", [(4, 1), (3,), (4, 2)])
def test_log_determinants_of_other_forms_are_refused(shape):
    with pytest.raises(ValueError, match="Expected a log-determinant with shape"):
        as_log_det(torch.zeros(shape), torch.zeros(4, 2))


def test_log_determinants_are_float32_at_least():
    assert as_log_det(torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16)).dtype == torch.float32


def test_split_and_join():
    value = torch.arange(24.0).reshape(2, 3, 4)
    parts = split(value, [(2, 2), (8,)])
    assert [tuple(p.shape) for p in parts] == [(2, 2, 2), (2, 8)]
    assert torch.equal(join(parts, (3, 4)), value)


def freia_branches():
    """Two branches of equal shapes, the case where a checkpoint loads with them swapped."""
    x = ff.InputNode(4, name="x")
    split_ = ff.Node(x, fm.Split, {}, name="split")
    options = {"subnet_constructor": dense, **GLOW()}
    left = ff.Node(split_.out0, fm.GLOWCouplingBlock, options, name="left")
    right = ff.Node(split_.out1, fm.GLOWCouplingBlock, options, name="right")
    both = ff.Node([left.out0, right.out0], fm.Concat, {}, name="both")
    return ff.GraphINN([x, split_, left, right, both, ff.OutputNode(both, name="z")])


def test_checkpoints_of_a_graph_keep_their_branches(monkeypatch):
    """FrEIA's own do not: it orders modules by the hashes of nodes, which are addresses."""
    hosts = []
    for order in (["x", "split", "left", "right", "both", "z"], ["z", "both", "right", "left"]):
        ranks = {name: i for i, name in enumerate([*order, "split", "x"])}
        monkeypatch.setattr(ff.Node, "__hash__", lambda node, ranks=ranks: ranks[node.name])
        hosts.append(freia_branches())
        monkeypatch.undo()
    one, two = (as_conditional_flow(host, (4,), CLASSES) for host in hosts)
    x = torch.randn(4, 4, generator=seed())
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.encode(x, LABELS)[0], two.encode(x, LABELS)[0])
    hosts[1].load_state_dict(hosts[0].state_dict())  # FrEIA's own way, or this test says nothing
    assert not torch.allclose(one.encode(x, LABELS)[0], two.encode(x, LABELS)[0])


@every
def test_averages_of_weights_keep_constants(case):
    """Not with `use_buffers`, which PyTorch cannot do for the boolean buffers of zuko."""
    flow = case.perturbed()
    expected = flow.log_prob(inputs(flow), LABELS)
    for rule in (None, torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)):
        average = torch.optim.swa_utils.AveragedModel(flow, multi_avg_fn=rule)
        for _ in range(3):
            average.update_parameters(flow)
        close(average.module.log_prob(inputs(flow), LABELS), expected)


def evaluations(net, call):
    count = []
    handle = net.register_forward_hook(lambda *_: count.append(1))
    result = call()
    handle.remove()
    return len(count), result


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [("zuko-coupling", 1, 2), ("zuko-autoregressive", 3, 4), ("zuko-spline", 2, 3)],
)
def test_the_inverse_of_zuko_evaluates_each_net_once(name, ours, theirs):
    flow = BY_NAME[name].perturbed()
    z = inputs(flow)
    net = flow.flow.transform.transforms[0].hyper
    count, (x, ladj) = evaluations(net, lambda: flow.decode(z, LABELS))
    context = flow.condition(LABELS, z.dtype)
    reference = flow.flow.transform(context).inv
    own, (x_own, ladj_own) = evaluations(net, lambda: reference.call_and_ladj(z.flatten(1)))
    assert (count, own) == (ours, theirs)
    assert torch.equal(x.flatten(1), x_own)
    assert torch.equal(ladj, ladj_own)


def test_a_base_of_ones_own_replaces_that_of_the_host():
    host = nf.ClassCondFlow(nf.distributions.ClassCondDiagGaussian(2, CLASSES), [])
    flow = as_conditional_flow(host, (2,), CLASSES, base=GaussianBase((2,)))
    z = torch.randn(4, 2, generator=seed())
    close(flow.base_log_prob(z, LABELS), GaussianBase((2,)).log_prob(z))
    assert flow.sample_base(LABELS, temperature=0.0, generator=seed()).abs().max() == 0


def test_wrapping_does_not_initialise_the_actnorm_of_the_external_flow():
    host = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [nf.flows.ActNorm(2)])
    flow = as_conditional_flow(host, (2,), CLASSES)
    assert host.flows[0].data_dep_init_done == 0
    x, _ = flow.decode(10 + 5 * torch.randn(500, 2, generator=seed()), torch.zeros(500).long())
    close(x.std(0), torch.ones(2), 1e-3)


# Bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: as_conditional_flow(nn.Linear(2, 2), (2,), 3), TypeError, "Expected a flow of"),
        (lambda: as_conditional_flow(nf.flows.ActNorm(2), (2,), 3), TypeError, "one of normflows'"),
        (lambda: as_conditional_flow(nd.StandardNormal([2]), (2,), 3), TypeError, "nflows"),
        (lambda: as_conditional_flow(zuko.nn.MLP(2, 2), (2,), 3), TypeError, "zuko"),
        (lambda: as_conditional_flow(zuko.flows.NICE(2, 3), (3,), 3), ValueError, r"\(B, 3\)"),
        (lambda: as_conditional_flow(zuko.flows.NICE(2), (2,), 3), ValueError, "condition=None"),
        (lambda: as_conditional_flow(zuko.flows.NICE(2, 4), (2,), 3), ValueError, "a callable"),
        (lambda: as_conditional_flow(ff.SequenceINN(4), (2,), 3), ValueError, "with 2 numbers"),
        (
            lambda: as_conditional_flow(freia_branches(), (4,), 3, condition="labels"),
            ValueError,
            "Expected condition 'one-hot', 'index'",
        ),
    ],
)
def test_misfits_are_named_when_wrapped(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_freia_conditions_of_another_size_are_named():
    block = fm.GLOWCouplingBlock([(4,)], [(5,)], subnet_constructor=dense)
    with pytest.raises(ValueError, match=r"Expected a condition with shape \(B, 5\); got \(2, 3\)"):
        as_conditional_flow(block, (4,), CLASSES)


@pytest.mark.parametrize("library", ["zuko", "nflows"])
def test_a_missing_library_is_named_with_its_extra(library, monkeypatch):
    adapter = import_module(f"freia_kd.flows.adapters.{library}")
    for name in [n for n in sys.modules if n.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'freia_kd\[{library}\]'"):
        getattr(adapter, f"{library.capitalize()}Flow")(nn.Identity(), (2,), CLASSES)


# Ours in other libraries


def ours():
    return BY_NAME["freia-sequence"].perturbed()


def test_as_normflows_agrees():
    flow = ours()
    model = as_normflows(flow)
    x = inputs(flow)
    close(model.log_prob(x, context=LABELS), flow.log_prob(x, LABELS))
    expected = -flow.log_prob(x, LABELS).mean()
    close(model.forward_kld(x, context=LABELS).double(), expected, 1e-6)  # added up in float32
    z, ladj = model.inverse_and_log_det(x, context=LABELS)
    close(z, flow.encode(x, LABELS)[0])
    close(ladj.double(), flow.encode(x, LABELS)[1], 1e-6)
    close(model.forward(z, context=LABELS), x)
    y, log_q = model.sample(4, context=LABELS)
    close(log_q, flow.log_prob(y, LABELS))
    with pytest.raises(ValueError, match="Expected num_samples = 4"):
        model.sample(3, context=LABELS)


def test_as_normflows_shares_its_parameters():
    flow = ours()
    model = as_normflows(flow)
    assert len(model.state_dict()) == len(flow.state_dict())  # the base is not registered twice
    x = inputs(flow)
    loss = -flow.log_prob(x, LABELS).mean()
    expected = torch.autograd.grad(loss, list(flow.parameters()))
    model.forward_kld(x, context=LABELS).backward()
    for parameter, gradient in zip(flow.parameters(), expected, strict=True):
        close(parameter.grad, gradient, 1e-6)


def test_there_and_back():
    flow = ours()
    back = as_conditional_flow(as_normflows(flow), (2,), CLASSES)
    x = inputs(flow)
    close(back.log_prob(x, LABELS), flow.log_prob(x, LABELS))
    close(back.decode(x, LABELS), flow.decode(x, LABELS))


def test_as_distribution():
    flow = ours()
    distribution = as_distribution(flow, LABELS)
    assert distribution.batch_shape == (4,)
    assert distribution.event_shape == (2,)
    assert distribution.has_rsample
    x = distribution.sample((5, 2), generator=seed())
    assert x.shape == (5, 2, 4, 2)
    assert not x.requires_grad
    log_p = distribution.log_prob(x)
    assert log_p.shape == (5, 2, 4)
    close(log_p[2, 1], flow.log_prob(x[2, 1], LABELS))
    one = torch.zeros(2, dtype=torch.float64)  # one value for all conditions
    close(distribution.log_prob(one), flow.log_prob(one.expand(4, 2), LABELS))
    soft = as_distribution(flow, torch.eye(CLASSES, dtype=torch.float64)[LABELS])
    close(soft.log_prob(x), log_p)
    y = distribution.rsample((2,), generator=seed())
    y.sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
    assert torch.distributions.Independent(distribution, 1).log_prob(x).shape == (5, 2)


def test_as_distribution_of_images():
    flow = BY_NAME["freia-images"].perturbed()
    distribution = as_distribution(flow, LABELS)
    x = distribution.sample((3,), generator=seed())
    assert x.shape == (3, 4, 2, 2, 2)
    assert bool(distribution.support.check(x).all())
    assert not bool(distribution.support.check(x + 1).any())


def test_as_distribution_checks_its_conditions():
    with pytest.raises(ValueError, match="Expected class indices"):
        as_distribution(ours(), torch.zeros(4, 5))
