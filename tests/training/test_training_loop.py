import pytest
import torch
from torch import nn

from freia_kd.errors import CheckpointError, TrainingError
from freia_kd.training import Checkpoints, TrainingLoop
from freia_kd.training.checkpoints import METRICS, read_metrics
from freia_kd.training.state import load_state, save_state


def make(run=None, steps=30, result=()):
    torch.manual_seed(0)
    net, generator = nn.Linear(3, 1), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule}
    return net, optimizer, TrainingLoop("fit", steps, parts, generator, optimizer, run, result)


def train(net, optimizer, loop, stop_at=None, bad=()):
    for step in loop:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=loop.generator)
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        if step in bad:
            loss = loss * float("nan")
        if loop.accept(loss, [("mse", loss)]):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loop.parts["schedule"].step()
    return net.weight.detach().clone()


def test_stopped_and_resumed_is_the_same_bit_for_bit(tmp_path):
    whole = train(*make(Checkpoints(tmp_path / "a", "fit")))
    with pytest.raises(KeyboardInterrupt):
        train(*make(Checkpoints(tmp_path / "b", "fit", every=0)), stop_at=17)
    resumed_run = Checkpoints(tmp_path / "b", "fit")
    net, optimizer, loop = make(resumed_run)
    assert loop.step == 17
    assert torch.equal(train(net, optimizer, loop), whole)
    steps = [m["step"] for m in read_metrics(resumed_run.folder)]
    assert steps == [20, 30]


def test_a_finished_loop_runs_no_more(tmp_path):
    run = Checkpoints(tmp_path, "fit")
    weight = train(*make(run))
    net, _, loop = make(run)
    assert list(loop) == []
    assert torch.equal(net.weight, weight)


def test_metrics_have_no_row_twice_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("freia_kd.training.loop.LOG_EVERY", 1)
    train(*make(Checkpoints(tmp_path, "fit-2"), steps=3))
    for step, every in ((3, 0), (8, 1e9), (12, 1e9)):  # killed long after the last state
        with pytest.raises(KeyboardInterrupt):
            train(*make(Checkpoints(tmp_path, "fit", every=every)), stop_at=step)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "fit", "st')  # and in the middle of a line
    train(*make(Checkpoints(tmp_path, "fit")))
    rows = [(m["stage"], m["step"]) for m in read_metrics(tmp_path)]
    assert sorted(rows) == [("fit", k) for k in range(1, 31)] + [("fit-2", k) for k in (1, 2, 3)]


def test_only_the_result_is_kept_after_the_last_step(tmp_path):
    run, whole = Checkpoints(tmp_path, "fit", every=0), train(*make())
    with pytest.raises(KeyboardInterrupt):
        train(*make(run, result=["net"]), stop_at=17)
    assert set(load_state(run.path)["parts"]) == {"net", "optimizer", "schedule"}
    assert torch.equal(train(*make(run, result=["net"])), whole)
    assert set(load_state(run.path)["parts"]) == {"net"}
    net, _, loop = make(run, result=["net"])
    assert list(loop) == []
    assert torch.equal(net.weight, whole)


def test_a_nan_is_rolled_back_with_half_the_learning_rate():
    net, optimizer, loop = make(steps=30)
    weight = train(net, optimizer, loop, bad={12})
    assert loop.rollbacks == 1
    assert torch.isfinite(weight).all()
    plain, optimizer, loop = make(steps=30)
    assert not torch.equal(train(plain, optimizer, loop), weight)


def test_weights_that_became_nan_are_never_kept(tmp_path):
    run = Checkpoints(tmp_path, "fit", every=0)
    net, _, loop = make(run)
    for step in loop:
        if step == 5:
            kept = load_state(run.path)
            with torch.no_grad():
                net.weight.fill_(float("nan"))
        if step == 6:
            break
        loop.accept(torch.tensor(1.0))
    assert load_state(run.path)["step"] == kept["step"]


def test_it_gives_up_and_says_which_term():
    net, optimizer, loop = make()
    with pytest.raises(
        TrainingError, match=r"fit: the loss is not finite .*\(mse\), after 3 rollbacks"
    ):
        train(net, optimizer, loop, bad=set(range(30)))


def test_state_round_trip(tmp_path):
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "n": None, "l": [1, "a"]}
    save_state(tmp_path / "s.safetensors", state)
    loaded = load_state(tmp_path / "s.safetensors")
    assert torch.equal(loaded["net"]["weight"], net.weight)
    assert loaded["n"] is None
    assert loaded["l"] == [1, "a"]
    torch.optim.Adam(net.parameters()).load_state_dict(loaded["optimizer"])
    assert loaded["optimizer"]["state"][0]["exp_avg"].shape == (2, 2)


def test_state_refuses_objects_and_damage(tmp_path):
    with pytest.raises(TypeError, match="plain values"):
        save_state(tmp_path / "s.safetensors", {"x": object()})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s.safetensors").write_bytes(b"12345678{")
    with pytest.raises(CheckpointError, match="training state"):
        load_state(tmp_path / "s.safetensors")


def test_a_cut_line_of_metrics_is_skipped(tmp_path):
    run = Checkpoints(tmp_path, "fit")
    run.log(1, {"loss": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "fi')
    assert read_metrics(run.folder) == [{"stage": "fit", "step": 1, "loss": 2.0}]


def test_states_that_are_slow_to_keep_are_kept_less_often(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("freia_kd.training.loop.time.monotonic", lambda: clock[0])

    def saves(cost):
        """At which seconds a state is kept, of a loop whose steps take a second."""
        kept = []
        clock[0] = 0.0
        loop = make(Checkpoints(tmp_path / f"{cost}", "fit"), steps=400)[2]

        def save():
            kept.append(clock[0])
            clock[0] += cost

        monkeypatch.setattr(loop, "_save", save)
        for _ in loop:
            clock[0] += 1
        return kept[:3]

    assert saves(0.25) == [15, 30.25, 45.5]
    first, second, _ = saves(5.0)  # ten times what is meant, so ten times as seldom
    assert second - first == pytest.approx(5 + 10 * 15, abs=1)
    first, second, _ = saves(50.0)
    assert second - first == pytest.approx(50 + 20 * 15, abs=1)  # and no more seldom


@pytest.mark.parametrize(
    "spoiled", [b"\xd3\xff", b"3", b"{}", b'{"stage": "s", "step": "x"}', b'{"stage": "s", "st',
                b'{"stage": "s", "step": 2, "loss": "x"}'],
)  # fmt: skip
def test_lines_of_metrics_that_are_spoiled_are_left_out(tmp_path, spoiled):
    checkpoints = Checkpoints(tmp_path, "s")
    checkpoints.log(1, {"loss": 0.5})
    with (tmp_path / METRICS).open("ab") as file:
        file.write(spoiled + b"\n")
    checkpoints.log(3, {"loss": 0.4})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]
    checkpoints.forget_after(1)
    assert (tmp_path / METRICS).read_text() == '{"stage": "s", "step": 1, "loss": 0.5}\n'
