"""The documents show the committed results, as the benchmarks' own tables."""

import json
from typing import Any

from bench import RESULTS, ROOT
from bench.quality.corruptions import answers_in, corruption_table
from bench.quality.degradations import degradation_table
from bench.quality.explanations import explanation_table as explanation_figures
from bench.quality.ood_scores import score_table
from bench.quality.photographs import photograph_table
from bench.scaling.report import scaling_tables
from bench.serving import report
from bench.serving.explain import explanation_table
from bench.serving.ray import ray_table
from bench.serving.results import Run
from bench.serving.scenes import scenes_table
from bench.training.exercise import ExerciseResults, exercise_table
from bench.training.speednet import SpeednetResults, speednet_table


def _results(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def _document(name: str, marker: str) -> str:
    """Return the text between a benchmark's markers."""
    text = (ROOT / "docs" / name).read_text()
    return text.partition(f"<!-- bench:{marker} -->\n")[2].partition(f"\n<!-- /bench:{marker} -->")[
        0
    ]


def test_performance_shows_the_comparison_of_servers() -> None:
    run = Run.read(RESULTS / "serving.json")
    assert _document("performance.md", "serving") == report.figures(run)


def test_performance_shows_the_times_of_explanations() -> None:
    found = _results("explain")
    table = explanation_table(found["models"], found["machine"]["processor"])
    assert _document("performance.md", "explain") == table


def test_performance_shows_the_rates_of_boxes_and_masks() -> None:
    found = _results("scenes")
    table = scenes_table(found["rows"], found["machine"]["processor"])
    assert _document("performance.md", "scenes") == table


def test_scaling_shows_what_a_request_costs_behind_ray() -> None:
    found = _results("ray")
    assert _document("scaling.md", "ray") == ray_table(found, found["machine"]["processor"])


def test_scaling_shows_what_was_simulated_and_measured() -> None:
    found = _results("scaling")
    assert _document("scaling.md", "scaling") == scaling_tables(
        found, found["machine"]["processor"]
    )


def test_confidence_shows_the_scores_of_foreign_images() -> None:
    table = score_table(_results("ood_scores")["auroc"])
    assert _document("confidence.md", "ood-scores") == table


def test_confidence_shows_the_accuracy_on_corrupted_images() -> None:
    table = corruption_table(answers_in(_results("corruptions")))
    assert _document("confidence.md", "corruptions") == table


def test_confidence_shows_where_explanations_point() -> None:
    table = explanation_figures(_results("explanations")["models"])
    assert _document("confidence.md", "explanations") == table


def test_confidence_shows_what_models_make_of_photographs() -> None:
    table = photograph_table(_results("photographs")["models"])
    assert _document("confidence.md", "photographs") == table


def test_training_shows_what_each_way_of_degrading_does() -> None:
    table = degradation_table(_results("degradations")["accuracy"])
    assert _document("training.md", "degradations") == table


def test_training_shows_both_benchmarks() -> None:
    exercise = ExerciseResults.model_validate(_results("training_exercise"))
    speednet = SpeednetResults.model_validate_json(
        (RESULTS / "training_speednet.json").read_bytes()
    )
    assert exercise_table(exercise) in _document("training.md", "exercise")
    assert speednet_table(speednet) in _document("training.md", "speednet")
