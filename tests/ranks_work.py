"""What one of two processes does; apart, so that its process imports little."""

import torch
from torch import nn

from freia_kd import ranks
from freia_kd.config import DistillationOptions
from freia_kd.data.datasets import LabelledData
from freia_kd.data.synthetic import quantise
from freia_kd.distillation import train_student
from freia_kd.domain import Domain
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
from freia_kd.synthesizers.on_the_fly import OnTheFlySet
from freia_kd.teachers import Classifier, Teacher, train_classifier
from freia_kd.training import TrainingLoop

DOMAIN = Domain((1, 8, 8), 3, (0.4,), (0.3,), "tiny")


def net(channels=4):
    layers = [nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(36 * channels, 3))


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

    def __init__(self, monkeypatch=None):
        self.gradients, self.losses, backward = [], [], TrainingLoop.backward

        def recording(loop, loss):
            backward(loop, loss)
            named = (p for group in loop.optimizer.param_groups for p in group["params"])
            self.gradients.append(torch.cat([p.grad.reshape(-1) for p in named]))
            self.losses.append(loop.last_values)

        self.backward = backward
        TrainingLoop.backward = recording

    def stop(self):
        TrainingLoop.backward = self.backward


def learn(kind):
    """Two steps of a student or of a flow: gradients, losses, and the weights that come out."""
    teacher, recorder = make_teacher(), Recorder()
    generator = torch.Generator().manual_seed(0)
    try:
        if kind == "flow":
            options = BDNFOptions(steps=2, batch_size=8, flow="nice", prior=True, clip=1e3)
            source = BDNF(options)
            source.fit(teacher, generator=generator)
            weights = source.flow.state_dict()
        elif kind == "teacher":
            torch.manual_seed(2)
            made, y = net(), torch.arange(16) % 3
            x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
            data = LabelledData(quantise(x), y, "noise")
            train_classifier(made, data, DOMAIN, 1, 8, generator=generator)
            weights = made.state_dict()
        else:
            torch.manual_seed(2)
            student = Classifier(net(3), DOMAIN, "tiny")
            options = DistillationOptions(steps=2, batch_size=8, mixup=0.5 if kind == "mix" else 0)
            data = Inputs([], teacher, 0, chunk=8)
            train_student(student, data, options, generator, teacher=teacher)
            weights = student.state_dict()
    finally:
        recorder.stop()
    flat = torch.cat([w.reshape(-1).double() for w in weights.values()])
    return recorder.gradients, recorder.losses, flat


def learn_together(rank, path, results, kind):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    assert ranks.count() == 2
    gradients, losses, weights = learn(kind)
    results[rank] = ([g.tolist() for g in gradients], losses, weights.tolist())
    torch.distributed.destroy_process_group()
