import pytest
import torch

from freia_kd.data.augment import Augmentation
from freia_kd.data.datasets import LabelledData
from freia_kd.domain import Domain
from freia_kd.errors import UsageError
from freia_kd.synthesizers import SYNTHESIZERS
from freia_kd.synthesizers.samples import Samples, SamplesOptions
from freia_kd.teachers import Teacher
from freia_kd.teachers.mlp import MLP


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def few(count):
    images = torch.randint(256, (count, 1, 32, 32), generator=generator(9), dtype=torch.uint8)
    return LabelledData(images, torch.arange(count) % 3, "few")


def fitted(teacher, count, run=None, augment="never"):
    synthesizer = SYNTHESIZERS["samples"](SamplesOptions(augment))
    synthesizer.fit(teacher, few(count), run)
    return synthesizer


def rows(x, data):
    """Which of the data each input is; fails if it is none of them."""
    known = data.inputs.float() / 255
    return [next(k for k, image in enumerate(known) if torch.equal(image, one)) for one in x]


def test_it_repeats_the_samples_equally_often(teacher):
    synthesizer, data = fitted(teacher, 20), few(20)
    x, y = synthesizer.sample(60, generator=generator(1))
    found = rows(x, data)
    assert torch.bincount(torch.tensor(found)).tolist() == [3] * 20
    assert y.tolist() == data.labels[found].tolist()
    assert found != list(range(20)) * 3
    assert synthesizer.distinct == 20


def test_labels_asked_for_are_those_of_the_samples(teacher):
    wanted = torch.tensor([2, 0, 2, 1])
    x, y = fitted(teacher, 20).sample(4, wanted, generator(3))
    assert torch.equal(y, wanted)
    assert few(20).labels[rows(x, few(20))].tolist() == wanted.tolist()


def test_fifty_samples_are_split_and_fewer_serve_as_both(teacher):
    def kept(count, heldout):
        part = fitted(teacher, count).part(heldout)
        return set(rows(part.sample(99, generator=generator())[0], few(count)))

    assert kept(50, True) == set(range(4, 50, 5))
    assert kept(50, False) == set(range(50)) - kept(50, True)
    assert kept(10, False) == kept(10, True) == set(range(10))


def test_vectors():
    teacher = Teacher(MLP(3, 2), Domain((3,), 2), "mlp")
    data = LabelledData(torch.randn(4, 3, generator=generator()), torch.arange(4) % 2, "vectors")
    synthesizer = Samples(SamplesOptions("never"))
    synthesizer.fit(teacher, data)
    x, _ = synthesizer.sample(4, generator=generator())
    assert torch.equal(x.sort(0).values, data.inputs.sort(0).values)
    augmented = Samples()
    augmented.fit(teacher, data)
    x, _ = augmented.sample(100, generator=generator())
    assert len(x.unique(dim=0)) == 100


def test_few_samples_are_augmented(teacher):
    synthesizer = fitted(teacher, 10, augment="few")  # one image of some classes
    x, y = synthesizer.sample(300, generator=generator(1))
    assert x.shape == (300, 1, 32, 32)
    assert 0 <= x.min() <= x.max() <= 1
    assert len(x.flatten(1).unique(dim=0)) == 300
    assert torch.equal(x, synthesizer.sample(300, generator=generator(1))[0])
    assert synthesizer.distinct is None
    assert synthesizer.sample(1, generator=generator(1))[0].shape == (1, 1, 32, 32)
    assert torch.bincount(y, minlength=3)[:3].tolist() == [120, 90, 90]


def test_a_single_sample_is_enough(teacher):
    synthesizer = fitted(teacher, 1, augment="few")
    for part in (synthesizer.part(True), synthesizer.part(False)):
        x, y = part.sample(20, generator=generator())
        assert len(x.flatten(1).unique(dim=0)) == 20
        assert (y == 0).all()


def test_nothing_is_mixed_where_labels_are_asked_for(teacher, monkeypatch):
    seen = []
    original = Augmentation._mix
    monkeypatch.setattr(
        Augmentation, "_mix", lambda self, x, g: seen.append(self.mixing) or original(self, x, g)
    )
    synthesizer = fitted(teacher, 10, augment="few")
    synthesizer.sample(4, generator=generator())
    synthesizer.sample(4, torch.arange(4) % 3, generator())
    assert seen == [0.5, 0.0]


def test_many_samples_are_left_as_they_are_unless_asked(teacher):
    domain = teacher.domain
    assert SamplesOptions().augmentation(domain, 1_000) is None
    assert SamplesOptions().augmentation(domain, 999) == Augmentation(mixing=0.5)
    assert SamplesOptions("always", 0.1).augmentation(domain, 1_000) == Augmentation(mixing=0.1)
    assert SamplesOptions("never").augmentation(domain, 1) is None
    assert Samples.build("paper").options.augment == "never"
    with pytest.raises(
        ValueError, match=r"samples.augment: expected 'few', 'always' or 'never'; got 'maybe'"
    ):
        SamplesOptions("maybe")


def test_there_is_no_health_of_real_inputs(teacher):
    assert fitted(teacher, 12).diagnose(teacher) is None


def test_no_samples_and_wrong_ones_are_refused(teacher):
    assert Samples.unsupported_reason(teacher) == "needs real samples, and none are given"
    with pytest.raises(UsageError, match="none are given"):
        Samples().fit(teacher)
    wrong = LabelledData(torch.zeros(2, 1, 8, 8), torch.arange(2), "wrong")
    with pytest.raises(ValueError, match="expected inputs of shape"):
        Samples().fit(teacher, wrong)
