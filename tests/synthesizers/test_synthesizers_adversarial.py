import copy

import numpy as np
import pytest
import torch
from torch import nn

from freia_kd.domain import Domain
from freia_kd.errors import TrainingError, UsageError
from freia_kd.synthesizers.adversarial import (
    DFAD,
    DFADOptions,
    generation_loss,
    imitate,
    play,
)
from freia_kd.teachers import Teacher
from freia_kd.teachers.mlp import MLP
from freia_kd.training import Checkpoints, TrainingLoop
from freia_kd.training.checkpoints import read_metrics

OPTIONS = DFADOptions(steps=1, student_steps=1, batch_size=16, latents=4, snapshots=1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def game(shape=(2,)):
    """A generator, a teacher and a student of inputs with this shape, vectors or images."""
    torch.manual_seed(0)
    if len(shape) == 1:
        teacher, student = MLP(2, 3), MLP(2, 3, (6,))
        return nn.Linear(4, 2), teacher.eval(), student.eval()
    net = nn.Sequential(nn.Linear(4, 36), nn.Unflatten(1, (1, 6, 6)), nn.Sigmoid())
    teacher = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 1))
    return net, teacher.eval(), nn.Conv2d(1, 3, 3, padding=1).eval()


def options(**changes):
    return DFADOptions(**{**vars(OPTIONS), **changes})


def discrepancy(net, teacher, student):
    """The mean absolute difference of logits on fixed latents, without torch."""
    with torch.no_grad():
        x = net(torch.randn(200, 4, generator=generator(5)))
        s, t = student(x).numpy(), teacher(x).numpy()
    return np.abs(s.astype(np.float64) - t).sum() / s.size


SHAPES = pytest.mark.parametrize("shape", [(2,), (1, 6, 6)], ids=["vectors", "segmentation"])


@SHAPES
@pytest.mark.parametrize("log", [True, False])
def test_a_step_of_the_generator_raises_the_discrepancy(shape, log):
    net, teacher, student = game(shape)
    before = discrepancy(net, teacher, student)
    frozen = options(student_learning_rate=0.0, log=log)
    play(net, teacher, student, frozen, generator())
    assert discrepancy(net, teacher, student) > before


@SHAPES
def test_a_step_of_the_student_lowers_the_discrepancy(shape):
    net, teacher, student = game(shape)
    before = discrepancy(net, teacher, student)
    play(net, teacher, student, options(learning_rate=0.0), generator())
    assert discrepancy(net, teacher, student) < before


@SHAPES
def test_the_student_learns_in_the_game(shape):
    net, teacher, student = game(shape)
    x = torch.rand(100, *shape, generator=generator(8))

    def apart():
        with torch.no_grad():
            return (student(x) - teacher(x)).abs().mean().item()

    before = apart()
    play(net, teacher, student, options(steps=40, student_steps=5), generator())
    assert apart() < 0.7 * before


def test_the_generators_loss_is_that_of_the_paper():
    for value in (0.0, 0.3, 7.0):
        assert generation_loss(torch.tensor(value)).item() == pytest.approx(-np.log(value + 1))
        assert generation_loss(torch.tensor(value), log=False).item() == pytest.approx(-value)


@SHAPES
def test_imitation_is_the_mean_absolute_difference_of_logits(shape):
    _, teacher, student = game(shape)
    x = torch.rand(7, *shape, generator=generator(3))
    with torch.no_grad():
        s, t = student(x).numpy().ravel(), teacher(x).numpy().ravel()
    optimizer = torch.optim.SGD(student.parameters(), 0.0)
    loss = imitate(student, teacher, x, TrainingLoop("game", 1, {}, generator(), optimizer))
    assert loss.item() == pytest.approx(np.mean(np.abs(s - t)), rel=1e-5)
    assert not loss.requires_grad


def test_the_students_step_is_momentum_and_weight_decay_by_hand():
    _, teacher, student = game()
    x = torch.randn(9, 2, generator=generator(3))
    reference = copy.deepcopy(student)
    (reference(x) - teacher(x)).abs().mean().backward()
    expected = [p.detach() - 0.1 * (p.grad + 0.2 * p.detach()) for p in reference.parameters()]
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, weight_decay=0.2)
    imitate(student, teacher, x, TrainingLoop("game", 1, {}, generator(), optimizer))
    for p, value in zip(student.parameters(), expected, strict=True):
        assert torch.allclose(p, value, atol=1e-7)


def test_the_options_reach_the_student():
    net, teacher, student = game()
    reference, velocity = copy.deepcopy(student), None
    latents = generator()
    for _ in range(2):
        x = net(torch.randn(16, 4, generator=latents)).detach()
        loss = (reference(x) - teacher(x)).abs().mean()
        slopes = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            slopes = [g + 0.2 * p for g, p in zip(slopes, reference.parameters(), strict=True)]
            velocity = [0.5 * v + g for v, g in zip(velocity or [0, 0, 0, 0], slopes, strict=True)]
            for p, v in zip(reference.parameters(), velocity, strict=True):
                p -= 0.1 * v
    changes = {"student_learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.2}
    play(net, teacher, student, options(student_steps=2, **changes), generator())
    for p, q in zip(student.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_students_steps_a_step_of_the_generator_each_with_fresh_latents():
    net, teacher, student = game()
    seen = []
    student.register_forward_pre_hook(lambda module, x: seen.append(x[0].detach().clone()))
    play(net, teacher, student, options(steps=2, student_steps=3), generator())
    assert [len(x) for x in seen] == [16] * 8
    assert len({x.sum().item() for x in seen}) == 8


def test_the_game_gives_its_nets_no_stray_gradients():
    net, teacher, student = game()
    teacher.requires_grad_(True)
    before = copy.deepcopy(teacher.state_dict())
    play(net, teacher, student, options(steps=3), generator())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    # The student's gradients are those of its own last step, not of the generator's.
    net, teacher, student = game()
    play(net, teacher, student, options(learning_rate=0.0), generator())
    z = torch.randn(16, 4, generator=generator())
    _, _, fresh = game()
    with torch.no_grad():
        x = net(z)
    (fresh(x) - teacher(x)).abs().mean().backward()
    for p, q in zip(student.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-7)


def test_snapshots_are_the_generator_along_the_game():
    net, teacher, student = game()
    kept = play(net, teacher, student, options(steps=5, snapshots=2), generator())
    early, teacher, student = game()
    play(early, teacher, student, options(steps=3), generator())
    assert [torch.equal(k.weight, net.weight) for k in kept] == [False, True]
    assert torch.equal(kept[0].weight, early.weight)
    assert not any(k.training for k in kept)


def test_more_snapshots_than_steps_are_all_trained():
    net, teacher, student = game()
    start = net.weight.clone()
    kept = play(net, teacher, student, options(steps=2, snapshots=5), generator())
    assert len(kept) == 5
    assert not any(torch.equal(k.weight, start) for k in kept)
    assert torch.equal(kept[4].weight, net.weight)


class Fails(nn.Module):
    """A student whose logits are NaN in some of its calls."""

    def __init__(self, student, calls):
        super().__init__()
        self.student, self.calls, self.call = student, calls, 0

    def forward(self, x):
        self.call += 1
        return self.student(x) * (torch.nan if self.call in self.calls else 1)


def test_a_loss_that_is_not_finite_is_rolled_back():
    net, teacher, student = game()
    failing = Fails(student, {5})  # in the student's step of the third round
    kept = play(net, teacher, failing, options(steps=6, snapshots=3), generator())
    for module in (net, student, *kept):
        assert all(p.isfinite().all() for p in module.parameters())
    assert torch.equal(kept[2].weight, net.weight)


def test_a_rollback_brings_no_untrained_snapshot_back(monkeypatch):
    monkeypatch.setattr("freia_kd.training.loop.SNAPSHOT_EVERY", 3)
    net, teacher, student = game()
    start = net.weight.clone()
    failing = Fails(student, {9})  # in the fifth round, after the second snapshot, of the fourth
    kept = play(net, teacher, failing, options(steps=6, snapshots=3), generator())
    assert not any(torch.equal(k.weight, start) for k in kept)


def test_a_loss_that_stays_non_finite_ends_the_game():
    net, teacher, student = game()
    with pytest.raises(TrainingError, match="play with the student: the loss is not finite"):
        play(net, teacher, Fails(student, range(99)), options(steps=9), generator())


def test_the_run_logs_both_sides(tmp_path):
    run, (net, teacher, student) = Checkpoints(tmp_path, "stage"), game()
    play(net, teacher, student, OPTIONS, generator(), run)
    (line,) = read_metrics(run.folder)
    assert line["stage"] == "stage"
    assert line["loss"] == pytest.approx(-np.log(line["discrepancy"] + 1), rel=1e-5)
    assert line["student"] > 0


def test_a_teacher_in_training_mode_is_refused():
    net, teacher, student = game()
    with pytest.raises(ValueError, match="Expected the teacher in eval mode"):
        play(net, teacher.train(), student, OPTIONS, generator())


def test_logits_of_other_shapes_are_refused():
    net, teacher, _ = game()
    with pytest.raises(ValueError, match="same shape"):
        play(net, teacher, MLP(2, 4), OPTIONS, generator())


def test_without_a_student_it_says_so():
    teacher = Teacher(MLP(2, 3), Domain((2,), 3), "mlp")
    with pytest.raises(UsageError, match="learns from a student, and there is none"):
        DFAD(OPTIONS).fit(teacher)
