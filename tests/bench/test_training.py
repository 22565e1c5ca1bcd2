"""The benchmarks of training, on the sample: what they compare, compute, keep and write."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.harness import report
from bench.training import cli, exercise, speednet
from bench.training.exercise import ExerciseResults
from bench.training.runs import in_memory, put_away, train_timed
from bench.training.speednet import SpeednetResults
from tests.support.training_fixtures import TINY
from training.data import dataset
from training.recipes import Recipe, find_recipe
from training.run import checkpoint
from training.run.progress import SilentReporter
from training.run.train import train

# The DataLoader forks, as in the tutorial; Python 3.12 and newer warn where there are threads.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.usefixtures("as_deterministic_as_before"),
]

ONE_EPOCH = find_recipe("speednet").replace(epochs=1, batch_size=120, holdout=0.0)


@pytest.fixture(autouse=True)
def _small_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speednet, "BATCH", 2)


class Stopped(Exception):
    """Somebody pressed Ctrl+C."""


class StopsAfterAnEpoch(SilentReporter):
    def epoch_ended(self, figures: checkpoint.EpochFigures) -> None:  # noqa: ARG002
        raise Stopped


def _exercise(source: dataset.Source, path: Path, recipe: Recipe = TINY) -> list[exercise.Run]:
    found = ExerciseResults.open(path, recipe, source)
    return list(exercise.train_missing(found, path, recipe, source, path.parent / "runs"))


def _speednet(
    source: dataset.Source, path: Path, recipe: Recipe = ONE_EPOCH
) -> speednet.Run | None:
    found = SpeednetResults.open(path, recipe, source)
    return speednet.train_missing(found, path, recipe, source, path.parent / "runs")


def _run(
    loop: exercise.Loop, seed: int, accuracy: float, seconds: float, *, resumed: bool = False
) -> exercise.Run:
    return exercise.Run(
        loop=loop,
        seed=seed,
        test_accuracy=accuracy,
        seconds=seconds,
        resumed=resumed,
        commit="abc",
        finished="",
    )


# The exercise


def test_exercise_trains_by_both_loops_and_not_twice(
    source: dataset.Source, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"

    runs = _exercise(source, path)

    assert [run.loop for run in runs] == ["reference", "ours"]
    assert all(0 <= run.test_accuracy <= 1 and run.seconds > 0 for run in runs)
    assert not any(run.resumed for run in runs)
    assert ExerciseResults.model_validate_json(path.read_bytes()).runs == runs
    assert _exercise(source, path) == []
    assert [run.seed for run in _exercise(source, path, TINY.replace(seed=1))] == [1, 1]


def test_a_finished_run_is_on_disk_before_the_next_one_starts(
    source: dataset.Source, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    found = ExerciseResults.open(path, TINY, source)

    reference = next(exercise.train_missing(found, path, TINY, source, tmp_path / "runs"))

    assert ExerciseResults.model_validate_json(path.read_bytes()).runs == [reference]
    assert [run.loop for run in _exercise(source, path)] == ["ours"]


def test_rounds_that_are_missing_are_measured(source: dataset.Source, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    found = ExerciseResults.open(path, TINY, source)

    first = list(exercise.measure_missing(found, path, TINY, source, 1))

    assert first[0].reference > 0
    assert first[0].ours > 0
    found = ExerciseResults.open(path, TINY, source)
    assert list(exercise.measure_missing(found, path, TINY, source, 1)) == []
    second = list(exercise.measure_missing(found, path, TINY, source, 2))
    assert ExerciseResults.open(path, TINY, source).rounds == first + second


def test_exercise_report_gives_median_ratios_within_rounds(
    source: dataset.Source, tmp_path: Path
) -> None:
    found = ExerciseResults.open(tmp_path / "results.json", TINY, source)
    for before, after in ((100, 500), (200, 600), (100, 450)):
        found.rounds.append(exercise.Round(reference=before, ours=after, commit="abc"))
    found.runs += [
        _run("reference", 0, 0.70, 1800),
        _run("reference", 1, 0.72, 1800),
        _run("ours", 0, 0.71, 400, resumed=True),
    ]

    reference, ours, ratio = exercise.exercise_table(found).splitlines()[2:]

    assert "| 100 (100–200) | 1,800 ± 0 | 71.00 ± 1.41% | 0, 1 |" in reference
    assert "float32" in reference
    assert "| 400 (1 resumed: the sum of its epochs) | 71.00% | 0 |" in ours
    assert "| 4.50× (3.00×–5.00×) | 4.50× |" in ratio
    assert "≥ 4× | 4.50× | yes" in exercise.exercise_targets(found)
    assert "commit abc" in found.conditions(found.rounds)


def test_reports_of_nothing_measured_say_so(source: dataset.Source, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    nothing = ExerciseResults.open(path, TINY, source)
    nothing_either = SpeednetResults.open(path, ONE_EPOCH, source)

    assert "–" in exercise.exercise_table(nothing)
    assert exercise.exercise_targets(nothing).count("not measured") == 2
    assert speednet.speednet_targets(nothing_either).count("not measured") == 3
    assert speednet.speednet_table(nothing_either)


# speednet


def test_arithmetic_of_a_training_is_six_flop_a_multiply_accumulate() -> None:
    recipe = find_recipe("speednet")

    flop = speednet.training_flop(recipe, 50_000, 10)

    assert flop == 6 * (3 * 118_147_360 + 7 * 89_216_032) * 50_000
    assert flop <= speednet.MOST_PFLOP * 1e15


def test_convolution_rate_counts_every_multiply_and_add(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 9, 0, 9, *[0, 3] * 5, 0, 2])
    monkeypatch.setattr("bench.training.speednet.time.perf_counter", lambda: next(clock))

    assert speednet.convolution_flops() == 2 * 9 * 256 * 256 * 2 * 16 * 16 / 2


def test_speednet_is_measured_once_a_seed(source: dataset.Source, tmp_path: Path) -> None:
    path = tmp_path / "results.json"

    run = _speednet(source, path)

    assert run is not None
    assert run.flop == 6 * 89_216_032 * len(source.load_train())
    assert sorted(run.test_accuracy) == [1, 2, 6]
    assert all(rate > 0 for rate in run.convolution_flops)
    assert run.share == run.flop / run.seconds / max(run.convolution_flops)
    assert SpeednetResults.model_validate_json(path.read_bytes()).runs == [run]
    assert _speednet(source, path) is None
    table = speednet.speednet_table(SpeednetResults.open(path, ONE_EPOCH, source))
    assert f"| {run.test_accuracy[6]:.2%} |" in table


def test_a_run_that_was_stopped_goes_on_and_says_so(source: dataset.Source, tmp_path: Path) -> None:
    recipe = TINY.replace(precision="float32")
    with pytest.raises(Stopped):
        train(recipe, source, tmp_path / "run", StopsAfterAnEpoch(), device="cpu")

    timed = train_timed(recipe, source, tmp_path / "run")

    assert timed.resumed
    assert timed.last.state.epoch == recipe.epochs
    assert timed.seconds == timed.last.state.training_seconds
    put_away(tmp_path / "run")
    assert not train_timed(recipe, source, tmp_path / "run").resumed


def test_a_run_is_timed_from_images_that_are_in_memory(
    source: dataset.Source, tmp_path: Path
) -> None:
    memory = in_memory(source)

    assert memory.load_train() is memory.load_train()
    timed = train_timed(TINY, memory, tmp_path / "run")
    assert timed.seconds > timed.last.state.training_seconds
    assert not timed.resumed


# The commands


def test_exercise_prints_and_fills_the_documents_that_have_its_markers(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, out = tmp_path / "training.md", tmp_path / "results.json"
    document.write_text("before\n<!-- bench:exercise -->\n<!-- /bench:exercise -->\nafter\n")
    monkeypatch.setenv(dataset.DATA_DIR_VARIABLE, str(image_folder))
    monkeypatch.setattr(cli, "DOCUMENTS", (document, tmp_path / "missing.md"))
    command = ["exercise", "--rounds", "1", "--no-accuracy", "--out", str(out)]

    elsewhere = CliRunner().invoke(cli.main, command)

    assert elsewhere.exit_code == 0, elsewhere.output
    assert "PyTorch's tutorial, float32" in elsewhere.output
    assert "PyTorch" not in document.read_text()
    monkeypatch.setattr(cli, "EXERCISE_OUT", out)
    assert CliRunner().invoke(cli.main, command).exit_code == 0
    text = document.read_text()
    assert text.startswith("before\n<!-- bench:exercise -->\n| loop |")
    assert text.endswith("<!-- /bench:exercise -->\nafter\n")


def test_speednet_command_trains_every_seed_it_is_given(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dataset.DATA_DIR_VARIABLE, str(image_folder))
    monkeypatch.setattr(cli, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(cli, "find_recipe", lambda _: ONE_EPOCH.replace(holdout=0.1))
    command = ["speednet", "--seeds", "0,3", "--out", str(tmp_path / "results.json")]

    result = CliRunner().invoke(cli.main, command)

    assert result.exit_code == 0, result.output
    assert "| mean ± deviation |" in result.output
    found = SpeednetResults.model_validate_json((tmp_path / "results.json").read_bytes())
    assert [run.seed for run in found.runs] == [0, 3]
    assert found.recipe["holdout"] == 0


def test_seeds_that_are_no_numbers_are_refused() -> None:
    result = CliRunner().invoke(cli.main, ["speednet", "--seeds", "0,x"])

    assert result.exit_code == 2
    assert "'0,x' is not a list of numbers such as 0,1,2" in result.output


def test_markers_of_one_benchmark_leave_those_of_another(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    serving = "<!-- bench:serving -->\nold\n<!-- /bench:serving -->\n"
    document.write_text(serving + "<!-- bench:speednet -->\nold\n<!-- /bench:speednet -->\n")

    assert report.fill(document, "new", "speednet")

    assert document.read_text() == (
        serving + "<!-- bench:speednet -->\nnew\n<!-- /bench:speednet -->\n"
    )
