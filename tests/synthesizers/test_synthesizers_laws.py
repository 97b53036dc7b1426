"""What holds for every synthesizer; a new one adds a row to the table."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from tiny_batchnorm import generator, make_net

from freia_kd.data.datasets import LabelledData
from freia_kd.domain import Domain
from freia_kd.errors import CheckpointError, UsageError
from freia_kd.synthesizers import SYNTHESIZERS, expect_supported, get_synthesizer, supported
from freia_kd.teachers import Classifier, Teacher
from freia_kd.teachers.mlp import MLP
from freia_kd.training import Checkpoints
from stopping import Stopping

DOMAIN = Domain((3, 8, 8), 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), "tiny")
VECTORS = Domain((4,), 3, (1.0, 0.0, -2.0, 5.0), (1.0, 2.0, 0.5, 3.0), "vectors")


@dataclass(frozen=True)
class Row:
    """A synthesizer in miniature.

    Arguments:
        options: Its options, such that it takes three steps or more.
        taught: Whether the labels of what it makes, none being asked for, are the teacher's.
        restored: What it gives once restored without its teacher: "the same", inputs that it
            has kept ("kept"), or nothing.
        name: The synthesizer, if not the row's own name.
    """

    options: dict[str, Any] = field(default_factory=dict)
    taught: bool = False
    restored: str | None = "the same"
    name: str = ""


FLOW = {"steps": 3, "batch_size": 4}
BANK = {"images": 12, "batch_size": 6, "steps": 2}
GAME = {"steps": 3, "batch_size": 4, "latents": 6, "channels": (4, 3)}
ROWS = {
    "bdnf": Row(FLOW),
    "bdnf, the paper's": Row({**FLOW, "base": "gaussian", "prior": False}, name="bdnf"),
    "kegnet": Row({"steps": 3, "batch_size": 8, "generators": 2, "latents": 4}),
    "dfad": Row({**GAME, "student_steps": 1, "snapshots": 2}, taught=True, restored="kept"),
    "rdskd": Row(GAME, taught=True, restored="kept"),
    "deepinversion": Row({**BANK, "coarse": 0.5, "flip": True}),
    "adaptive-deepinversion": Row(BANK),
    "kw-gaussian": Row(taught=True, restored=None),
    "kw-inception": Row(BANK),
    "kw-bns": Row(BANK, taught=True),
    "kw-mixture": Row(BANK),
    "samples": Row({"augment": "never"}),
    "samples, augmented": Row({"augment": "always"}, name="samples"),
    "leaves": Row(taught=True, restored=None),
    "figures": Row(taught=True, restored=None),
    "photos": Row(taught=True, restored=None),
    "proxy": Row({"augment": "never"}, taught=True),
    "spectral": Row(taught=True, restored=None),
    "uniform": Row(taught=True, restored=None),
    "normal": Row(taught=True, restored=None),
}


def kind_of(row):
    return get_synthesizer(ROWS[row].name or row)


TRAINED = [row for row in ROWS if "steps" in ROWS[row].options]
OF_VECTORS = [row for row in ROWS if not kind_of(row).needs_images]


def teacher_of(domain=DOMAIN):
    if not domain.is_image:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Teacher(MLP(4, 3), domain, "mlp")
    return Teacher(make_net(0, 3), domain, "tiny")


def student_of(domain=DOMAIN):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = make_net(1, 3) if domain.is_image else MLP(4, 3, (5,))
    return Classifier(net, domain, "student")


def samples_of(domain=DOMAIN):
    x = torch.rand(20, *domain.shape, generator=generator(9))
    return LabelledData(x, torch.arange(20) % 3, "few")


@pytest.fixture(autouse=True)
def images_of_others(tmp_path, monkeypatch):
    """What `proxy` shows: images without labels, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "(3, 8, 8).npz", x=rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8))
    np.savez(tmp_path / "(4,).npz", x=rng.normal(size=(20, 4)).astype(np.float32))


def build(row, domain=DOMAIN):
    options = ROWS[row].options
    if kind_of(row).name == "proxy":
        options = {**options, "source": f"{domain.shape}.npz"}
    return kind_of(row).build("best", options)


def fitted(row, source=0, checkpoints=None, domain=DOMAIN):
    """A synthesizer fitted with random numbers from a seed, or from a generator."""
    synthesizer = build(row, domain)
    samples = samples_of(domain) if synthesizer.needs_samples else None
    source = generator(source) if isinstance(source, int) else source
    synthesizer.fit(teacher_of(domain), samples, checkpoints, source, student_of(domain))
    return synthesizer


def drawn(synthesizer, n=7, labels=None, seed=5):
    return synthesizer.sample(n, labels, generator(seed))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


of_all = pytest.mark.parametrize("row", list(ROWS))
of_trained = pytest.mark.parametrize("row", TRAINED)


def test_every_synthesizer_has_a_row():
    assert {ROWS[row].name or row for row in ROWS} == set(SYNTHESIZERS)
    for name in SYNTHESIZERS:
        assert get_synthesizer(name).name == name


@of_all
def test_the_seeds_alone_decide_what_is_made(row):
    first = fitted(row)
    state, numpys = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    second = fitted(row)
    assert equal(drawn(first), drawn(second))
    assert not torch.equal(drawn(first)[0], drawn(first, seed=6)[0])
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator was used"
    assert str(np.random.get_state()) == numpys, "numpy's global generator was used"  # noqa: NPY002


@of_trained
def test_another_seed_learns_something_else(row):
    assert not torch.equal(drawn(fitted(row))[0], drawn(fitted(row, 1))[0])


@of_trained
def test_without_a_generator_torchs_seed_decides(row):
    seen = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seen.append((drawn(fitted(row, None))[0], torch.rand(3)))
    (x, after), (same, again), (other, _) = seen
    assert torch.equal(x, same)
    assert torch.equal(after, again), "the global generator was not drawn from alike"
    assert not torch.equal(x, other)


@of_all
@pytest.mark.parametrize("n", [1, 7])
def test_inputs_are_of_the_domain(row, n):
    x, y = drawn(fitted(row), n)
    assert x.shape == (n, *DOMAIN.shape)
    assert x.dtype == torch.float32
    assert 0 <= x.min() < x.max() <= 1
    assert not x.requires_grad
    assert y.shape == (n,)
    assert y.dtype == torch.int64
    assert 0 <= y.min() <= y.max() < DOMAIN.classes


@pytest.mark.parametrize("row", OF_VECTORS)
def test_vectors_are_of_the_domain(row):
    x, y = drawn(fitted(row, domain=VECTORS))
    assert x.shape == (7, 4)
    assert x.isfinite().all()
    assert y.shape == (7,)


@of_all
def test_labels_are_those_asked_for_or_the_teachers(row):
    synthesizer = fitted(row)
    x, y = drawn(synthesizer, 30)
    if ROWS[row].taught:
        with torch.no_grad():
            assert torch.equal(y, teacher_of()(x).argmax(1))
    else:
        assert set(y.tolist()) == {0, 1, 2}
    wanted = torch.tensor([2, 2, 0, 1])
    x, y = drawn(synthesizer, 4, wanted)
    assert torch.equal(y, wanted)
    assert x.shape == (4, *DOMAIN.shape)
    assert not torch.equal(x, drawn(synthesizer, 4, (wanted + 1) % 3)[0]), "labels change nothing"
    with pytest.raises(ValueError, match="Expected 3 labels; got 2"):
        synthesizer.sample(3, torch.arange(2))


@of_all
def test_soft_labels_are_taken_too(row):
    synthesizer = fitted(row)
    wanted = torch.tensor([2, 2, 0, 1])
    certain = torch.eye(3)[wanted]
    x, y = drawn(synthesizer, 4, certain)
    assert torch.equal(y, certain)
    assert torch.equal(x, drawn(synthesizer, 4, wanted)[0])
    mixed = torch.tensor([[0.5, 0.3, 0.2]])
    x, y = drawn(synthesizer, 1, mixed)
    assert torch.equal(y, mixed)
    assert 0 <= x.min() < x.max() <= 1


@of_trained
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_stopped_and_resumed_is_the_same(row, share, tmp_path):
    uncut = Stopping(tmp_path / "whole", "stage")
    whole, steps = fitted(row, checkpoints=uncut), len(uncut.seen)
    stop_at = max(1, int(share * steps))
    with pytest.raises(KeyboardInterrupt):
        fitted(row, checkpoints=Stopping(tmp_path / "cut", "stage", at=stop_at))
    rest = Stopping(tmp_path / "cut", "stage")
    resumed = fitted(row, checkpoints=rest)
    assert 0 < len(rest.seen) == steps - stop_at, "what was done was done again"
    assert equal(drawn(whole, 12), drawn(resumed, 12))
    again = fitted(row, checkpoints=rest)
    assert len(rest.seen) == steps - stop_at, "a finished one goes on"
    assert equal(drawn(whole, 12), drawn(again, 12))


@of_all
def test_restored_without_the_teacher(row, tmp_path):
    checkpoints, restored = Checkpoints(tmp_path, "stage"), build(row)
    if ROWS[row].restored is None:
        with pytest.raises(UsageError, match="cannot sample without its teacher"):
            restored.restore(DOMAIN, checkpoints)
        return
    with pytest.raises(CheckpointError, match=r"has no \w+"):
        restored.restore(DOMAIN, checkpoints)
    synthesizer = fitted(row, checkpoints=checkpoints)
    restored.restore(DOMAIN, checkpoints)
    if ROWS[row].restored == "the same":
        assert equal(drawn(synthesizer), drawn(restored))
    else:
        x, y = drawn(restored, 40)
        assert len(x.unique(dim=0)) == 40
        with torch.no_grad():
            assert torch.equal(y, teacher_of()(x).argmax(1))


@of_all
def test_keeping_states_changes_no_random_number(row, tmp_path):
    after = []
    for checkpoints in (None, Checkpoints(tmp_path, "stage")):
        source = generator()
        fitted(row, source, checkpoints)
        after.append(torch.rand(3, generator=source))
    assert torch.equal(*after)


@of_all
def test_teacher_and_student_stay_as_they_are(row):
    synthesizer, teacher, student = build(row), teacher_of(), student_of().train()
    nets = (teacher, student)
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    asked = [[p.requires_grad for p in net.parameters()] for net in nets]
    samples = samples_of() if synthesizer.needs_samples else None
    synthesizer.fit(teacher, samples, None, generator(), student)
    drawn(synthesizer)
    for net, state, flags in zip(nets, before, asked, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert [p.requires_grad for p in net.parameters()] == flags
        assert all(p.grad is None for p in net.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert student.training
    assert not teacher.training


@of_all
def test_what_it_needs_is_asked_for_before_any_work(row):
    kind, teacher, samples = kind_of(row), teacher_of(), samples_of()
    options = build(row).options
    assert kind.unsupported_reason(teacher, samples, options=options) is None
    plain = teacher_of(VECTORS)
    bare = Teacher(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), DOMAIN, "bare")
    found = {
        "needs_images": kind.unsupported_reason(plain, samples_of(VECTORS), options=options),
        "needs_batchnorm": kind.unsupported_reason(bare, samples, options=options),
        "needs_samples": kind.unsupported_reason(teacher, options=options),
        "needs_student": kind.unsupported_reason(teacher, samples, False, options),
    }
    assert {need: reason is not None for need, reason in found.items()} == {
        need: getattr(kind, need) or (need == "needs_images" and kind.needs_batchnorm)
        for need in found
    }
    if found["needs_images"] is not None:
        with pytest.raises(UsageError, match=f"{kind.name!r} makes images.*those that can"):
            expect_supported([build(row)], plain)
    names = supported(plain)
    assert (kind.name in names) == (kind.unsupported_reason(plain) is None)


@of_trained
def test_options_that_make_no_sense_are_refused(row):
    with pytest.raises(UsageError, match=rf"{kind_of(row).name}\.steps: expected at least 1; got "):
        kind_of(row).build("best", {"steps": 0})
    with pytest.raises(UsageError, match=r"did you mean '.*\.steps'"):
        kind_of(row).build("best", {"stpes": 1})
    with pytest.raises(TypeError, match="Expected options of"):
        kind_of(row)(object())


@of_all
def test_processes_share_what_learns(row, monkeypatch):
    kind, teacher = kind_of(row), teacher_of()
    assert kind.is_shared == (row in TRAINED)
    monkeypatch.setattr("freia_kd.ranks.count", lambda: 4)
    if not kind.is_shared:
        build(row).check(teacher)  # which the first process fits
        return
    size = (
        {"batch_size": 6, "images": 90} if "images" in kind.known_options() else {"batch_size": 6}
    )
    refused = rf"{kind.name}\.batch_size: .* 4 processes .* got 6 inputs"
    with pytest.raises(UsageError, match=refused):
        kind.build("best", size).check(teacher)
    if "images" in size:
        with pytest.raises(UsageError, match=rf"{kind.name}\.images: .* got 6 inputs"):
            kind.build("best", {"batch_size": 8, "images": 6}).check(teacher)


@of_all
def test_presets_are_known_ones(row):
    kind = kind_of(row)
    made = {name: kind.build(name).options for name in ("quick", "standard", "best", "paper")}
    if row in TRAINED:
        assert made["quick"].steps < made["best"].steps
    with pytest.raises(UsageError, match=r"Unknown preset 'mini'.*quick, standard, best, paper"):
        kind.build("mini")
