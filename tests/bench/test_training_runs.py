"""Files of results of training benchmarks: which are gone on with, and which are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.training import cli, speednet
from bench.training.exercise import ExerciseResults
from bench.training.runs import with_deviation
from tests.support.training_fixtures import TINY
from training.data import dataset
from training.errors import RunError
from training.recipes import Recipe, find_recipe


def test_results_of_another_recipe_are_refused(source: dataset.Source, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    ExerciseResults.open(path, TINY, source).write(path)
    other = replace(source, sha256="0")

    with pytest.raises(RunError, match=r"results of another recipe, data set; remove it"):
        ExerciseResults.open(path, TINY.replace(epochs=3), other)
    path.write_text("{}")
    with pytest.raises(RunError, match="not the results of a run"):
        ExerciseResults.open(path, TINY, source)


@pytest.mark.parametrize(
    ("path", "recipe"),
    [
        (cli.EXERCISE_OUT, find_recipe("simple-cnn")),
        (cli.SPEEDNET_OUT, speednet.everything_timed(find_recipe("speednet"))),
    ],
    ids=["exercise", "speednet"],
)
def test_committed_results_are_of_todays_recipe(path: Path, recipe: Recipe) -> None:
    # A file of an older version may have fewer fields.
    written = Recipe.model_validate(json.loads(path.read_text())["recipe"])
    assert written == recipe.replace(precision=written.precision)


def test_results_of_before_a_field_was_added_to_recipes_are_gone_on_with(
    source: dataset.Source, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    results = ExerciseResults.open(path, TINY, source)
    del results.recipe["noise"], results.versions["numba"]
    results.write(path)
    assert "numba" in ExerciseResults.open(path, TINY, source).versions


def test_results_of_a_recipe_that_is_none_are_refused(
    source: dataset.Source, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    results = ExerciseResults.open(path, TINY, source)
    results.recipe["hue"] = 1
    results.write(path)
    with pytest.raises(RunError, match=r"results\.json: not the results .*hue"):
        ExerciseResults.open(path, TINY, source)


def test_deviation_is_of_a_sample_and_of_several_values_only() -> None:
    assert with_deviation([1.0, 2.0, 3.0], 2, 10, "%") == "20.00 ± 10.00%"
    assert with_deviation([1234.0], 0) == "1,234"
    assert with_deviation([], 0) == "–"
