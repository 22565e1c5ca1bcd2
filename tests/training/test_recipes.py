from pathlib import Path
from typing import Any

import click
import pytest

from training.architectures.describe import describe
from training.cli import train
from training.errors import RecipeError
from training.recipes import RECIPES, Recipe, find_recipe
from training.run.optimization import schedule


@pytest.mark.parametrize("name", ["simple-cnn", "fc"])
def test_the_exercises_recipe_is_the_exercises(name: str) -> None:
    recipe = find_recipe(name)
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (30, 128, "adam")
    assert recipe.learning_rate == 0.001
    assert recipe.schedule == "constant"
    assert recipe.flip == "off"
    assert (recipe.translate, recipe.dropout, recipe.label_smoothing, recipe.weight_decay) == (
        0,
        0,
        0,
        0,
    )


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_a_recipe_survives_being_written_down(recipe: Recipe) -> None:
    assert Recipe.model_validate(recipe.model_dump()) == recipe


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
        ("schedule", "step"),
        ("flip", "sometimes"),
        ("cutout", 32),
        ("selected", 0.0),
        ("precision", "float16"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_limits(field: str, value: Any) -> None:
    change: dict[str, Any] = {field: value}
    with pytest.raises(RecipeError, match=rf"{field} is '?{value}'?; it can be"):
        find_recipe("fc").replace(**change)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="no recipe 'resnet99'; there are simple-cnn, fc"):
        find_recipe("resnet99")


def _parts(recipe: Recipe, images: int) -> list[float]:
    steps = images // recipe.candidates
    return [
        schedule(recipe, images, epoch, step)
        for epoch in range(1, recipe.epochs + 1)
        for step in range(1, steps + 1)
    ]


def test_a_constant_rate_stays() -> None:
    assert set(_parts(find_recipe("fc"), 1280)) == {1.0}


def test_one_cycle_rises_to_its_peak_at_thirty_percent_and_falls_to_zero() -> None:
    parts = _parts(Recipe(architecture="fc", epochs=10, batch_size=10, schedule="one-cycle"), 100)
    assert parts[0] == pytest.approx(1 / 25)
    assert max(parts) == pytest.approx(parts[30]) == pytest.approx(1.0)
    assert parts[:31] == sorted(parts[:31])
    assert parts[30:] == sorted(parts[30:], reverse=True)
    assert parts[-1] < 0.001


def test_a_linear_schedule_falls_by_the_same_amount_each_step_and_ends_near_zero() -> None:
    recipe = Recipe(
        architecture="fc", epochs=2, batch_size=10, schedule="linear", proxy="fc", selected=0.5
    )
    assert _parts(recipe, 100) == pytest.approx([part / 10 for part in range(10, 0, -1)])


def test_a_recipe_that_an_older_version_wrote_down_has_the_new_fields_defaults() -> None:
    values = find_recipe("simple-cnn").model_dump()
    del values["cutout"], values["proxy"]
    assert Recipe.model_validate(values) == find_recipe("simple-cnn")


@pytest.mark.parametrize(
    "change",
    [{"optimizer": "muon"}, {"bias_learning_rate": 0.1}, {"head_learning_rate": 0.1}],
)
def test_rates_of_biases_and_last_layer_go_with_muon_and_with_nothing_else(
    change: dict[str, Any],
) -> None:
    with pytest.raises(
        RecipeError, match=r"must be above 0 with muon( or muon-adamw)?, and 0 with any"
    ):
        find_recipe("fc").replace(**change)


def test_muon_cannot_take_away_more_than_there_is() -> None:
    with pytest.raises(RecipeError, match=r"weight_decay is 1.5; it can be 0 to 1"):
        find_recipe("speednet").replace(weight_decay=1.5)


def test_a_teachers_answers_are_not_smoothed() -> None:
    with pytest.raises(RecipeError, match=r"^label_smoothing is 0\.1 and teacher is 'runs/a'"):
        Recipe(architecture="fc", teacher="runs/a", label_smoothing=0.1)


def test_a_part_of_the_start_needs_a_start() -> None:
    with pytest.raises(RecipeError, match=r"^start_part is 0\.5 and start is empty$"):
        Recipe(architecture="fc", start_part=0.5)


@pytest.mark.parametrize("change", [{"selected": 0.5}, {"proxy": "fc"}])
def test_a_part_is_selected_by_a_proxy_and_a_proxy_selects_a_part(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="it takes a proxy to select a part"):
        find_recipe("fc").replace(**change)


def test_the_command_line_explains_every_field() -> None:
    options = {option.name: option for option in train.params if isinstance(option, click.Option)}
    for name, field in Recipe.model_fields.items():
        assert field.description
        assert options[name].help == field.description


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "not a recipe: it has no field architecture"),
        ({"architecture": "fc", "epoch": 3}, "not a recipe: it has an unknown field epoch"),
        ({"architecture": 3}, "architecture is 3; it must be text"),
        (
            {"architecture": "fc", "epochs": "3"},
            "epochs is '3'; it can be a whole number from 1 to",
        ),
        ([1], r"not a recipe: \[1\]"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(values: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.model_validate(values)
    assert "\n" not in str(caught.value)


def test_a_changed_recipe_is_checked_and_the_old_one_stays() -> None:
    recipe = find_recipe("fc")
    assert recipe.replace(epochs=3).epochs == 3
    assert recipe.epochs == 30
    with pytest.raises(RecipeError, match="unknown field epoch"):
        recipe.replace(epoch=3)


def test_the_documented_recipes_are_those_that_there_are() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    documented = {}
    for row in rows:
        if len(row) == 7:
            name, _, parameters, macs, epochs, optimizer, last = (cell.strip() for cell in row)
            documented[name.strip("`")] = (parameters, macs, epochs, optimizer, last)
    assert documented == {name: _documented(recipe) for name, recipe in RECIPES.items()}


OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon", "muon-adamw": "Muon, AdamW"}


def _documented(recipe: Recipe) -> tuple[str, ...]:
    scene = recipe.height > 0
    size = (recipe.height, recipe.width) if scene else None
    description = describe(recipe.architecture, image_size=size)
    mega = description.macs / 1e6
    heldout = round(recipe.holdout * 50_000)
    last = f"{recipe.width}×{recipe.height}" if scene else f"{heldout:,}" if heldout else "none"
    return (
        f"{description.parameters:,}",
        f"{mega:.1f} M" if mega < 10 else f"{mega:.0f} M",
        str(recipe.epochs),
        OPTIMIZERS[recipe.optimizer],
        last,
    )
