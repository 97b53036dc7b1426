import numpy as np
import pytest
import torch

from freia_kd.domain import Domain
from freia_kd.errors import UsageError
from freia_kd.synthesizers import build_synthesizers, expect_supported, supported
from freia_kd.synthesizers.proxy import Proxy, ProxyOptions
from freia_kd.teachers import Teacher
from freia_kd.teachers.mlp import MLP
from freia_kd.training import Checkpoints


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def source(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (12, 20, 28, 3), dtype=np.uint8)
    np.savez(tmp_path / "any.npz", images=colours)
    return str(tmp_path / "any.npz")


def fitted(teacher, **options):
    synthesizer = Proxy(ProxyOptions(**options))
    synthesizer.fit(teacher)
    return synthesizer


def test_images_from_anywhere_are_answered_by_the_teacher(teacher, source):
    synthesizer = fitted(teacher, source=source, augment="never")
    x, y = synthesizer.sample(24, generator=generator())
    assert x.shape == (24, 1, 32, 32)
    assert 0 <= x.min() < x.max() <= 1
    assert len(x.flatten(1).unique(dim=0)) == synthesizer.distinct == 12
    with torch.no_grad():
        assert torch.equal(y, teacher(x).argmax(1))
    assert fitted(teacher, source=source, most=5).sample(1, generator=generator())[0].shape[0] == 1
    assert len(fitted(teacher, source=source, most=5).inputs) == 5


def test_few_are_augmented(teacher, source):
    (synthesizer,) = build_synthesizers("proxy", "quick", {"source": source})
    synthesizer.fit(teacher)
    x, _ = synthesizer.sample(200, generator=generator())
    assert len(x.flatten(1).unique(dim=0)) == 200
    assert torch.equal(x, synthesizer.sample(200, generator=generator())[0])
    assert not torch.equal(x, synthesizer.sample(200, generator=generator(1))[0])
    assert synthesizer.distinct is None


def test_vectors(tmp_path):
    teacher = Teacher(MLP(3, 2), Domain((3,), 2), "mlp")
    np.savez(tmp_path / "a.npz", x=np.eye(3, dtype=np.float32))
    synthesizer = fitted(teacher, source=str(tmp_path / "a.npz"))
    assert len(synthesizer.sample(50, generator=generator())[0].unique(dim=0)) == 50


def test_it_is_able_where_it_has_a_source(teacher, source):
    assert "proxy" not in supported(teacher)
    expect_supported([Proxy(ProxyOptions(source=source))], teacher)
    with pytest.raises(UsageError, match=r"'proxy' needs images of yours.*names none"):
        expect_supported([Proxy()], teacher)


def test_a_source_is_needed(teacher):
    with pytest.raises(UsageError, match="its option source names none; give a folder"):
        Proxy().fit(teacher)
    with pytest.raises(UsageError, match="There is no folder or file"):
        fitted(teacher, source="nowhere")
    with pytest.raises(ValueError, match=r"proxy.most: expected at least 1; got 0"):
        ProxyOptions(most=0)


def test_a_run_that_goes_on_shows_the_images_that_it_read(teacher, source, tmp_path):
    first, again = (Proxy(ProxyOptions(source=source)) for _ in range(2))
    first.fit(teacher, checkpoints=Checkpoints(tmp_path, "proxy"))
    np.savez(source, images=np.full((3, 8, 8), 200, dtype=np.uint8))
    again.fit(teacher, checkpoints=Checkpoints(tmp_path, "proxy"))
    assert torch.equal(again.inputs, first.inputs)
    assert torch.equal(again.labels, first.labels)
    x, _ = again.sample(5, generator=generator())
    assert torch.equal(x, first.sample(5, generator=generator())[0])


def test_reports_say_where_the_images_are(source):
    assert source in (Proxy(ProxyOptions(source=source)).real_images or "")
