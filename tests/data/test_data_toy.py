import pytest
import torch

from freia_kd.data.toy import TOYS, toy
from freia_kd.errors import UsageError


@pytest.mark.parametrize("name", TOYS)
def test_toy_data_are_labelled_balanced_centred_and_seeded(name):
    data = toy(name, 900, torch.Generator().manual_seed(0))
    same = toy(name, 900, torch.Generator().manual_seed(0))
    other = toy(name, 900, torch.Generator().manual_seed(1))
    assert data.inputs.shape == (900, 2)
    assert data.inputs.dtype == torch.float32
    counts = data.labels.bincount()
    assert counts.tolist() == [900 // len(counts)] * len(counts)
    assert torch.equal(data.inputs, same.inputs)
    assert torch.equal(data.labels, same.labels)
    assert not torch.equal(data.inputs, other.inputs)
    assert data.inputs.mean(0).abs().max() < 0.15
    assert 0.2 < data.inputs.std(0).min() < data.inputs.std(0).max() < 0.8
    assert data.labels[:50].unique().numel() == len(counts)  # in random order


@pytest.mark.parametrize("name", TOYS)
def test_classes_are_apart(name):
    """The nearest other point is nearly always of the same class."""
    data = toy(name, 900, torch.Generator().manual_seed(0))
    distance = torch.cdist(data.inputs, data.inputs).fill_diagonal_(torch.inf)
    nearest = data.labels[distance.argmin(1)]
    assert (nearest == data.labels).double().mean() > 0.97


def test_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    for name in TOYS:
        toy(name, 50, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_misuse_is_refused():
    with pytest.raises(UsageError, match="Unknown toy data set 'donuts'; known ones are moons, "):
        toy("donuts", 10)
    with pytest.raises(ValueError, match="at least 2 points; got 1"):
        toy("moons", 1)
