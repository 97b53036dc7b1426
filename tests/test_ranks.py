"""Processes that share a job do the work of one, whatever their number."""

import pytest
import torch

from freia_kd import ranks
from freia_kd.errors import LostError, UsageError
from ranks_work import (
    KINDS,
    SYNTHESIZERS,
    learn,
    learn_together,
    stop,
    stop_together,
    synthesize,
)
from stopping import Stopping


def test_one_process_has_everything_to_itself():
    value, generator = torch.ones(3, requires_grad=True), torch.Generator()
    assert (ranks.launched(), ranks.count(), ranks.is_first()) == (1, 1, True)
    for combine in (ranks.sum_over, ranks.mean_over, ranks.whole):
        assert combine(value) is value
    assert ranks.own_noise(generator) is generator
    assert ranks.mean([1.5]) == [1.5]
    assert ranks.share(7) == slice(0, 7)
    with ranks.joined(), ranks.first_before_others(), ranks.connected():
        ranks.wait()
    with pytest.raises(RuntimeError, match="gloo is not here"), ranks.connected():
        raise RuntimeError("gloo is not here")


@pytest.fixture
def two(monkeypatch):
    """This process as the second of two that never answer."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)


def test_the_second_of_two_has_its_share_unless_alone(two):
    assert ranks.share(8) == slice(4, 8)
    assert ranks.mine(range(5)) == [1, 3]
    assert not ranks.is_first()
    with ranks.alone():
        assert (ranks.launched(), ranks.count()) == (2, 1)
        assert ranks.share(7) == slice(0, 7)
        assert not ranks.is_first()
    with pytest.raises(UsageError, match=r"student.batch_size: .* 2 processes .* 7 .* 6 .* 8"):
        ranks.share(7, "student.batch_size")
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    own = torch.rand((), generator=ranks.own_noise(generator))
    assert torch.equal(generator.get_state(), before)
    assert own != torch.rand((), generator=generator)


def test_one_that_has_ended_is_named(two, monkeypatch):
    def fail(tensor):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises(LostError, match="has ended"):
        ranks.wait()
    with pytest.raises(RuntimeError, match="shapes"), ranks.connected():
        raise RuntimeError("shapes differ")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes learn, of every kind."""
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        folder = tmp_path_factory.mktemp("ranks")
        torch.multiprocessing.spawn(learn_together, (folder, results), nprocs=2)
        return dict(results)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_steps_of_one(together, kind):
    """Gradients of each step, those through batch statistics too, and what comes out of them."""
    found = [together[kind, rank] for rank in (0, 1)]
    assert found[0] == found[1]  # bit for bit, so that they stay together
    gradients, losses, made = learn(kind)
    assert len(gradients) == len(losses) == len(found[0][0]) >= 2
    assert kind != "bdnf" or {"cls", "volume", "batchnorm", "prior"} < set(losses[0])
    near, end = (1e-8, 1e-8) if kind in SYNTHESIZERS else (1e-5, 1e-3)  # float64 and float32
    for alone, both in zip(gradients, found[0][0], strict=True):
        assert alone.abs().max() > 1e-3
        both = torch.tensor(both, dtype=alone.dtype)
        torch.testing.assert_close(both, alone, rtol=10 * near, atol=near)
    for alone, both in zip(losses, found[0][1], strict=True):
        assert both == pytest.approx(alone, rel=10 * near, abs=near)
    both = torch.tensor(found[0][2], dtype=torch.float64)
    torch.testing.assert_close(both, made, rtol=end, atol=end)


@pytest.mark.slow
def test_what_one_process_began_two_go_on_with_and_one_ends(tmp_path):
    kinds = [kind for kind in SYNTHESIZERS if kind != "kw-inception"]
    for kind in kinds:
        stop(kind, tmp_path / kind, 1)
    torch.multiprocessing.spawn(stop_together, (tmp_path, kinds, 1), nprocs=2)
    for kind in kinds:
        rest = Stopping(tmp_path / kind, "stage")
        ended, whole = (synthesize(kind, c, steps=3)["inputs"] for c in (rest, None))
        assert len(rest.seen) == (4 if kind == "kegnet" else 1), "what was done was done again"
        torch.testing.assert_close(ended, whole, rtol=1e-8, atol=1e-8)
