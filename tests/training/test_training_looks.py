"""When losses are looked at changes nothing but when one waits for the device."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from freia_kd.errors import TrainingError
from freia_kd.training import Checkpoints, MovingAverage, TrainingLoop
from freia_kd.training import loop as looping

STEPS = 130


class Kept(Checkpoints):
    """Keeps states in memory, of every step unless another pace is asked for."""

    def __init__(self, every=0.0):
        super().__init__("", "fit", every=every)
        self.states, self.lines = [], []

    def save(self, state):
        self.states.append(copy.deepcopy(state))

    def load(self):
        return self.states[-1] if self.states else None

    def log(self, step, values):
        self.lines.append((step, values))


@pytest.fixture
def deferred(monkeypatch):
    """The CPU as if it were an accelerator, on which losses wait."""
    monkeypatch.setattr(looping, "DEFERRED", ("cpu",))
    monkeypatch.setattr(looping, "LOOK_EVERY", 1e9)


@pytest.fixture
def looks(monkeypatch):
    """The number of each step after which there is a look."""
    seen, look = [], TrainingLoop._look

    def counted(loop):
        seen.append(loop.step + 1)
        return look(loop)

    monkeypatch.setattr(TrainingLoop, "_look", counted)
    return seen


def train(run=None, bad=(), stop_at=None, mark_at=(), stop_after=None, seen=None):
    """Weights, averages and the state of random numbers after a small training."""
    torch.manual_seed(0)
    net, generator = nn.Linear(3, 1), torch.Generator().manual_seed(1)
    averaged = MovingAverage(net, 0.9)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    parts = {"net": net, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    loop = TrainingLoop("fit", STEPS, parts, generator, optimizer, run)
    for step in loop:
        if step == stop_at:
            raise KeyboardInterrupt
        if step in mark_at:
            loop.mark()
        x = torch.randn(8, 3, generator=generator)
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        loss = loss * float("nan") if step in bad else loss
        if loop.accept(loss, [("mse", loss)]):
            loop.backward(loss)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(net)
        if seen is not None:
            seen.append((step, net.weight.detach().clone()))
        if step == stop_after:
            loop.stop()
    return [*net.state_dict().values(), *averaged.state_dict().values(), generator.get_state()]


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


CASES = {
    "all finite": {},
    "in the middle": {"bad": {33}},
    "the first": {"bad": {0}},
    "where it is looked": {"bad": {19, 39}},
    "the last": {"bad": {STEPS - 1}},
    "twice between looks": {"bad": {41, 47}},
    "after a state was marked": {"bad": {33}, "mark_at": {25, 36}},
    "before a state was marked": {"bad": {33}, "mark_at": {36}},
    "after the hundredth": {"bad": {105, 118}},
    "and an early end": {"bad": {33}, "stop_after": 36},
}


@pytest.mark.parametrize("name", CASES)
def test_late_looks_lead_to_the_same_bits(name, monkeypatch):
    at_once, late = Kept(every=1e9), Kept(every=1e9)
    weights = train(at_once, **CASES[name])
    monkeypatch.setattr(looping, "DEFERRED", ("cpu",))
    monkeypatch.setattr(looping, "LOOK_EVERY", 1e9)
    assert equal(train(late, **CASES[name]), weights)
    assert late.lines == at_once.lines
    assert equal(train(Kept(), **CASES[name]), weights)  # with a look in every step


def test_there_is_a_look_every_twenty_steps_and_at_the_end(deferred, looks):
    train()
    assert looks == [20, 40, 60, 80, 100, 120, 130]
    looks.clear()
    train(stop_after=25)
    assert looks == [20, 26]


def test_slow_steps_are_looked_at_after_a_second(deferred, looks, monkeypatch):
    ticks = itertools.count(step=0.15)
    monkeypatch.setattr(looping, "LOOK_EVERY", 1.0)
    monkeypatch.setattr(looping.time, "monotonic", lambda: next(ticks))
    train()
    assert 2 <= max(b - a for a, b in itertools.pairwise(looks)) <= 7


def test_weights_stay_finite_until_the_look_and_the_step_is_taken_again(deferred):
    seen = []
    train(bad={33}, seen=seen)
    assert [step for step, _ in seen][32:43] == [*range(32, 40), 33, 34, 35]
    assert all(bool(weight.isfinite().all()) for _, weight in seen)
    untrained = nn.Linear(3, 1)
    torch.manual_seed(0)
    untrained.reset_parameters()
    assert torch.equal(seen[40][1], untrained.weight.detach())  # the last good state, refused


def test_the_error_names_the_step_and_not_that_of_the_look(deferred):
    with pytest.raises(TrainingError, match=r"not finite at step 36 \(mse\), after 3 rollbacks"):
        train(bad=set(range(33, STEPS)))


def test_every_state_that_is_kept_has_been_looked_at(deferred, looks):
    run = Kept()
    train(run, bad={33})
    assert [state["step"] for state in run.states] == [*range(1, STEPS + 1), STEPS]
    assert looks == list(range(1, STEPS + 1))
    assert all(bool(s["parts"]["net"]["weight"].isfinite().all()) for s in run.states)


def test_an_end_that_a_bad_step_has_led_to_is_taken_back(deferred):
    whole, stop, calls = train(bad={33}), TrainingLoop.stop, []
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TrainingLoop, "stop", lambda loop: calls.append(1) or len(calls) > 1 or stop(loop)
        )
        assert equal(train(bad={33}, stop_after=36, seen=seen), whole)
    assert [step for step, _ in seen][34:40] == [34, 35, 36, 33, 34, 35]


def test_several_processes_read_and_keep_at_the_same_steps(deferred, looks, monkeypatch):
    monkeypatch.setattr(looping.ranks, "count", lambda: 2)
    monkeypatch.setattr(looping.ranks, "average", lambda tensors: None)
    monkeypatch.setattr(looping.ranks, "mean", list)
    monkeypatch.setattr(looping, "LOOK_EVERY", 0.0)
    run = Kept()
    train(run)
    assert looks == [20, 40, 60, 80, 100, 120, 130]
    assert [state["step"] for state in run.states] == [*looks, STEPS]


def test_the_moving_average_is_that_of_torch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours = MovingAverage(net, 0.9)
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(4):
        if step == 2:
            again = MovingAverage(net, 0.9)
            again.load_state_dict(ours.state_dict())
            ours = again
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(torch.randn(weight.shape))
        net(torch.randn(8, 3))  # which changes buffers
        ours.update_parameters(net)
        theirs.update_parameters(net)
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name


def test_killed_and_resumed_is_the_same_bit_for_bit(deferred):
    run = Kept()
    with pytest.raises(KeyboardInterrupt):
        train(run, stop_at=57)
    assert run.load()["step"] == 57
    run.every = 1e9
    assert equal(train(run), train())


@pytest.mark.slow
def test_two_processes_take_a_step_of_one_of_them_again(tmp_path):
    from looks_ranks import train_together

    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(train_together, (str(tmp_path / "store"), results), nprocs=2)
        (first, late), (second, late_too) = results[0], results[1]
    assert first[0] == 2
    assert first == second == late == late_too
