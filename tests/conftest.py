"""Shared fixtures: one thread, a small teacher, and where real data may lie."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from freia_kd.compression import compare_costs
from freia_kd.config import DistillationOptions, Preset
from freia_kd.data.datasets import LabelledData
from freia_kd.domain import Domain
from freia_kd.report.plots import write_png
from freia_kd.synthesizers.bdnf import BDNF, BDNFOptions
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
        net = build_net("lenet5", SMALL)
        net.fc2.weight.data *= 20
        return Teacher(net, SMALL, "lenet5")


@pytest.fixture
def teacher_file(teacher, tmp_path):
    """The same, as a checkpoint with its domain."""
    path = tmp_path / "lenet5.pt"
    save_classifier(path, Classifier(teacher.net, teacher.domain, teacher.arch))
    return path


@pytest.fixture(scope="session")
def tiny():
    """The preset `quick` as a matter of a second."""
    training = DistillationOptions(steps=6, batch_size=16)
    return Preset("quick", set_size=64, heldout_size=32, training=training)


@pytest.fixture(scope="session", autouse=True)
def short_measurements():
    """Latencies are measured for a moment only."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("freia_kd.api", "freia_kd.job.measure"):
            patch.setattr(f"{place}.compare_costs", partial(compare_costs, seconds=0.005))
        yield


@pytest.fixture(scope="session", autouse=True)
def undrawn_figures():
    """Reports' figures are made but not drawn, save in `tests/report`, where they are looked at."""

    def write(path, figure):
        write_png(path, Image.new("L", (1, 1)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("freia_kd.report.storage.write_png", write)
        yield


@pytest.fixture(scope="session")
def tiny_bdnf():
    """The synthesizer of a matter of a second."""
    return BDNF(BDNFOptions(steps=4, batch_size=8))


@pytest.fixture(scope="session")
def evaluation():
    """Fifty random images as evaluation data."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (50, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return LabelledData(images, torch.arange(50) % 10, "real")


@pytest.fixture(scope="session")
def finished(teacher, evaluation, tiny, tiny_bdnf, tmp_path_factory):
    """A whole run of the main job, in a folder that tests only read."""
    from freia_kd import distill

    out = tmp_path_factory.mktemp("finished") / "run"
    return distill(
        teacher,
        students=("1", "3"),
        preset=tiny,
        synthesizer=[tiny_bdnf, "leaves"],
        device="cpu",
        out=out,
        eval_data=evaluation,
    )
