"""The tables by name, and what is measured on them."""

import numpy as np
import pytest
import torch
from sklearn import datasets

from freia_kd.data.datasets import DATASETS, load_dataset, measure_domain
from freia_kd.errors import UsageError

TABLES = {
    "iris": (datasets.load_iris, 45),
    "wine": (datasets.load_wine, 54),
    "breast-cancer": (datasets.load_breast_cancer, 171),
    "digits-table": (datasets.load_digits, 360),
}


@pytest.mark.parametrize("name", list(TABLES))
def test_the_splits_are_the_table_and_stratified(name):
    load, count = TABLES[name]
    x, y = load(return_X_y=True)
    train, test = load_dataset(name), load_dataset(name, split="test")
    assert (len(train), len(test)) == (len(y) - count, count)
    rows = np.concatenate([train.inputs.numpy(), test.inputs.numpy()])
    labels = np.concatenate([train.labels.numpy(), test.labels.numpy()])
    assert sorted(map(tuple, np.c_[rows, labels].tolist())) == sorted(
        map(tuple, np.c_[x.astype(np.float32), y].tolist())
    )
    shares = [data.labels.bincount() / len(data) for data in (train, test)]
    assert (shares[0] - shares[1]).abs().max() < 0.02
    assert torch.equal(test.inputs, load_dataset(name, split="test").inputs)


@pytest.mark.parametrize("name", list(TABLES))
def test_a_domain_is_measured_on_the_training_split(name):
    train = load_dataset(name)
    domain = measure_domain(train)
    assert (domain.name, domain.is_image) == (name, False)
    assert domain.classes == len(np.unique(train.labels))
    x = train.inputs.double().numpy()
    assert domain.mean == pytest.approx(x.mean(0).tolist())
    std = x.std(0)
    assert domain.std == pytest.approx(np.where(std > 0, std, 1).tolist(), rel=1e-4)


def test_the_digits_of_the_table_are_those_of_the_images():
    for split in ("train", "test"):
        images, table = (
            load_dataset("digits", split=split),
            load_dataset("digits-table", None, split),
        )
        assert torch.equal(images.labels, table.labels)


def test_a_table_does_not_fit_another_domain():
    domain = measure_domain(load_dataset("wine"))
    with pytest.raises(UsageError, match=r"expected inputs of shape \(13,\); got \(4,\)"):
        load_dataset("iris", domain)


def test_tables_are_data_sets():
    assert set(TABLES) <= set(DATASETS)
