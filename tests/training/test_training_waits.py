"""No step waits for the device: losses and the like are read between steps, and seldom."""

import contextlib
import traceback

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from freia_kd.config import DistillationOptions
from freia_kd.data import feed
from freia_kd.data.datasets import LabelledData
from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, quantise
from freia_kd.distillation import train_student
from freia_kd.domain import Domain
from freia_kd.synthesizers import SYNTHESIZERS, build_synthesizers
from freia_kd.teachers import Classifier, Teacher, train_classifier
from freia_kd.training import TrainingLoop
from freia_kd.training import loop as looping

DOMAIN = Domain((1, 8, 8), 3, (0.4,), (0.3,), "tiny")
STEPS = 5
# What asks a tensor for its values, or for a size that depends on them.
READERS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2")


class Waits(TorchDispatchMode):
    """The places in this package that read a tensor, save optimizers, whose counts torch keeps on
    the CPU."""

    def __init__(self):
        super().__init__()
        self.places, self.is_watching = [], False

    def __enter__(self):
        self.is_watching = True
        return super().__enter__()

    def __exit__(self, *error):
        self.is_watching = False
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in READERS:
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self):
        frames = traceback.extract_stack()
        if not any("/torch/optim/" in frame.filename for frame in frames):
            ours = [f for f in frames if "/freia_kd/" in f.filename]
            self.places += [f"{f.filename}:{f.lineno} {f.line}" for f in ours[-1:]]


@pytest.fixture
def waits(monkeypatch):
    """Watches all steps but the first, and what the loop does between them, as on a GPU."""
    found, go = Waits(), TrainingLoop.__iter__

    def watched(loop):
        with contextlib.ExitStack() as stack:
            for step in go(loop):
                if step == 1:
                    stack.enter_context(found)
                yield step
                if step == loop.steps - 1:
                    stack.close()

    def reading(read):
        def noted(value, *arguments, **options):
            if found.is_watching and options.get("device") != "cpu":
                found.note()
            return read(value, *arguments, **options)

        return noted

    monkeypatch.setattr(TrainingLoop, "__iter__", watched)
    monkeypatch.setattr(looping, "DEFERRED", ("cpu",))
    monkeypatch.setattr(looping, "LOOK_EVERY", 1e9)
    monkeypatch.setattr(feed, "AHEAD", ("cpu",))
    monkeypatch.setattr(feed.SyntheticSet, "hold", lambda data, device: False)
    monkeypatch.setattr("freia_kd.flows.contract.readable", lambda value: False)
    # What torch does not show to modes; and what sends numbers to a GPU, and waits for them there.
    for name in ("tolist", "cpu", "new_tensor"):
        monkeypatch.setattr(torch.Tensor, name, reading(getattr(torch.Tensor, name)))
    return found


def make_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(4)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture
def teacher():
    return Teacher(make_net().eval(), DOMAIN, "tiny")


@pytest.fixture
def data(teacher, tmp_path):
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    SyntheticWriter(tmp_path, DOMAIN).append(quantise(x), teacher(x), torch.zeros(64))
    return SyntheticSet(tmp_path)


@pytest.mark.parametrize("options", [{}, {"balanced": False}, {"boundaries": 0.9}, {"pull": 0.1}])
def test_a_student_waits_for_nothing(options, teacher, data, waits):
    student = Classifier(make_net(), DOMAIN, "tiny")
    options = DistillationOptions(steps=STEPS, batch_size=8, **options)
    train_student(student, data, options, torch.Generator().manual_seed(0), teacher=teacher)
    assert waits.places == []


def test_a_teacher_waits_for_nothing(waits):
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    said = []
    data = LabelledData(quantise(x), torch.arange(40) % 3, "noise")
    train_classifier(make_net(), data, DOMAIN, epochs=1, batch_size=8, on_step=said.append)
    assert len(said) == STEPS
    assert waits.places == []


TRAINED = [name for name, kind in SYNTHESIZERS.items() if hasattr(kind.Options, "steps")]


@pytest.mark.parametrize("name", TRAINED)
def test_a_synthesizer_waits_for_nothing(name, teacher, waits):
    (source,) = build_synthesizers(name, "quick")
    sizes = {"steps": STEPS, "batch_size": 8, "images": 8, "generators": 1, "channels": (8, 4)}
    sizes["epoch"] = 2
    known = {key: value for key, value in sizes.items() if hasattr(source.options, key)}
    source = type(source)(source.options.changed(**known))
    x = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    samples = LabelledData(x, torch.arange(9) % 3, "few") if source.takes_samples else None
    student = Classifier(make_net(), DOMAIN, "tiny")
    source.fit(teacher, samples, None, torch.Generator().manual_seed(0), student)
    assert waits.places == []


def test_a_step_that_reads_its_loss_is_found(teacher, data, waits, monkeypatch):
    accept = TrainingLoop.accept
    monkeypatch.setattr(
        TrainingLoop, "accept", lambda *given: bool(given[1] > 0) and accept(*given)
    )
    student = Classifier(make_net(), DOMAIN, "tiny")
    options = DistillationOptions(steps=STEPS, batch_size=8)
    train_student(student, data, options, torch.Generator().manual_seed(0))
    assert len(waits.places) == STEPS - 1
    assert "if loop.accept(loss)" in waits.places[0]
