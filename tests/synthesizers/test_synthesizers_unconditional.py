"""What DFAD and RDSKD share: drawing, labels, states and seeds, for images and vectors."""

import pytest
import torch
from torch import nn

from freia_kd.domain import Domain
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.synthesizers import SYNTHESIZERS
from freia_kd.synthesizers.unconditional import TRIES, InputGenerator, Unconditional
from freia_kd.teachers import Classifier, Teacher
from freia_kd.teachers.mlp import MLP
from freia_kd.training import Checkpoints

VECTORS = Domain((3,), 4, (1.0, 0.0, -2.0), (1.0, 2.0, 0.5), "vectors")
SMALL = {"batch_size": 4, "latents": 6, "channels": (4, 3)}
CASES = [(method, kind) for method in ("dfad", "rdskd") for kind in ("images", "vectors")]
OF_EACH = pytest.mark.parametrize(("method", "kind"), CASES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def nets(kind, teacher):
    """A teacher and a student."""
    if kind == "images":
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
        return teacher, Classifier(net, teacher.domain, "linear")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Teacher(MLP(3, 4), VECTORS, "mlp"), Classifier(MLP(3, 4, (5,)), VECTORS, "mlp")


def build(method, **settings):
    return SYNTHESIZERS[method].build("best", {"steps": 2, **SMALL, **settings})


def fitted(method, nets, seed=0, run=None, **settings):
    synthesizer = build(method, **settings)
    synthesizer.fit(nets[0], None, run, generator(seed), nets[1])
    return synthesizer


@OF_EACH
def test_what_a_run_keeps_is_restored_without_the_teacher(method, nets, kind, tmp_path):
    run = Checkpoints(tmp_path, "stage")
    with pytest.raises(CheckpointError, match=f"no bank of '{method}'"):
        build(method).restore(nets[0].domain, run)
    fitted(method, nets, run=run)
    restored = build(method)
    restored.restore(nets[0].domain, run)
    x, y = restored.sample(40, generator=generator(2))
    assert torch.equal(y, nets[0](x).argmax(1))
    assert restored.distinct == 1024
    assert len(x.unique(dim=0)) == 40
    chosen = y[:1].repeat(3)
    assert (nets[0](restored.sample(3, chosen, generator())[0]).argmax(1) == chosen).all()


@OF_EACH
def test_health_is_measured_and_sees_a_collapse(method, nets, kind):
    synthesizer = fitted(method, nets)
    assert synthesizer.diagnose(nets[0], generator()).finite
    one = synthesizer.sample(1, generator=generator())[0][0]
    synthesizer.generators = [lambda z: one.expand(len(z), *one.shape)]
    warnings = synthesizer.diagnose(nets[0], generator()).warnings()
    assert any("collapsed" in w for w in warnings)
    assert any("hardly ever sees class" in w for w in warnings)


class Fixed(Unconditional):
    """Latents of one number are the inputs, of one feature."""

    name = "fixed"

    def fit(self, teacher, samples=None, checkpoints=None, generator=None, student=None):
        self.finish(teacher, self.nets, 1, checkpoints, generator)


def signs(nets):
    """A synthesizer whose teacher says 0, 1 or 2 below -1, between, and above 1."""

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.place = nn.Parameter(torch.zeros(1))  # tells the device

        def forward(self, x):
            return torch.cat([-x - 1, torch.zeros_like(x), x - 1], 1)

    fixed = Fixed()
    fixed.nets = nets
    fixed.fit(Teacher(Steps(), Domain((1,), 3), "steps"), generator=generator())
    return fixed


def test_labels_asked_for_are_what_the_teacher_says():
    wanted = torch.tensor([0, 2, 2, 1] * 10)
    x, y = signs([nn.Identity()]).sample(40, wanted, generator(4))
    assert torch.equal(y, wanted)
    assert torch.equal((x[:, 0] > 1).long() + (x[:, 0] > -1).long(), wanted)
    assert len(x.unique()) == 40
    soft = nn.functional.one_hot(wanted, 3).float()
    assert torch.equal(signs([nn.Identity()]).sample(40, soft, generator(4))[0], x)


def test_a_label_that_never_comes_does_not_hang():
    synthesizer = signs([nn.Sigmoid()])  # between 0 and 1, never a 0
    calls = []
    synthesizer.generators[0].register_forward_hook(lambda *a: calls.append(1))
    x, y = synthesizer.sample(5, torch.tensor([0, 1, 0, 1, 0]), generator(4))
    assert y.tolist() == [0, 1, 0, 1, 0]
    assert ((x > 0) & (x < 1)).all()
    assert len(calls) == TRIES


def test_every_generator_makes_its_share():
    synthesizer = signs([nn.Sigmoid(), nn.Sequential(nn.Sigmoid(), nn.Threshold(2, 7.0))])
    x, _ = synthesizer.sample(2000, generator=generator(1))
    assert (x == 7).double().mean().item() == pytest.approx(0.5, abs=0.04)
    # Mixed, so that every part of a set has all of them.
    assert 0 < (x[:20] == 7).sum() < 20


def test_inputs_have_the_teachers_units():
    net = InputGenerator.seeded(VECTORS, 8, (16, 16), generator())
    x = VECTORS.normalize(net(torch.randn(500, 8, generator=generator(1))))
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.var(0, unbiased=False), torch.ones(3), atol=1e-3)


def test_images_of_any_size():
    net = InputGenerator.seeded(Domain((3, 30, 17), 5), 8, (6, 4), generator())
    x = net(torch.randn(4, 8, generator=generator(1)))
    assert x.shape == (4, 3, 30, 17)
    assert 0 <= x.min() < x.max() <= 1
    x.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("method", "name", "value", "message"),
    [
        ("dfad", "snapshots", 0, "snapshots: expected at least 1; got 0"),
        ("dfad", "student_steps", 0, "student_steps: expected at least 1; got 0"),
        ("dfad", "batch_size", 1, "batch_size: expected at least 2; got 1"),
        ("rdskd", "batch_size", 5, "batch_size: .*multiple of 2; got 5"),
        ("rdskd", "epoch", 0, "epoch: expected at least 1; got 0"),
    ],
)
def test_options_that_make_no_sense(method, name, value, message):
    with pytest.raises(UsageError, match=message):
        build(method, **{name: value})
