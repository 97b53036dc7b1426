"""Batch normalisation while a student learns: matched, frozen, re-estimated, trained."""

import copy

import pytest
import torch

from freia_kd.data.synthetic import SyntheticSet, SyntheticWriter, dequantise, quantise
from freia_kd.distillation import DistillationOptions, train_student
from freia_kd.errors import UsageError
from freia_kd.teachers import Classifier


@pytest.fixture
def data(teacher, tmp_path):
    x = quantise(torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        logits = teacher(dequantise(x))
    SyntheticWriter(tmp_path / "set", teacher.domain).append(x, logits, logits.argmax(1))
    return SyntheticSet(tmp_path / "set")


@pytest.fixture
def normalised(teacher):
    """A student with batch normalisation and dropout, of the teacher's domain."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 5, 4),
        torch.nn.BatchNorm2d(4),
        torch.nn.Dropout(0.9),
        torch.nn.Flatten(),
        torch.nn.Linear(196, 10),
    )
    return Classifier(net, teacher.domain, "custom")


@pytest.mark.parametrize("bn", ["match", "freeze", "reestimate", "train"])
def test_batch_normalisation_is_matched_frozen_reestimated_or_trained(normalised, data, bn):
    conv, norm = copy.deepcopy(normalised.net[0]), normalised.net[1]
    x = normalised.domain.normalize(data.batch(torch.arange(64))[0])
    seen = conv(x).detach().transpose(0, 1).flatten(1)
    options = DistillationOptions(steps=3, batch_size=16, bn=bn)
    origin = copy.deepcopy(normalised.net)
    origin[0].bias.data += 1.0  # so that compression would have lowered all features by 1
    train_student(normalised, data, options, torch.Generator().manual_seed(0), origin=origin)
    expected = {"match": -torch.ones(4), "freeze": torch.zeros(4), "reestimate": seen.mean(1)}
    if bn == "train":
        assert norm.num_batches_tracked == 3
        assert not torch.allclose(norm.running_mean, torch.zeros(4))
    else:
        torch.testing.assert_close(norm.running_mean, expected[bn])
    assert not normalised.training
    assert not norm.training


def test_matching_asks_for_the_net_to_match(normalised, data):
    with pytest.raises(UsageError, match="needs the teacher; pass teacher="):
        train_student(normalised, data, DistillationOptions(steps=1))


def test_dropout_does_not_blur_what_the_student_learns(normalised, data):
    options = DistillationOptions(steps=2, batch_size=16, bn="train")

    def trained():
        student = copy.deepcopy(normalised)
        train_student(student, data, options, torch.Generator().manual_seed(0), heldout=data)
        return student.net[4].weight

    torch.manual_seed(1)
    first = trained()
    torch.manual_seed(2)
    assert torch.equal(first, trained())
