"""What only a GPU shows: `pytest -m gpu`. Everything else of it is tested on the CPU."""

import contextlib
import copy
import json

import pytest
import torch
from torch import nn

from freia_kd import device as devices
from freia_kd.config import DistillationOptions
from freia_kd.data import synthetic
from freia_kd.data.datasets import LabelledData
from freia_kd.data.feed import Feed
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, quantise
from freia_kd.distillation import train_student
from freia_kd.domain import Domain
from freia_kd.synthesizers import SYNTHESIZERS, build_synthesizers
from freia_kd.teachers import Classifier, Teacher, train_classifier
from freia_kd.training import TrainingLoop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
GPU = torch.device("cuda")
DOMAIN = Domain((3, 16, 16), 3, (0.4,) * 3, (0.3,) * 3, "small")
STEPS = 25  # of which one in the middle is looked at
ROWS = 512


def make_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3))


def make_student():
    net = make_net()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(0.9)
    return devices.place(Classifier(net, DOMAIN, "small"), GPU)


@pytest.fixture
def teacher():
    return devices.place(Teacher(make_net().eval(), DOMAIN, "small"), GPU)


@pytest.fixture
def data(teacher, tmp_path):
    generator = torch.Generator().manual_seed(0)
    writer = SyntheticWriter(tmp_path / "set", DOMAIN)
    for _ in range(2):
        x = quantise(torch.rand(ROWS // 2, *DOMAIN.shape, generator=generator))
        logits = teacher(x.to(GPU) / 255)
        writer.append(x, logits, torch.zeros(len(x), dtype=torch.long))
    return SyntheticSet(tmp_path / "set")


@pytest.fixture
def unwaiting(monkeypatch):
    """Lets every wait for the GPU raise within the steps of loops, save where losses are read."""
    go, look = TrainingLoop.__iter__, TrainingLoop._look

    @contextlib.contextmanager
    def mode(name):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode(name)
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def watched(loop):
        with contextlib.ExitStack() as stack:
            for step in go(loop):
                if step == 2:
                    stack.enter_context(mode("error"))
                yield step

    def looked(loop):
        with mode("default"):
            return look(loop)

    monkeypatch.setattr(TrainingLoop, "__iter__", watched)
    monkeypatch.setattr(TrainingLoop, "_look", looked)


def test_a_held_set_gives_the_rows_of_the_files(data):
    rows = torch.tensor([3, 500, 3, 255, 256])
    before = data.batch(rows)
    assert data.hold(GPU)
    for ours, theirs in zip(data.batch(rows, GPU), before, strict=True):
        assert ours.device.type == "cuda"
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=0)
    assert data._held[0].dtype == torch.uint8


def test_rows_that_were_read_ahead_are_those_of_the_files(data, monkeypatch):
    monkeypatch.setattr(synthetic, "HELD", 0.0)
    with Feed(data, GPU) as feed:
        assert feed.is_ahead
        for seed in range(20):
            rows = torch.randint(ROWS, (64,), generator=torch.Generator().manual_seed(seed))
            feed.expect(rows)
            for ours, theirs in zip(feed.batch(rows), data.batch(rows), strict=True):
                torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"balanced": False}, {"mixup": 0.5}, {"boundaries": 0.5}, {"pull": 0.1}]
)
def test_a_student_waits_for_nothing(holds, options, teacher, data, unwaiting, monkeypatch):
    monkeypatch.setattr(synthetic, "HELD", 0.25 if holds else 0.0)
    options = DistillationOptions(steps=2 * STEPS, batch_size=64, **options)
    student = make_student()
    generator = torch.Generator().manual_seed(0)
    train_student(student, data, options, generator, teacher=teacher, precision="bf16")
    assert all(bool(weight.isfinite().all()) for weight in student.parameters())


def test_held_or_read_ahead_a_student_learns_the_same(teacher, data, monkeypatch):
    def learned(holds):
        monkeypatch.setattr(synthetic, "HELD", 0.25 if holds else 0.0)
        student, options = make_student(), DistillationOptions(steps=STEPS, batch_size=64)
        train_student(student, SyntheticSet(data.folder), options, torch.Generator().manual_seed(0))
        return student.state_dict()

    held = learned(True)
    for name, ahead in learned(False).items():
        torch.testing.assert_close(ahead, held[name], rtol=1e-3, atol=1e-4)


def test_a_teacher_waits_for_nothing(unwaiting):
    x = torch.rand(64 * STEPS, *DOMAIN.shape, generator=torch.Generator().manual_seed(0))
    data = LabelledData(quantise(x), torch.arange(len(x)) % 3, "noise")
    train_classifier(make_net(), data, DOMAIN, epochs=1, batch_size=64, device=GPU)


TRAINED = [name for name, kind in SYNTHESIZERS.items() if hasattr(kind.Options, "steps")]


@pytest.mark.parametrize("name", TRAINED)
def test_a_synthesizer_waits_for_nothing(name, teacher, unwaiting):
    (source,) = build_synthesizers(name, "quick")
    sizes = {"steps": STEPS, "batch_size": 16, "images": 16, "generators": 1, "channels": (8, 4)}
    known = {key: value for key, value in sizes.items() if hasattr(source.options, key)}
    source = type(source)(source.options.changed(**known))
    x = torch.rand(9, *DOMAIN.shape, generator=torch.Generator().manual_seed(0))
    samples = LabelledData(x, torch.arange(9) % 3, "few") if source.takes_samples else None
    generator = torch.Generator(GPU).manual_seed(0)
    source.fit(teacher, samples, None, generator, make_student())
    images, _ = source.sample(8, generator=generator)
    assert bool(images.isfinite().all())


def test_a_loss_that_is_not_finite_is_rolled_back(teacher, data, monkeypatch):
    accept, refused = TrainingLoop.accept, []

    def spoiled(loop, loss, terms=()):
        answer = accept(loop, loss * float("nan") if loop.step == 7 else loss, terms)
        refused.extend([] if answer else [loop.step])
        return answer

    monkeypatch.setattr(TrainingLoop, "accept", spoiled)
    student, options = make_student(), DistillationOptions(steps=STEPS, batch_size=64)
    train_student(student, data, options, torch.Generator().manual_seed(0))
    assert refused == [7]
    assert all(bool(weight.isfinite().all()) for weight in student.parameters())


def test_memory_does_not_grow_with_a_set_that_is_read_ahead(teacher, tmp_path, monkeypatch):
    domain = Domain((3, 64, 64), 3, (0.4,) * 3, (0.3,) * 3, "larger")
    writer = SyntheticWriter(tmp_path, domain)
    for _ in range(8):
        x = torch.randint(256, (1024, *domain.shape), dtype=torch.uint8)
        writer.append(x, torch.randn(1024, 3), torch.zeros(1024, dtype=torch.long))
    data = SyntheticSet(tmp_path)  # 100 MB
    monkeypatch.setattr(synthetic, "HELD", 0.0)
    student = devices.place(
        Classifier(nn.Sequential(nn.AvgPool2d(4), make_net()), domain, "x"), GPU
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    options = DistillationOptions(steps=STEPS, batch_size=32)
    train_student(student, data, options, torch.Generator().manual_seed(0))
    assert torch.cuda.max_memory_allocated() - before < data._bytes / 2


def test_a_whole_job(teacher, tiny, tiny_bdnf, tmp_path):
    from freia_kd import distill, resume

    taught = Teacher(copy.deepcopy(teacher.net).cpu(), DOMAIN, "small")
    out = tmp_path / "run"
    sources = [tiny_bdnf, "leaves"]
    distill(taught, students=("1",), synthesizer=sources, preset=tiny, device="cuda", out=out)
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["device"] == "cuda"
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert config["precision"] == ("bf16" if has_bf16 else None)
    assert (out / "report.html").exists()
    before = (out / "report.json").read_bytes()
    resume(out, teacher=taught)
    assert (out / "report.json").read_bytes() == before
