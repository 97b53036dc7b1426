"""What people expect of a library of flows: Bayes, bits, paths, distributions, DDP, constants."""

import math
import subprocess
import sys
from functools import partial

import FrEIA.framework as ff
import FrEIA.modules as fm
import pytest
import torch
from external_cases import dense
from flow_laws import close
from torch import nn
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel

from freia_kd.flows import NICE, NSF, Composition, Glow, dequantize
from freia_kd.flows.adapters import as_conditional_flow, as_distribution
from freia_kd.flows.bases import SpectralBase

SMALL = {"transforms": 2, "hidden_features": 8}


def seed(n=0):
    return torch.Generator().manual_seed(n)


def shaken(flow, spread=0.2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
    return flow.double()


@pytest.fixture
def flow():
    return shaken(NICE((2,), 3, **SMALL))


@pytest.fixture
def image():
    return shaken(NICE((1, 2, 2), 3, **SMALL), 0.1)


# Bayes


def test_posterior_and_marginal_follow_bayes(flow):
    x = torch.randn(5, 2, generator=seed(), dtype=torch.float64)
    each = torch.stack([flow.log_prob(x, torch.full((5,), k)) for k in range(3)], 1).exp()
    prior = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    close(flow.class_log_prob(x), each.log())
    close(flow.log_marginal(x), each.mean(1).log())
    close(flow.posterior(x), each / each.sum(1, keepdim=True))
    joint = each * prior
    close(flow.log_marginal(x, 7 * prior), joint.sum(1).log())
    close(flow.posterior(x, prior), joint / joint.sum(1, keepdim=True))
    with pytest.raises(ValueError, match=r"a prior with shape \(3,\); got \(2,\)"):
        flow.posterior(x, prior[:2])
    with pytest.raises(ValueError, match="Expected a flow with classes"):
        NICE((2,), None, **SMALL).posterior(torch.zeros(1, 2))


def test_the_posterior_classifies():
    """Classes around three points: Bayes' rule finds them."""
    flow = NICE((2,), 3, transforms=1, hidden_features=8)
    with torch.no_grad():
        flow.inn.blocks[0].shift.copy_(torch.tensor([[5.0, 0], [0, 5], [-5, -5]]))
    c = torch.arange(90) % 3
    assert (flow.posterior(flow.sample(c, generator=seed())).argmax(1) == c).float().mean() > 0.95


# Bits


def test_bits_of_uniform_noise_are_eight():
    """The logit of a logistic base is the uniform density: 8 bits for each pixel."""
    flow = NICE((1, 2, 2), 3, transforms=1, hidden_features=8, squash="linear", alpha=1e-3)
    x = torch.randint(256, (50, 1, 2, 2), generator=seed(), dtype=torch.uint8)
    c = torch.zeros(50, dtype=torch.int64)
    pixels, log_q = dequantize(x, seed(3))
    expected = 8 - flow.log_prob(pixels, c) / (4 * math.log(2))
    close(flow.bits_per_dim(x, c, seed(3)), expected, 1e-5)
    close(flow.bits_per_dim(x / 255, c, seed(3)), expected, 1e-5)
    assert not log_q.any()


def test_bits_are_those_of_the_probability_of_a_level():
    """Over one dimension pair, the bound is tight in the mean of exp: P(k) by integration."""
    flow = shaken(NICE((1, 1, 2), None, SpectralBase((1, 1, 2)), **SMALL), 0.1)
    for level in (0, 128, 255):
        x = torch.full((60_000, 1, 1, 2), level, dtype=torch.uint8)
        estimates = []
        for edge in (1.0, 8.0):
            pixels, log_q = dequantize(x, seed(1), edge=edge, dtype=torch.float64)
            assert torch.equal((256 * pixels).floor(), x.double())
            with torch.no_grad():
                estimates.append((flow.log_prob(pixels) - log_q).exp().mean().item())
        if level == 128:
            assert estimates[0] == pytest.approx(estimates[1], rel=1e-12)
        else:  # most of the mass of a level at the end lies at the very end
            assert estimates[1] == pytest.approx(estimates[0], rel=0.5)


def test_noise_at_the_ends_has_the_density_that_it_says():
    x = torch.tensor([[0, 255, 7]], dtype=torch.uint8).expand(20_000, 3)
    pixels, log_q = dequantize(x, seed(), edge=8.0, dtype=torch.float64)
    noise = 256 * pixels - x
    close(log_q, (8 * noise[:, 0] ** 7).log() + (8 * (1 - noise[:, 1]) ** 7).log(), 1e-6)
    assert noise[:, 0].mean() == pytest.approx(8 / 9, abs=0.01)
    assert noise[:, 1].mean() == pytest.approx(1 / 9, abs=0.01)
    assert noise[:, 2].mean() == pytest.approx(0.5, abs=0.01)


# Samples


def test_several_samples_of_each_class(flow):
    c = torch.tensor([0, 2])
    x, log_prob = flow.sample_and_log_prob(c, generator=seed(), sample_shape=(4, 3))
    assert x.shape == (4, 3, 2, 2)
    assert log_prob.shape == (4, 3, 2)
    close(flow.log_prob(x[1, 2], c), log_prob[1, 2])
    soft = flow.sample(flow.soft(c, torch.float64), generator=seed(), sample_shape=(4, 3))
    close(soft, x)


def test_a_number_of_samples_means_classes_drawn_uniformly(flow):
    x = flow.sample(9, generator=seed())
    assert x.shape == (9, 2)
    assert torch.equal(x, flow.sample(9, generator=seed()))
    x, log_prob = flow.sample_and_log_prob(400, generator=seed())
    given = flow.class_log_prob(x)
    drawn = (given - log_prob[:, None]).abs().argmin(1)
    assert torch.bincount(drawn).min() > 90
    assert flow.sample(2, sample_shape=(3,)).shape == (3, 2, 2)


@pytest.mark.parametrize("make", [NICE, NSF, partial(Glow, steps=1)], ids=["nice", "nsf", "glow"])
@pytest.mark.parametrize("shape", [(4,), (1, 4, 4)], ids=str)
def test_flows_without_classes(make, shape):
    flow = shaken(make(shape, classes=None, hidden_features=8), 0.1)
    x, log_prob = flow.sample_and_log_prob(6, generator=seed())
    close(flow.log_prob(x), log_prob, 1e-6)
    close(flow.log_marginal(x), log_prob, 1e-6)
    z, ladj = flow.encode(x)
    close(flow.decode(z)[1], -ladj, 1e-6)
    distribution = as_distribution(flow)
    assert distribution.sample((5,)).shape == (5, *shape)
    close(distribution.log_prob(x), log_prob, 1e-6)


def test_external_flows_without_classes():
    inn = ff.SequenceINN(2)
    inn.append(fm.GLOWCouplingBlock, subnet_constructor=dense)
    flow = as_conditional_flow(inn, (2,), None).double()
    x, log_prob = flow.sample_and_log_prob(5)
    close(flow.log_prob(x), log_prob, 1e-6)


def test_temperature(flow):
    c = torch.zeros(3, dtype=torch.int64)
    close(*(flow.sample(c, temperature=0.0, generator=seed(n)) for n in (0, 1)))


# Paths and compositions


def test_paths_begin_and_end_where_they_should(image):
    first, last = image.sample(torch.tensor([0, 1])), image.sample(torch.tensor([2, 1]))
    c, d = torch.tensor([0, 1]), torch.tensor([2, 1])
    path = image.interpolate(first, last, c, d, steps=5)
    assert path.shape == (5, 2, 1, 2, 2)
    close(path[0], first, 1e-6)
    close(path[-1], last, 1e-6)
    sizes = [
        image.encode(x, c)[0].flatten(1).norm(dim=1) for x in image.interpolate(first, last, c)
    ]
    assert torch.stack(sizes).min() > 0.5 * min(sizes[0].min(), sizes[-1].min())
    same = image.interpolate(first, first, c, steps=3)
    close(same[1], first, 1e-6)


def test_compositions_add_up(flow):
    other = shaken(NSF((2,), 3, **SMALL), 0.4)
    both, c = Composition(flow, other), torch.tensor([0, 1, 2])
    z = torch.randn(3, 2, generator=seed(), dtype=torch.float64)
    middle, one = flow.decode(z, c)
    x, two = other.decode(middle, c)
    found, ladj = both.decode(z, c)
    close(found, x)
    close(ladj, one + two)
    assert both.base is flow.base
    with pytest.raises(ValueError, match="Expected flows over one shape"):
        Composition(flow, NICE((3,), 3))
    with pytest.raises(ValueError, match="Expected flows over one shape"):
        Composition()


# PyTorch's distributions


def test_distributions_expand(flow):
    distribution = as_distribution(flow, torch.tensor([0, 2]))
    wide = distribution.expand((3, 2))
    assert wide.batch_shape == (3, 2)
    assert wide.event_shape == (2,)
    x = wide.sample(torch.Size([4]), generator=seed())
    assert x.shape == (4, 3, 2, 2)
    close(wide.log_prob(x)[1, 2], distribution.log_prob(x[1, 2]))
    assert wide.expand((5, 3, 2)).sample().shape == (5, 3, 2, 2)
    joint = torch.distributions.Independent(wide, 2)
    assert joint.log_prob(x).shape == (4,)


def test_a_distribution_without_a_condition_is_the_mixture(flow):
    distribution = as_distribution(flow)
    x = distribution.rsample((6,))
    assert distribution.batch_shape == ()
    close(distribution.log_prob(x), flow.log_marginal(x))
    assert distribution.expand((4,)).sample().shape == (4, 2)


# Training through any entry


def test_every_entry_trains_under_ddp():
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        flow = shaken(NICE((1, 2, 2), 3, **SMALL), 0.1).float()
        parallel = DistributedDataParallel(flow)
        x, c = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
        calls = {
            "log_prob": (x, c),
            "class_log_prob": (x,),
            "log_marginal": (x,),
            "posterior": (x,),
            "bits_per_dim": (x, c),
            "sample": (c,),
            "sample_and_log_prob": (c,),
            "decode": (torch.randn(4, 1, 2, 2), c),
            "encode": (x, c),
        }
        for direction, arguments in calls.items():
            parallel.zero_grad()
            found = parallel(*arguments, direction=direction)
            total = sum(p.square().sum() for p in (found if isinstance(found, tuple) else [found]))
            total.backward()
            assert all(p.grad is not None for p in flow.parameters()), direction
    finally:
        torch.distributed.destroy_process_group()


# FrEIA, whichever; constants; what an import loads


def test_sequences_are_called_with_a_tensor(monkeypatch):
    """As FrEIA's git master wants it, which takes no tuple of one; 0.2 takes both."""
    original = ff.SequenceINN.forward

    def forward(self, x_or_z, c=None, rev=False, jac=True):
        torch.zeros(x_or_z.shape[0], device=x_or_z.device)  # the first line of master's
        return original(self, x_or_z, c=c, rev=rev, jac=jac)

    monkeypatch.setattr(ff.SequenceINN, "forward", forward)
    inn = ff.SequenceINN(2, force_tuple_output=True)
    inn.append(fm.GLOWCouplingBlock, subnet_constructor=dense, cond=0, cond_shape=(3,))
    flow = as_conditional_flow(inn, (2,), 3)
    c = torch.tensor([0, 1])
    x = flow.sample(c)
    close(flow.decode(*[flow.encode(x, c)[0], c])[0], x, 1e-5)
    NICE((2,), 3, **SMALL).sample(c)


def constants():
    """FrEIA's modules that keep floating constants as parameters."""
    inn = ff.SequenceINN(2, 4, 4)
    inn.append(fm.HaarDownsampling)
    inn.append(fm.Fixed1x1Conv, M=torch.linalg.qr(torch.randn(8, 8))[0])
    inn.append(fm.IRevNetUpsampling)
    inn.append(fm.IRevNetDownsampling)
    inn.append(fm.Flatten)
    for soft in (True, False):
        inn.append(fm.AllInOneBlock, subnet_constructor=dense, permute_soft=soft, affine_clamping=1)
    inn.append(fm.PermuteRandom, seed=None)
    return as_conditional_flow(inn, (2, 4, 4), 3)


def test_constants_of_external_flows_survive_training():
    torch.manual_seed(0)
    flow = constants()
    flow.requires_grad_(False)
    flow.requires_grad_(True)
    average = torch.optim.swa_utils.AveragedModel(
        flow, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    c = torch.zeros(16, dtype=torch.int64)
    for _ in range(50):
        optimizer.zero_grad()
        (-flow.log_prob(torch.randn(16, 2, 4, 4), c)).mean().backward()
        optimizer.step()
        average.update_parameters(flow)
    for trained in (flow, average.module):
        trained = trained.double()
        x = torch.randn(4, 2, 4, 4, dtype=torch.float64)
        z, ladj = trained.encode(x, c[:4])
        back, other = trained.decode(z, c[:4])
        close(back, x, 1e-6)
        close(other, -ladj, 1e-6)


def test_the_package_stands_alone_and_imports_no_host_before_it_is_needed():
    code = (
        "import sys, importlib, pkgutil, freia_kd.flows as flows, freia_kd.flows.adapters;"
        "hosts = {'zuko', 'nflows', 'normflows', 'FrEIA'} & {*sys.modules};"
        "names = [m.name for m in pkgutil.walk_packages(flows.__path__, 'freia_kd.flows.')];"
        "names = [n for n in names if n.rpartition('.')[2] not in ('zuko', 'nflows')];"
        "[importlib.import_module(n) for n in names];"
        "strangers = {'torchvision', 'click', 'matplotlib', 'sklearn', 'tensorly', 'rich'}"
        "| {'jinja2', 'zuko', 'nflows', 'onnx'};"
        "print(len(names) > 15, sorted(hosts), sorted(strangers & {*sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True [] []"


def test_names_are_found_where_they_are_promised():
    import freia_kd.flows

    for name in freia_kd.flows._PARTS:
        assert getattr(freia_kd.flows, name) is not None
    assert isinstance(NICE((2,), 3, **SMALL), nn.Module)
