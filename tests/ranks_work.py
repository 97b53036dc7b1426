"""What one of two processes does; apart, so that its process imports little."""

from contextlib import contextmanager

import torch
from torch import nn

from freia_kd import ranks
from freia_kd.config import DistillationOptions
from freia_kd.data.datasets import LabelledData
from freia_kd.data.synthetic import quantise
from freia_kd.distillation import train_student
from freia_kd.domain import Domain
from freia_kd.synthesizers import get_synthesizer
from freia_kd.synthesizers.on_the_fly import OnTheFlySet
from freia_kd.teachers import Classifier, Teacher, train_classifier
from freia_kd.training import TrainingLoop
from stopping import Stopping

DOMAIN = Domain((1, 8, 8), 3, (0.4,), (0.3,), "tiny")
GAME = {"steps": 2, "batch_size": 8, "latents": 6, "channels": (4, 3)}
BANK = {"images": 8, "batch_size": 8, "steps": 2}
SYNTHESIZERS = {
    "bdnf": {"steps": 2, "batch_size": 8, "flow": "nice", "prior": True, "clip": 1e3},
    "kegnet": {"steps": 2, "batch_size": 8, "generators": 2, "latents": 4},
    "dfad": {**GAME, "student_steps": 2, "snapshots": 2},
    "rdskd": {**GAME, "epoch": 1},
    "deepinversion": {**BANK, "coarse": 0.5, "flip": True, "variation": 1e-2, "norm": 1e-2},
    "adaptive-deepinversion": BANK,
    "kw-inception": BANK,
    "kw-bns": BANK,
    "kw-mixture": BANK,
}
KINDS = ["student", "mix", "new", "teacher", *SYNTHESIZERS]


def net(channels=4):
    layers = [
        nn.Conv2d(1, channels, 3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(36 * channels, 3))


def seeded(channels=4):
    torch.manual_seed(2)
    return net(channels)


def make_teacher():
    torch.manual_seed(1)
    made = net()
    made[1].running_mean.normal_()
    made[1].running_var.uniform_(0.5, 2)
    return Teacher(made.eval(), DOMAIN, "tiny")


class Inputs(OnTheFlySet):
    """Noise in place of what a synthesizer makes."""

    def _make(self, number):
        x = torch.rand(self.chunk, 1, 8, 8, generator=torch.Generator().manual_seed(number))
        x = quantise(x)
        return x, self.teacher(x.float() / 255).detach(), torch.zeros(self.chunk)


class Recorder:
    """The gradients and losses of every step of all loops."""

    def __init__(self):
        self.gradients, self.losses, backward = [], [], TrainingLoop.backward

        def recording(loop, loss, optimizer=None):
            backward(loop, loss, optimizer)
            groups = (optimizer or loop.optimizer).param_groups
            found = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            self.gradients.append(torch.cat([gradient.reshape(-1) for gradient in found]))
            self.losses.append(loop.last_values)

        self.backward = backward
        TrainingLoop.backward = recording

    def stop(self):
        TrainingLoop.backward = self.backward


def synthesize(kind, checkpoints=None, **changes):
    """Inputs of a synthesizer that has learned.

    In float64: Adam makes whole steps of gradients that are zero but for rounding.
    """
    torch.set_default_dtype(torch.float64)
    try:
        return _synthesize(kind, checkpoints, changes)
    finally:
        torch.set_default_dtype(torch.float32)


def _synthesize(kind, checkpoints, changes):
    source = get_synthesizer(kind).build("best", {**SYNTHESIZERS[kind], **changes})
    student = Classifier(seeded(3), DOMAIN, "tiny")
    student.is_new = True  # so that it learns batch statistics in the game
    generator = torch.Generator().manual_seed(0)
    source.fit(make_teacher(), None, checkpoints, generator, student)
    return {"inputs": source.sample(12, generator=generator)[0]}


def learn(kind):
    """Two steps or more: gradients, losses, and the weights or inputs that come out."""
    recorder, generator = Recorder(), torch.Generator().manual_seed(0)
    try:
        if kind in SYNTHESIZERS:
            made = synthesize(kind)
        elif kind == "teacher":
            classifier, y = seeded(), torch.arange(16) % 3
            x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
            data = LabelledData(quantise(x), y, "noise")
            train_classifier(classifier, data, DOMAIN, 1, 8, generator=generator)
            made = classifier.state_dict()
        else:
            teacher, student = make_teacher(), Classifier(seeded(3), DOMAIN, "tiny")
            student.is_new = kind == "new"
            options = DistillationOptions(steps=2, batch_size=8, mixup=0.5 if kind == "mix" else 0)
            data = Inputs([], teacher, 0, chunk=8)
            train_student(student, data, options, generator, teacher=teacher)
            made = student.state_dict()
    finally:
        recorder.stop()
    flat = torch.cat([value.reshape(-1).double() for value in made.values()])
    return recorder.gradients, recorder.losses, flat


def learn_together(rank, folder, results):
    with two_ranks(rank, folder):
        for kind in KINDS:
            gradients, losses, made = learn(kind)
            results[kind, rank] = ([g.tolist() for g in gradients], losses, made.tolist())


def stop(kind, folder, at):
    """Goes on with what is in a folder up to a step."""
    try:
        synthesize(kind, Stopping(folder, "stage", at), steps=3)
    except KeyboardInterrupt:
        return
    raise AssertionError("there was nothing left to do")


def stop_together(rank, folder, kinds, at):
    with two_ranks(rank, folder):
        for kind in kinds:
            stop(kind, folder / kind, at)


@contextmanager
def two_ranks(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    assert ranks.count() == 2
    yield
    torch.distributed.destroy_process_group()
