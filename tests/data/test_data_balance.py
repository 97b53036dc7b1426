"""Tests of drawing inputs so that classes come up alike."""

import numpy as np
import pytest
import torch

from freia_kd.data.balance import FLOOR, class_balance, draw_rows


def one_sided(shares, n=4_000, sharpness=8.0):
    """Logits of inputs that show classes in these shares."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor(shares), n, True, generator=generator)
    noise = torch.randn(n, len(shares), generator=generator)
    return noise + sharpness * torch.nn.functional.one_hot(labels, len(shares))


def test_that_classes_come_up_alike():
    logits = one_sided([0.9, 0.08, 0.02])
    rows = draw_rows(class_balance([logits]).cumsum(0), 9_000, torch.Generator().manual_seed(1))
    shown = torch.bincount(logits[rows].argmax(1), minlength=3) / 9_000
    assert torch.allclose(shown, torch.full((3,), 1 / 3), atol=0.06)
    assert torch.bincount(logits.argmax(1), minlength=3)[2] < 200


def test_that_a_class_hardly_shown_is_not_forced_upon_the_student():
    logits = one_sided([0.5, 0.5, 0.0])
    logits[:, 2] = -12.0  # what is never shown, not even by chance
    logits[0, 2] = -4.0
    weights = class_balance([logits])
    assert weights[0] < 2 * weights.mean()
    assert weights.max() <= 1 / (FLOOR / 3)


def test_that_shards_and_memory_maps_make_no_difference(tmp_path):
    logits = one_sided([0.7, 0.3], 100)
    np.save(tmp_path / "a.npy", logits[:60].numpy())
    shards = [np.load(tmp_path / "a.npy", mmap_mode="r"), logits[60:]]
    torch.testing.assert_close(class_balance(shards), class_balance([logits]))


def test_that_there_must_be_something():
    with pytest.raises(ValueError, match="at least one input"):
        class_balance([])


def test_that_rows_are_drawn_by_their_weights_and_never_where_these_are_zero():
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    rows = draw_rows(weights.cumsum(0), 8_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(rows, minlength=5) / 8_000
    assert torch.allclose(shares, torch.tensor([0, 0.25, 0, 0.75, 0]), atol=0.02)
    assert shares[0] == shares[2] == shares[4] == 0
