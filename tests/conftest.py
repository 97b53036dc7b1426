"""Shared fixtures: one thread, a small teacher, and where real data may lie."""

import os
from pathlib import Path

import pytest
import torch

from freia_kd.domain import Domain
from freia_kd.teachers import Classifier, Teacher, build_net, save_classifier

torch.set_num_threads(1)

SMALL = Domain((1, 32, 32), 10, (0.3,), (0.3,), "small")


@pytest.fixture
def data_root():
    """The folder of torchvision's data sets, if this machine has one."""
    root = Path(os.environ.get("FREIAKD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "MNIST").is_dir():
        pytest.skip("no MNIST here; set FREIAKD_DATA to torchvision's data folder")
    return root


@pytest.fixture(scope="session")
def teacher():
    """An untrained LeNet5 with sensible logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Teacher(build_net("lenet5", SMALL), SMALL, "lenet5")


@pytest.fixture
def teacher_file(teacher, tmp_path):
    """The same, as a checkpoint with its domain."""
    path = tmp_path / "lenet5.pt"
    save_classifier(path, Classifier(teacher.net, teacher.domain, teacher.arch))
    return path


@pytest.fixture
def tiny(monkeypatch):
    """Makes the preset `quick` a matter of a second."""
    from freia_kd import presets
    from freia_kd.distillation import DistillationOptions
    from freia_kd.synthesizers.bdnf import BDNFOptions

    preset = presets.Preset(
        flow=BDNFOptions(steps=4, batch_size=8),
        set_size=64,
        heldout_size=32,
        student=DistillationOptions(steps=6, batch_size=16),
    )
    monkeypatch.setitem(presets.PRESETS, "quick", preset)
    return preset
