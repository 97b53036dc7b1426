"""Batches that are held on a device, or read ahead: the same ones, whatever happens between."""

import threading

import pytest
import torch

from freia_kd.config import DistillationOptions
from freia_kd.data import feed, synthetic
from freia_kd.data.feed import Feed
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, quantise
from freia_kd.distillation import train_student
from freia_kd.domain import Domain
from freia_kd.errors import CheckpointError
from freia_kd.teachers import Classifier, Teacher
from freia_kd.training import Checkpoints, TrainingLoop, loop

DOMAIN = Domain((1, 4, 4), 3, (0.4,), (0.3,), "tiny")
CPU = torch.device("cpu")


def net():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Teacher(net().eval(), DOMAIN, "tiny")


@pytest.fixture
def folder(teacher, tmp_path):
    generator = torch.Generator().manual_seed(0)
    writer = SyntheticWriter(tmp_path / "set", DOMAIN)
    for size in (20, 12):
        x = torch.rand(size, 1, 4, 4, generator=generator)
        writer.append(quantise(x), teacher(x), torch.zeros(size))
    return tmp_path / "set"


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def learned(folder, teacher, run=None, **options):
    """The weights of a student after nine steps, and the state of its random numbers."""
    torch.manual_seed(1)
    student = Classifier(net(), DOMAIN, "tiny")
    options = DistillationOptions(steps=9, batch_size=8, **options)
    generator = torch.Generator().manual_seed(2)
    train_student(student, SyntheticSet(folder), options, generator, run, teacher=teacher)
    return [*student.state_dict().values(), generator.get_state()]


KINDS = [{}, {"balanced": False}, {"mixup": 0.5}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holds", [True, False])
def test_a_student_learns_the_same_bits(kind, holds, folder, teacher, monkeypatch):
    plain = learned(folder, teacher, **kind)
    monkeypatch.setattr(feed, "AHEAD", ("cpu",))
    monkeypatch.setattr(synthetic, "HELD", 1.0 if holds else 0.0)
    assert equal(learned(folder, teacher, **kind), plain)
    assert not [t for t in threading.enumerate() if t.name.startswith("read ahead")]


def test_after_a_rollback_other_rows_are_read_than_were_expected(folder, teacher, monkeypatch):
    accept = TrainingLoop.accept

    def spoiled(loop, loss, terms=()):
        return accept(loop, loss * float("nan") if loop.step in (3, 5) else loss, terms)

    monkeypatch.setattr(TrainingLoop, "accept", spoiled)
    plain = learned(folder, teacher)
    monkeypatch.setattr(feed, "AHEAD", ("cpu",))
    monkeypatch.setattr(synthetic, "HELD", 0.0)
    monkeypatch.setattr(loop, "DEFERRED", ("cpu",))
    assert equal(learned(folder, teacher), plain)


def test_a_student_that_was_killed_goes_on_with_the_same_bits(
    folder, teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(feed, "AHEAD", ("cpu",))
    monkeypatch.setattr(synthetic, "HELD", 0.0)
    whole, read = learned(folder, teacher), Feed.batch

    def dying(self, rows, calls=[]):  # noqa: B006 - it counts
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return read(self, rows)

    run = Checkpoints(tmp_path / "run", "student", every=0)
    with monkeypatch.context() as patch:
        patch.setattr(Feed, "batch", dying)
        with pytest.raises(KeyboardInterrupt):
            learned(folder, teacher, run)
    assert run.load()["step"] == 5
    assert equal(learned(folder, teacher, run), whole)


def test_expected_rows_are_read_while_others_wait(folder, monkeypatch):
    monkeypatch.setattr(feed, "AHEAD", ("cpu",))
    monkeypatch.setattr(synthetic, "HELD", 0.0)
    data, readers = SyntheticSet(folder), []
    original = data.batch
    data.batch = lambda *given: readers.append(threading.current_thread().name) or original(*given)
    with Feed(data, CPU) as batches:
        assert batches.is_ahead
        rows, others = torch.tensor([3, 25, 3]), torch.tensor([31, 0, 7])
        batches.expect(rows)
        assert equal(batches.batch(rows), original(rows))
        batches.expect(rows)
        assert equal(batches.batch(others), original(others))
    assert len(readers) == 3
    assert all(name.startswith("read ahead") for name in readers)


def test_what_goes_wrong_while_reading_ahead_is_told(folder, monkeypatch):
    monkeypatch.setattr(feed, "AHEAD", ("cpu",))
    monkeypatch.setattr(synthetic, "HELD", 0.0)
    data = SyntheticSet(folder)

    def broken(indices, device):
        raise CheckpointError("Damaged.")

    data.batch = broken
    with Feed(data, CPU) as batches:
        batches.expect(torch.tensor([0]))
        with pytest.raises(CheckpointError, match="Damaged"):
            batches.batch(torch.tensor([0]))


def test_a_set_is_held_only_where_a_quarter_of_what_is_free_can_take_it(folder, monkeypatch):
    data = SyntheticSet(folder)
    monkeypatch.setattr(synthetic, "free_memory", lambda device: 4 * data._bytes - 1)
    assert not data.hold(CPU)
    monkeypatch.setattr(synthetic, "free_memory", lambda device: None)
    assert not data.hold(CPU)
    rows = torch.tensor([31, 0, 19, 20])
    before = data.batch(rows)
    monkeypatch.setattr(synthetic, "free_memory", lambda device: 4 * data._bytes)
    assert data.hold(CPU)
    assert equal(data.batch(rows), before)
    assert data._held[0].dtype == torch.uint8
    with pytest.raises(IndexError, match="below 32"):
        data.batch(torch.tensor([32]))


def test_on_the_cpu_nothing_is_held_and_nobody_reads_ahead(folder):
    data = SyntheticSet(folder)
    with Feed(data, CPU) as batches:
        assert not batches.is_ahead
        assert data._held is None
