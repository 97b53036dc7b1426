"""Small tables that scikit-learn ships, by name: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .datasets import LabelledData, Split, stratified

TEST_SHARE = 0.3  # of iris, wine and breast-cancer, so that the test split has 45 rows or more


def iris(split: Split, root: Path, download: bool) -> LabelledData:
    """150 irises of 3 species, 4 lengths in cm (Fisher, 1936); 45 are the test split."""
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    return _table("iris", x, y, split, TEST_SHARE)


def wine(split: Split, root: Path, download: bool) -> LabelledData:
    """178 wines of 3 growers, 13 chemical features (Forina et al., 1991); 54 are the test split."""
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    return _table("wine", x, y, split, TEST_SHARE)


def breast_cancer(split: Split, root: Path, download: bool) -> LabelledData:
    """569 tumours, malignant (0) or benign (1), 30 features of their cells' nuclei.

    171 are the test split.

    References:
        | Nuclear feature extraction for breast tumor diagnosis (Street, Wolberg and Mangasarian,
          1993)
    """
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return _table("breast-cancer", x, y, split, TEST_SHARE)


def digits_table(split: Split, root: Path, download: bool) -> LabelledData:
    """The 64 pixels of :func:`~freia_kd.data.datasets.digits` as features from 0 to 16.

    The splits are those of the images.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _table("digits-table", x, y, split)


def _table(
    name: str, x: np.ndarray, y: np.ndarray, split: Split, test_share: float = 0.2
) -> LabelledData:
    rows = stratified(y, split, test_share)
    return LabelledData(torch.from_numpy(x[rows]).float(), torch.from_numpy(y[rows]), name)
