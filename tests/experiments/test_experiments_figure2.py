import json

import numpy as np
import pytest
import torch

from freia_kd.experiments.figure2 import energy_distance, figure2


@pytest.fixture(scope="module")
def result():
    return figure2("moons", torch.Generator().manual_seed(0), points=400, steps=120)


@pytest.mark.slow
def test_data_free_samples_follow_the_teacher_and_ten_samples_bring_them_close(result):
    numbers = result.numbers
    assert numbers["teacher_accuracy"] > 0.97
    assert numbers["data_free"]["right_side"] > 0.9
    assert numbers["with_samples"]["right_side"] > 0.85
    assert numbers["data_free"]["divergence_nats"] < 0.5
    assert numbers["distance_ratio"] < 0.5
    for panel in ("data_free", "with_samples"):
        x, c = result.sampled[panel]
        right = (result.teacher(x).argmax(1) == c).double().mean().item()
        assert numbers[panel]["right_side"] == right


@pytest.mark.slow
def test_samples_are_ten_true_points_of_each_class(result):
    x, y = result.samples
    assert y.bincount().tolist() == [10, 10]
    for point, label in zip(x, y, strict=True):
        index = (result.data.inputs == point).all(1).nonzero().item()
        assert result.data.labels[index] == label


@pytest.mark.slow
def test_same_seed_gives_the_same_picture(tmp_path):
    state, files, numbers = torch.get_rng_state(), [], []
    for folder in ("one", "two"):
        result = figure2("pinwheel", torch.Generator().manual_seed(0), points=90, steps=2)
        files.append(result.save(tmp_path / folder).read_bytes())
        numbers.append(json.loads((tmp_path / folder / "pinwheel.json").read_text()))
    assert files[0] == files[1]
    assert numbers[0] | {"seconds": 0} == numbers[1] | {"seconds": 0}
    assert torch.equal(torch.get_rng_state(), state)  # global randomness is left alone


def test_energy_distance_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 2, generator=generator), torch.rand(5, 2, generator=generator)

    def mean(p, q, same):
        pairs = [(i, j) for i in range(len(p)) for j in range(len(q)) if not (same and i == j)]
        return np.mean([np.linalg.norm((p[i] - q[j]).double()) for i, j in pairs])

    expected = 2 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True)
    np.testing.assert_allclose(energy_distance(a, b), expected, rtol=1e-6)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match=r"Expected at least 1 sample of each class.*got 200"):
        figure2("moons", torch.Generator(), points=100, samples_per_class=200)
