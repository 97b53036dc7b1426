"""What every conditional flow must obey, checked in float64 with perturbed parameters.

A law is a function of one `Case`; `LAWS` lists them, so that other tables can be checked by

    @pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
    @pytest.mark.parametrize("case", MY_CASES, ids=lambda case: case.name)
    def test_laws(case, law):
        law(case)
"""

import copy
import io
import pickle

import torch
from flow_cases import CLASSES
from torch import nn
from torch.optim.swa_utils import AveragedModel

LABELS = torch.tensor([0, 1, 2, 1])
CAN_EXPORT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 5)


def latents(flow, spread=0.7, seed=2):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(LABELS), *flow.shape, generator=generator, dtype=torch.float64)
    return spread * z


def inputs(flow):
    """Points that the flow can encode, not from the flow itself."""
    u = latents(flow, seed=3)
    from_unit = any(type(m).__name__.endswith("Logit") for m in flow.modules())
    return torch.sigmoid(u) if from_unit else u


def close(a, b, tolerance=1e-8):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def log_det(function, value):
    """`log|det|` of the Jacobian of a map of batches, by autograd, row by row."""
    rows = []
    for row in value:
        jacobian = torch.autograd.functional.jacobian(lambda v: function(v[None])[0], row)
        size = row.numel()
        rows.append(torch.linalg.slogdet(jacobian.reshape(size, size))[1])
    return torch.stack(rows)


def round_trip(case):
    flow = case.perturbed()
    z = latents(flow)
    before = z.clone()
    x, ladj = flow.decode(z, LABELS)
    back, ladj_back = flow.encode(x, LABELS)
    assert x.shape == z.shape
    assert ladj.shape == ladj_back.shape == (len(z),)
    assert torch.equal(z, before), "decode wrote into its input"
    close(back, z)
    close(ladj_back, -ladj)
    x = inputs(flow)
    close(flow.decode(flow.encode(x, LABELS)[0], LABELS)[0], x)


def log_det_of_decode(case):
    flow = case.perturbed()
    z = latents(flow)
    for row, label in zip(z, LABELS, strict=True):
        ladj = flow.decode(row[None], label[None])[1]
        close(
            ladj, log_det(lambda v, c=label: flow.decode(v, c[None])[0], row[None]), case.jacobian
        )


def log_det_of_encode(case):
    flow = case.perturbed()
    x = inputs(flow)
    for row, label in zip(x, LABELS, strict=True):
        ladj = flow.encode(row[None], label[None])[1]
        close(
            ladj, log_det(lambda v, c=label: flow.encode(v, c[None])[0], row[None]), case.jacobian
        )


def log_prob_is_change_of_variables(case):
    flow = case.perturbed()
    x = inputs(flow)
    z, ladj = flow.encode(x, LABELS)
    close(flow.log_prob(x, LABELS), flow.base.log_prob(z) + ladj)


def condition_counts(case):
    flow = case.perturbed()
    x = inputs(flow)
    soft = nn.functional.one_hot(LABELS, CLASSES).double()
    others = (LABELS + 1) % CLASSES
    close(flow.log_prob(x, soft), flow.log_prob(x, LABELS))
    for direction in (flow.encode, flow.decode):
        one, two = direction(x, LABELS)[0], direction(x, others)[0]
        mixed = direction(x, (soft + nn.functional.one_hot(others, CLASSES)) / 2)[0]
        changed = (one - two).flatten(1).abs().amax(1) > 1e-3
        assert changed.all() if case.conditional else torch.equal(one, two)
        if case.conditional:
            assert not torch.allclose(mixed, one)
            assert not torch.allclose(mixed, two)


def every_parameter_learns(case):
    for direction in ("encode", "decode"):
        flow = case.perturbed()
        x = inputs(flow)
        value, ladj = flow(x, LABELS, direction)
        (value.square().sum() + ladj.sum()).backward()
        dead = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
        assert not dead, f"{direction} gives no gradient to {dead}"
        assert all(p.grad.isfinite().all() for p in flow.parameters())


def saving_keeps_log_prob(case):
    flow, other = case.perturbed(seed=0), case.perturbed(seed=5)
    x = inputs(flow)
    if case.learns:
        assert not torch.allclose(flow.log_prob(x, LABELS), other.log_prob(x, LABELS))
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(flow.log_prob(x, LABELS), other.log_prob(x, LABELS))


def copies_are_equal(case):
    flow = case.perturbed()
    x = inputs(flow)
    expected = flow.log_prob(x, LABELS)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other.log_prob(x, LABELS), expected)


def averages_of_weights_keep_constants(case):
    flow = case.perturbed()
    x = inputs(flow)
    for use_buffers in (False, True):
        average = AveragedModel(flow, use_buffers=use_buffers)
        for _ in range(3):
            average.update_parameters(flow)
        close(average.module.log_prob(x, LABELS), flow.log_prob(x, LABELS))


def freezing_changes_nothing(case):
    flow = case.perturbed()
    x = inputs(flow)
    expected = flow.log_prob(x, LABELS).detach()
    trainable = [n for n, p in flow.named_parameters() if p.requires_grad]
    assert trainable == [n for n, _ in flow.named_parameters()], "a constant is a parameter"
    flow.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    flow.log_prob(leaf, LABELS).sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.any()
    flow.requires_grad_(True)
    close(flow.log_prob(x, LABELS).detach(), expected)


def fixing_changes_nothing(case):
    flow = case.perturbed()
    x, z = inputs(flow), latents(flow)
    expected = flow.log_prob(x, LABELS).detach(), flow.decode(z, LABELS)[0].detach()
    with flow.fixed(), flow.fixed():
        found = flow.log_prob(x, LABELS), flow.decode(z, LABELS)[0]
    for one, two in zip(found, expected, strict=True):
        assert not one.requires_grad
        close(one, two)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.9)
    other = case.fresh()
    other.load_state_dict(flow.state_dict())
    close(flow.log_prob(x, LABELS), other.log_prob(x, LABELS))
    close(flow.decode(z, LABELS)[0], other.decode(z, LABELS)[0])


def train_equals_eval(case):
    flow = case.perturbed()
    x = inputs(flow)
    assert torch.equal(flow.train().log_prob(x, LABELS), flow.eval().log_prob(x, LABELS))


def rows_do_not_depend_on_the_batch(case):
    flow = case.perturbed()
    x, z = inputs(flow), latents(flow)
    for i in range(len(x)):
        close(flow.log_prob(x[i : i + 1], LABELS[i : i + 1])[0], flow.log_prob(x, LABELS)[i])
        close(flow.decode(z[i : i + 1], LABELS[i : i + 1])[0][0], flow.decode(z, LABELS)[0][i])


def starts_as_claimed(case):
    flow = case.fresh()
    z = latents(flow)
    if case.identity:
        u, ladj = flow.decode_unbounded(z, LABELS)
        close(u, z)
        close(ladj, torch.zeros_like(ladj))


LAWS = [
    round_trip,
    log_det_of_decode,
    log_det_of_encode,
    log_prob_is_change_of_variables,
    condition_counts,
    every_parameter_learns,
    saving_keeps_log_prob,
    copies_are_equal,
    averages_of_weights_keep_constants,
    freezing_changes_nothing,
    fixing_changes_nothing,
    train_equals_eval,
    rows_do_not_depend_on_the_batch,
    starts_as_claimed,
]
