from dataclasses import replace
from typing import Any

import pytest

from training.errors import RecipeError
from training.optimization import learning_rate
from training.recipes import RECIPES, Recipe, find_recipe


@pytest.mark.parametrize("name", ["simple-cnn", "fc"])
def test_the_exercises_recipe_is_the_exercises(name: str) -> None:
    recipe = find_recipe(name)
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (30, 128, "adam")
    assert recipe.learning_rate == 0.001
    assert recipe.schedule == "constant"
    assert not recipe.flip
    assert (recipe.translate, recipe.dropout, recipe.label_smoothing, recipe.weight_decay) == (
        0,
        0,
        0,
        0,
    )


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_a_recipe_survives_being_written_down(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.as_dict()) == recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("dropout", 1.0),
        ("translate", 32),
        ("holdout", 5000),
        ("optimizer", "sgd"),
        ("schedule", "cosine"),
        ("precision", "float16"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_limits(field: str, value: Any) -> None:
    change: dict[str, Any] = {field: value}
    with pytest.raises(RecipeError, match=rf"{field} is '?{value}'?; it can be"):
        replace(find_recipe("fc"), **change)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="no recipe 'resnet99'; there are simple-cnn, fc"):
        find_recipe("resnet99")


def test_a_constant_rate_stays() -> None:
    rates = {learning_rate(find_recipe("fc"), 1000, epoch, 3) for epoch in range(1, 31)}
    assert rates == {0.001}


def test_one_cycle_rises_to_its_peak_at_thirty_percent_and_falls_to_zero() -> None:
    recipe = Recipe("fc", epochs=10, batch_size=10, learning_rate=1.0, schedule="one-cycle")
    rates = [
        learning_rate(recipe, 100, epoch, step) for epoch in range(1, 11) for step in range(1, 11)
    ]
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == pytest.approx(rates[30]) == pytest.approx(1.0)
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[-1] < 0.001
