"""Numerical safety, precision, and PyTorch's tools around whole flows."""

import copy
import pickle
import warnings
from functools import partial

import flow_laws
import pytest
import torch
from torch import nn
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel

from freia_kd.errors import ExportError
from freia_kd.flows.bases import SpectralBase
from freia_kd.flows.compose import INN, INNFlow
from freia_kd.flows.export import export_decoder
from freia_kd.flows.glow import Glow
from freia_kd.flows.nice import NICE
from freia_kd.flows.realnvp import RealNVP
from freia_kd.flows.spline import NSF
from freia_kd.flows.subnets import ClassSubnet
from pace import slow_but

SMALL = {
    "nice": lambda **o: NICE((1, 8, 8), 3, transforms=2, hidden_features=16, **o),
    "glow": lambda **o: Glow((1, 8, 8), 3, levels=2, steps=2, hidden_features=8, **o),
    "realnvp": lambda **o: RealNVP((1, 8, 8), 3, levels=2, hidden_features=8, **o),
    "spline": lambda **o: NSF((1, 8, 8), 3, transforms=2, hidden_features=16, **o),
}
C = torch.tensor([0, 1, 2, 2])

# Which hold all blocks between them, as small as can be, since tracing is slow.
TRACED = {
    "glow": lambda **o: Glow((1, 4, 4), 3, levels=2, steps=1, hidden_features=4, **o),
    "spline": lambda **o: NSF((1, 4, 4), 3, transforms=1, hidden_features=4, **o),
}


def shaken(flow, spread=0.05):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


def test_deep_flows_with_large_weights_stay_finite():
    """32 couplings on 3072 dimensions, all weights three times their initial size."""
    torch.manual_seed(0)
    flow = NICE((3, 32, 32), 10, transforms=32, hidden_features=64)
    with torch.no_grad():
        for module in flow.modules():
            if isinstance(module, ClassSubnet):
                module.last.reset_parameters()  # zero at first, and three times zero is zero
        for parameter in flow.parameters():
            parameter.mul_(3)
        c = torch.arange(4)
        x, ladj = flow.decode(flow.sample_base(c), c)
        assert x.isfinite().all()
        assert ladj.isfinite().all()
        for pixels in (x, torch.rand_like(x), torch.zeros_like(x), torch.ones_like(x)):
            z, ladj = flow.encode(pixels, c)
            assert z.isfinite().all()
            assert ladj.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_generated_extremes_give_finite_gradients(name):
    """Latents of a spectral base reach 40 and more before the squash."""
    torch.manual_seed(0)
    flow = shaken(SMALL[name](base=SpectralBase((1, 8, 8))), 0.01)
    z = 3 * flow.sample_base(C, generator=torch.Generator().manual_seed(0))
    x, ladj = flow.decode(z, C)
    assert z.abs().max() > 30
    assert ((x >= 0) & (x <= 1)).all()
    (x.sum() + ladj.sum()).backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())
    edges = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)] * 2)
    assert flow.log_prob(edges, C).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_autocast_reaches_the_subnets_only(name):
    torch.manual_seed(0)
    flow = shaken(SMALL[name]())
    z = 0.5 * torch.randn(4, 1, 8, 8)
    exact, ladj_exact = flow.decode_unbounded(z, C)
    seen = []
    hooks = [
        m.last.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
        for m in flow.modules()
        if isinstance(m, ClassSubnet)
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u, ladj = flow.decode_unbounded(z, C)
        back, ladj_back = flow.encode_unbounded(u, C)
    for hook in hooks:
        hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert u.dtype == ladj.dtype == back.dtype == torch.float32
    assert not torch.equal(u, exact)
    torch.testing.assert_close(u, exact, rtol=0, atol=0.05)
    torch.testing.assert_close(back, z, rtol=0, atol=0.05)
    torch.testing.assert_close(ladj, ladj_exact, rtol=0, atol=0.5)
    torch.testing.assert_close(ladj_back, -ladj, rtol=0, atol=0.5)


@pytest.mark.parametrize("name", SMALL)
def test_bf16_is_confined_to_the_subnets(name):
    torch.manual_seed(0)
    plain = shaken(SMALL[name]())
    half = SMALL[name](bf16=True)
    half.load_state_dict(plain.state_dict())
    z = 0.5 * torch.randn(4, 1, 8, 8)
    (u, ladj), (exact, ladj_exact) = half.decode_unbounded(z, C), plain.decode_unbounded(z, C)
    assert u.dtype == ladj.dtype == torch.float32
    assert not torch.equal(u, exact)
    torch.testing.assert_close(u, exact, rtol=0, atol=0.05)
    torch.testing.assert_close(ladj, ladj_exact, rtol=0, atol=0.5)
    ladj.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in half.parameters() if p.grad is not None)


def test_no_normalisation_in_subnets_and_clamp_is_at_most_one():
    for make in SMALL.values():
        for module in make().modules():
            assert "Norm" not in type(module).__name__
            assert getattr(module, "clamp", 1.0) <= 1.0


class Both(nn.Module):
    """Both directions as one traceable function."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, z, x, c):
        return self.flow.decode(z, c), self.flow.encode(x, c)


def values(flow):
    """Both directions of a small flow on fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, *flow.shape, generator=generator)
    return z, torch.rand(4, *flow.shape, generator=generator), C


@pytest.mark.parametrize("name", slow_but("nice", TRACED))
def test_flows_compile_without_graph_breaks(name):
    flow = shaken(TRACED[name]())
    compiled = torch.compile(Both(flow), backend="aot_eager", fullgraph=True)
    found, expected = compiled(*values(flow)), Both(flow)(*values(flow))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found[0][1].sum().backward()
    torch.compiler.reset()


@pytest.mark.parametrize("option", [{"channels_last": False}, {"compile": True}], ids=str)
def test_layout_and_compilation_change_no_value(option, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, other = shaken(TRACED["glow"]()), TRACED["glow"](**option)
    other.load_state_dict(plain.state_dict())
    for flow in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        found, expected = Both(flow)(*values(flow)), Both(plain)(*values(flow))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.slow
def test_a_step_of_a_compiled_flow_is_that_of_the_flow():
    """By the compiler itself, gradients included; what they are the table of laws says."""
    plain, compiled = shaken(TRACED["glow"]()), TRACED["glow"](compile=True)
    compiled.load_state_dict(plain.state_dict())
    z, _, c = values(plain)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of its own deprecations
        for flow in (plain, compiled):
            u, ladj = flow.decode_unbounded(z, c)
            (u.square().sum() + ladj.sum()).backward()
            found.append([u.detach(), ladj.detach(), *(p.grad for p in flow.parameters())])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


TINY = {
    "nice": partial(NICE, (2,), 3, transforms=2, hidden_features=4),
    "glow": partial(Glow, (1, 2, 2), 3, steps=1, hidden_features=4),
    "realnvp": partial(RealNVP, (1, 2, 2), 3, hidden_features=4, checkerboard=1, channelwise=0),
    "spline": partial(NSF, (2,), 3, transforms=1, hidden_features=4),
}


def batch(flow, n):
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(n, *flow.shape, generator=generator)
    return z, torch.rand(n, *flow.shape, generator=generator), torch.arange(n) % 3


@pytest.mark.skipif(not flow_laws.CAN_EXPORT, reason="torch.export refuses autocast before 2.5")
@pytest.mark.parametrize("strict", slow_but(False, [True, False]))
@pytest.mark.parametrize("name", TINY)
def test_flows_export_with_a_dynamic_batch(name, strict):
    both = Both(shaken(TINY[name]())).eval()
    shapes = ({0: torch.export.Dim("batch", min=1)},) * 3
    program = torch.export.export(both, batch(both.flow, 4), dynamic_shapes=shapes, strict=strict)
    for n in (1, 4, 7):
        found, expected = program.module()(*batch(both.flow, n)), both(*batch(both.flow, n))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_functions_of_torch_map_over_hard_labels(name):
    flow = shaken(TINY[name]())
    z, x, c = batch(flow, 5)

    def log_prob(x, c):
        return flow.log_prob(x[None], c[None])[0]

    torch.testing.assert_close(torch.func.vmap(log_prob)(x, c), flow.log_prob(x, c))

    def decode(z, c):
        return flow.decode(z[None], c[None])[0].flatten()

    jacobians = torch.func.vmap(torch.func.jacrev(decode))(z, c).reshape(5, *[z[0].numel()] * 2)
    expected = flow.decode(z, c)[1]
    torch.testing.assert_close(torch.linalg.slogdet(jacobians)[1], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", slow_but("nice", TINY))
def test_samplers_run_in_onnxruntime(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    flow = shaken(TINY[name]())
    if not flow_laws.CAN_EXPORT:
        with pytest.raises(ExportError, match="torch 2"):
            export_decoder(flow, tmp_path / "flow.onnx")
        return
    session = runtime.InferenceSession(str(export_decoder(flow, tmp_path / "flow.onnx")))
    for n in (1, 6):
        z, _, c = batch(flow, n)
        (x,) = session.run(None, {"z": z.numpy(), "c": c.numpy()})
        expected = flow.decode(z, c)[0].detach()
        torch.testing.assert_close(torch.from_numpy(x), expected, rtol=1e-4, atol=1e-5)


def test_flows_train_under_ddp():
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        flow = shaken(SMALL["glow"]())
        parallel = DistributedDataParallel(flow)
        for direction, value in (("decode", torch.randn), ("encode", torch.rand)):
            out, ladj = parallel(value(4, 1, 8, 8), C, direction)
            (out.sum() + ladj.sum()).backward()
        assert all(p.grad is not None for p in flow.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_double_backward():
    flow = shaken(NICE((2,), 3, transforms=2, hidden_features=8)).double()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    c = torch.tensor([0, 1, 2])
    assert torch.autograd.gradgradcheck(lambda v: flow.log_prob(v, c).sum(), (x,))


@pytest.mark.parametrize(
    ("value", "c", "message"),
    [
        (torch.ones(2, 3), torch.tensor([0, 1]), r"shape \(B, 2\); got \(2, 3\)"),
        (torch.ones(2, 2).long(), torch.tensor([0, 1]), "floating-point values; got torch.int64"),
        (torch.ones(2, 2).double(), torch.tensor([0, 1]), "torch.float32, as the flow's"),
        (torch.ones(2, 2), torch.tensor([0]), r"class indices with shape \(2,\)"),
        (torch.ones(2, 2), torch.tensor([0, 3]), "class indices from 0 to 2; got 3"),
        (torch.ones(2, 2), torch.tensor([-1, 0]), "class indices from 0 to 2; got -1"),
        (torch.ones(2, 2), torch.ones(2, 4), r"soft labels with shape \(2, 3\)"),
    ],
)
def test_wrong_inputs_raise_before_any_work(value, c, message):
    flow = NICE((2,), 3, transforms=2, hidden_features=8)
    for method in (flow.encode, flow.decode, flow.log_prob):
        with pytest.raises(ValueError, match=message):
            method(value, c)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NICE((1,), 3), "at least 2 dimensions to couple; got 1"),
        (lambda: Glow((1, 28, 28), 3, levels=3), "can be halved 3 times; got .28, 28."),
        (lambda: RealNVP((1, 7, 8), 3), r"an even height and width; got \(7, 8\)"),
        (lambda: Glow((1,), 3), "at least 2 dimensions to couple; got 1"),
        (lambda: RealNVP((1,), 3), "at least 2 dimensions to couple; got 1"),
        (lambda: Glow((3, 8, 8), 3, squash="tanh"), "Expected a squash .auto.*got .tanh."),
        (lambda: NICE((2,), 3, alpha=0.1), "a squash by name for alpha=0.1; got None"),
        (lambda: NICE((4,), 3, SpectralBase((1, 2, 2))), r"a base over \(4,\); got one over"),
        (
            lambda: INNFlow(INN([(3,)], classes=3).affine(), (4,), 3),
            "one input and one output of 4 values each; got sizes",
        ),
    ],
)
def test_impossible_flows_say_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_levels_adapt_to_the_size_by_default():
    flow = Glow((1, 28, 28), 3, steps=1)
    assert flow.sample(C).shape == (4, 1, 28, 28)
