"""The recipes of Table 1."""

import pytest

from freia_kd.errors import ConfigError
from freia_kd.experiments.recipes import Recipe, get_recipe


def test_the_code_and_the_text():
    code, text = get_recipe("code", "mnist"), get_recipe("paper", "mnist")
    # The published code's configuration, and section 5.2 of the paper.
    assert (code.latent_std, code.floor, code.stretch, code.uniform) == (0.5, 0.01, True, 0.5)
    assert (code.alpha, code.gamma, code.rate, code.student_rate) == (5e-3, 1e-3, 5e-5, 1e-4)
    assert (code.beta, code.means, code.first, code.weight_decay) == (2.0, 2.0, 2.0, 1e-3)
    assert (text.alpha, text.beta, text.gamma, text.rate) == (1e-2, 1.0, 1e-2, 1e-4)
    assert (text.student_rate, text.latent_std, text.floor, text.stretch) == (1e-5, 1.0, 0.0, False)
    for recipe in (code, text):
        assert (recipe.width, recipe.steps, recipe.batch_size) == (1500, 30 * 313, 64)
        assert (recipe.set_size, recipe.student_batch, recipe.epochs) == (6_400, 128, 200)


def test_the_code_differs_by_data():
    found = {name: get_recipe("code", name) for name in ("mnist", "fashion-mnist", "svhn")}
    assert [r.alpha for r in found.values()] == [5e-3, 2e-2, 4e-2]
    assert [r.gamma for r in found.values()] == [1e-3, 1e-2, 1e-3]
    assert [r.rate for r in found.values()] == [5e-5, 1e-4, 1e-4]


def test_quick_is_the_code_with_less_work():
    quick, code = get_recipe("quick", "mnist"), get_recipe("code", "mnist")
    assert quick.steps < code.steps / 10
    assert (quick.alpha, quick.floor, quick.stretch) == (code.alpha, code.floor, code.stretch)


def test_values_are_checked():
    with pytest.raises(ConfigError, match=r"recipe.latent_std: expected more than 0.0; got 0.0"):
        Recipe(latent_std=0.0)
