"""bfloat16 where torch finds it safe: teacher and students while they work, never flows."""

import json

import pytest
import torch

from freia_kd.config import DistillationOptions
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, quantise
from freia_kd.distillation import train_student
from freia_kd.objectives import moments
from freia_kd.teachers import Classifier, Teacher
from freia_kd.teachers.classifier import autocasting


class Seen:
    """The types of what layers of a net give."""

    def __init__(self, net):
        self.types, layers = set(), [m for m in net.modules() if not list(m.children())]
        for layer in layers:
            layer.register_forward_hook(self._look)

    def _look(self, layer, inputs, out):
        if isinstance(out, torch.Tensor):
            self.types.add(out.dtype)


@pytest.fixture
def data(teacher, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, *teacher.domain.shape, generator=generator)
    writer = SyntheticWriter(tmp_path / "set", teacher.domain)
    with torch.no_grad():
        writer.append(quantise(x), teacher(x), torch.zeros(64, dtype=torch.long))
    return SyntheticSet(tmp_path / "set")


def make_student(teacher):
    import copy

    net = copy.deepcopy(teacher.net).requires_grad_(True)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.9)
    return Classifier(net, teacher.domain, teacher.arch)


def test_logits_are_float32_and_close(teacher):
    x = torch.rand(8, *teacher.domain.shape, generator=torch.Generator().manual_seed(0))
    exact = teacher(x)
    with autocasting(teacher, "bf16"):
        rough = teacher(x)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))
    assert torch.equal(teacher(x), exact)


def test_a_student_learns_in_bfloat16_with_float32_weights(teacher, data):
    student = make_student(teacher)
    seen, options = Seen(student.net), DistillationOptions(steps=2, batch_size=8)
    train_student(student, data, options, torch.Generator().manual_seed(0), precision="bf16")
    assert torch.bfloat16 in seen.types
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in student.parameters())
    assert student.precision is None
    exact = make_student(teacher)
    train_student(exact, data, options, torch.Generator().manual_seed(0))
    for ours, theirs in zip(student.parameters(), exact.parameters(), strict=True):
        # Adam's first steps have the size of the rate, whatever the gradient.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01)


def test_statistics_of_bfloat16_features_are_taken_in_float32():
    x = torch.randn(512, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16() + 3
    mean, variance = moments(x)
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)).float())
    torch.testing.assert_close(variance, x.double().var((0, 2, 3), correction=0).float())


@pytest.mark.slow
def test_the_job_takes_it_and_flows_and_the_report_do_not(teacher, tiny, tmp_path, monkeypatch):
    from freia_kd import distill
    from freia_kd.evaluation import agreement
    from freia_kd.job import measure as measuring
    from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions

    teacher = Teacher(teacher.net, teacher.domain, teacher.arch)  # a copy, for the hooks
    source = BDNF(BDNFOptions(steps=2, batch_size=8))
    asked, flows, fit = set(), set(), BDNF.fit

    def watched(self, taught, *arguments):
        taught.net.register_forward_hook(lambda *_: asked.add(taught.precision))
        made = Seen(torch.nn.Module())
        build = self._build
        monkeypatch.setattr(self, "_build", lambda *a: keep(build(*a), made))
        fit(self, taught, *arguments)
        flows.update(made.types)

    def keep(flow, made):
        made.types = Seen(flow).types
        return flow

    def measured(classifier, *arguments, **options):
        assert classifier.precision is None
        return agreement(classifier, *arguments, **options)

    monkeypatch.setattr(BDNF, "fit", watched)
    monkeypatch.setattr(measuring, "agreement", measured)
    out = tmp_path / "out"
    distill(teacher, synthesizer=source, preset=tiny, device="cpu", precision="bf16", out=out)
    assert "bf16" in asked
    assert flows == {torch.float32}
    assert teacher.precision is None
    assert json.loads((out / "run.json").read_text())["config"]["precision"] == "bf16"
