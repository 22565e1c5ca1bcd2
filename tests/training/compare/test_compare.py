import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.lines import Line2D
from PIL import Image
from rich.console import Console

from app.artifact.directory import Artifact, read_artifact
from app.artifact.files import MANIFEST
from app.artifact.manifest import BackendName, Precision
from app.inference.backends import Backend, open_backend
from tests.support import sample
from tests.support.detectors import write_detector
from tests.support.segmenters import write_segmenter
from training.cli import main
from training.compare import compare as comparing
from training.compare import report
from training.compare.compare import Comparison, compare, pareto_front
from training.compare.plots import accuracy_and_cost
from training.data import dataset
from training.errors import DataError, RunError
from training.evaluate import read_evaluation
from training.export import quantize
from training.export.export import Export, export
from training.run.checkpoint import Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _few_rounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROUNDS", "SINGLE_CALLS", "BATCH_CALLS"):
            patch.setattr(comparing, name, 2)
        yield


def _say_nothing(_text: str) -> None:
    pass


@pytest.fixture(scope="module")
def store(
    exported: Artifact,
    trained: Checkpoint,
    source: dataset.Source,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """fc/1 and tiny/1 in float32, other/1 of other data, and small/1, which has int8 as well."""
    place = tmp_path_factory.mktemp("store")
    found = read_evaluation(trained)
    assert found is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "MOST_LOST", 1.0)
        export(Export(trained, found, source, "small", "1", int8=True), place)
    _copy(exported, place, "tiny")
    _copy(exported, place, "fc", architecture="fc")
    _copy(exported, place, "other", data={"sha256": "0" * 64})
    return place


@pytest.fixture(scope="module")
def comparison(store: Path, source: dataset.Source) -> Comparison:
    return compare(store, lambda: source, _say_nothing)


def _copy(artifact: Artifact, store: Path, name: str, **changes: object) -> None:
    """Copy an artifact under another name, with changes to its manifest."""
    path = Path(shutil.copytree(artifact.path, store / name / "1"))
    manifest = json.loads((path / MANIFEST).read_text())
    for field, value in changes.items():
        manifest[field] = manifest[field] | value if isinstance(value, dict) else value
    (path / MANIFEST).write_text(json.dumps(manifest | {"name": name}))


def test_no_point_of_a_pareto_front_is_beaten() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (5.0, 0.8), (4.0, 0.95)]
    assert pareto_front(points) == [(1.0, 0.5), (3.0, 0.9), (4.0, 0.95)]


def test_points_that_are_equal_in_one_do_not_both_stand_in_the_front() -> None:
    assert pareto_front([(1.0, 0.5), (1.0, 0.6)]) == [(1.0, 0.6)]
    assert pareto_front([(2.0, 0.5), (1.0, 0.5)]) == [(1.0, 0.5)]
    assert pareto_front([(1.0, 0.5), (1.0, 0.5)]) == [(1.0, 0.5)]
    assert pareto_front([]) == []


def test_int8_is_measured_where_the_artifact_has_it(comparison: Comparison, store: Path) -> None:
    figures = {model.model: model for model in comparison.models}
    assert list(figures) == ["fc/1", "other/1", "small/1", "tiny/1"]
    assert figures["tiny/1"].int8 is None
    int8 = figures["small/1"].int8
    assert int8 is not None
    manifest = json.loads((store / "small" / "1" / MANIFEST).read_text())
    assert int8.accuracy == manifest["int8"]["test_accuracy"]
    assert int8.latency_ms > 0
    assert int8.images_per_second > 0


def test_each_graph_is_timed_on_one_thread(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_one(
        artifact: Artifact, name: BackendName, threads: int, precision: Precision
    ) -> Backend:
        opened.append((name, threads, precision))
        return open_backend(artifact, name, threads, precision)

    shutil.copytree(store / "small", tmp_path / "small")
    monkeypatch.setattr(comparing, "open_backend", open_one)
    compare(tmp_path, lambda: pytest.fail("data was looked for"), _say_nothing)
    assert opened == [("onnx-cpu", 1, "float32"), ("onnx-cpu", 1, "int8")]


def test_the_overlap_is_of_the_models_own_errors_on_the_test_images(
    comparison: Comparison, exported: Artifact
) -> None:
    overlap = comparison.errors.overlap
    assert overlap is not None
    assert overlap.models == ("fc/1", "small/1", "tiny/1")
    matrix = np.array(exported.evaluation().confusion_matrix)
    wrong = int(matrix.sum() - matrix.trace())
    assert overlap.errors == (wrong,) * 3  # they are one network
    assert overlap.histogram == (80 - wrong, 0, 0, wrong)
    images, labels = sample.read("test")
    for example in overlap.by_all.examples:
        assert example.true == sample.class_names()[labels[example.index]]
        assert example.predicted != example.true
        assert np.array_equal(comparison.errors.pictures[example.index], images[example.index])
    assert overlap.by_fully_connected is not None
    assert overlap.by_fully_connected.images == 0


def test_models_of_other_data_are_named_and_left_out_of_the_overlap(
    comparison: Comparison, store: Path, source: dataset.Source
) -> None:
    assert comparison.errors.left_out == ("other/1",)
    told: list[str] = []
    elsewhere = compare(store, lambda: replace(source, sha256="0" * 64), told.append).errors
    assert told == [f"timing {name}" for name in ("fc/1", "other/1", "small/1", "tiny/1")]
    assert elsewhere.overlap is None
    assert elsewhere.left_out == ("fc/1", "small/1", "tiny/1")


def test_one_model_alone_needs_no_data(exported: Artifact) -> None:
    found = compare(
        exported.path.parent.parent, lambda: pytest.fail("data was looked for"), _say_nothing
    )
    assert [model.model for model in found.models] == ["tiny/1"]
    assert found.errors == comparing.Errors()


def test_a_damaged_artifact_ends_the_comparison(store: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(store, tmp_path / "store"))
    (damaged / "tiny" / "1" / "filters.png").write_bytes(b"")
    with pytest.raises(RunError, match=r"filters\.png: .*; manifest\.json says"):
        compare(damaged, lambda: pytest.fail("data was looked for"), _say_nothing)


def test_the_command_writes_tables_and_pictures(
    store: Path, image_folder: Path, tmp_path: Path
) -> None:
    arguments = ["compare", "--store", store, "--data-dir", image_folder, "--out", tmp_path]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "their errors are not compared: other/1" in result.output
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["model"] for row in content["models"]] == ["fc/1", "other/1", "small/1", "tiny/1"]
    assert content["overlap"]["models"] == ["fc/1", "small/1", "tiny/1"]
    assert content["left_out"] == ["other/1"]
    assert content["timed_on"]
    said = (tmp_path / "comparison.md").read_text()
    assert f"on one thread of {content['timed_on']}. " in said
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.name for path in pictures] == [
        "accuracy_and_cost.png",
        "accuracy_by_class.png",
        "error_overlap.png",
        "learning_curves.png",
    ]
    text = (tmp_path / "comparison.md").read_text()
    for path in pictures:
        assert f"]({path.name})" in text
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 100
            picture.load()


def _corners(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def test_cost_is_on_a_log_axis_with_int8_hollow_and_a_front_that_nothing_beats(
    comparison: Comparison,
) -> None:
    model, int8 = comparison.models[3], comparing.Int8Figures(0.8, 1.0, 10.0)
    models = [
        replace(model, accuracy=0.9, latency_ms=4.0, int8=int8),
        replace(model, accuracy=0.5, latency_ms=8.0, training_hardware="another"),
    ]
    latency, training = accuracy_and_cost(models).axes
    assert (latency.get_xscale(), training.get_xscale()) == ("log", "log")
    marked = [line for line in latency.lines if line.get_marker() == "o" and _corners(line)]
    points = {_corners(line)[0]: line.get_markerfacecolor() for line in marked}
    assert points.keys() == {(4.0, 90.0), (1.0, 80.0), (8.0, 50.0)}
    assert [place for place, color in points.items() if color == "white"] == [(1.0, 80.0)]
    (front,) = (line for line in latency.lines if line.get_label() == "Pareto front")
    assert _corners(front) == [(1.0, 80.0), (4.0, 80.0), (4.0, 90.0)]
    explained = training.get_legend()
    assert explained
    legend = [text.get_text() for text in explained.get_texts()]
    assert legend == [model.training_hardware, "another", "Pareto front of each machine"]


def test_long_names_of_machines_leave_the_axes_their_room(comparison: Comparison) -> None:
    machines = [f"A processor with a long name, {n} threads, then another, 1 thread" for n in "246"]
    model = comparison.models[3]
    figure = accuracy_and_cost([replace(model, training_hardware=name) for name in machines])
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_position().width > 0.4


def _rows(markdown: str) -> list[list[str]]:
    """The first table of a page, without the line under its heading."""
    table = markdown.partition("\n\n")[0].splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table if "---" not in line
    ]


def test_a_row_is_a_model_and_says_nothing_of_int8_where_there_is_none(
    comparison: Comparison, tmp_path: Path
) -> None:
    report.write_comparison(comparison, tmp_path)
    heading, *rows = _rows((tmp_path / "comparison.md").read_text())
    assert [row[0] for row in rows] == ["fc/1", "other/1", "small/1", "tiny/1"]
    cells = {row[0]: dict(zip(heading, row, strict=True)) for row in rows}
    int8 = ("int8", "ms int8", "images/s int8")
    assert [cells["tiny/1"][name] for name in int8] == ["-"] * 3
    figures = comparison.models[2].int8
    assert figures is not None
    assert [cells["small/1"][name] for name in int8] == [
        f"{figures.accuracy:.2%}",
        f"{figures.latency_ms:.3f}",
        f"{figures.images_per_second:,.0f}",
    ]
    assert "views" not in heading


def test_columns_stand_where_a_model_has_something_to_say(
    comparison: Comparison, tmp_path: Path
) -> None:
    tiny = comparison.models[-1]
    report.write_comparison(replace(comparison, models=(tiny,)), tmp_path)
    assert "int8" not in " ".join(_rows((tmp_path / "comparison.md").read_text())[0])
    both = (tiny, replace(tiny, model="tiny/2", views=6))
    report.write_comparison(replace(comparison, models=both), tmp_path)
    heading, *rows = _rows((tmp_path / "comparison.md").read_text())
    assert [row[heading.index("views")] for row in rows] == ["1", "6"]


def test_without_an_overlap_no_picture_of_one_is_left(
    comparison: Comparison, tmp_path: Path
) -> None:
    report.write_comparison(comparison, tmp_path)
    report.write_comparison(replace(comparison, errors=comparing.Errors()), tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text())["overlap"] is None
    assert not (tmp_path / "error_overlap.png").exists()
    assert "error_overlap" not in (tmp_path / "comparison.md").read_text()


def test_hardware_is_said_for_each_model_where_it_differs(
    comparison: Comparison, tmp_path: Path
) -> None:
    first, *_, last = comparison.models
    models = (replace(first, training_hardware="a GPU"), last)
    report.write_comparison(replace(comparison, models=models), tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert (
        f"Trained: fc/1 on a GPU; tiny/1 on {last.training_hardware}; the times of two do" in text
    )
    assert " not compare, so each machine has a front of its own.\n" in text


def test_confidence_of_every_model_that_has_it_is_shown(
    comparison: Comparison, store: Path, tmp_path: Path
) -> None:
    report.write_comparison(comparison, tmp_path)
    shown = (tmp_path / report.COMPARISON_MARKDOWN).read_text()
    tiny = next(model for model in comparison.models if model.model == "tiny/1")
    measured = read_artifact(store / "tiny" / "1").classifier.confidence["float32"]
    assert tiny.confidence is not None
    assert tiny.confidence.auroc == measured.out_of_distribution.auroc
    aps = {item.wanted: item for item in measured.conformal.measured if item.method == "aps"}
    cells = (f"{aps[wanted].found:.1%}, {aps[wanted].classes:.2f}" for wanted in (0.9, 0.95, 0.99))
    assert f"| tiny/1 | {' | '.join(cells)} |" in shown


def test_model_without_confidence_is_left_out_of_its_tables(comparison: Comparison) -> None:
    bare = tuple(replace(model, confidence=None) for model in comparison.models)
    titles = [
        str(table.title) for table in report.comparison_tables(replace(comparison, models=bare))
    ]
    assert not any("AUROC" in title or "sets" in title for title in titles)
    some = (*bare[:-1], comparison.models[-1])
    tables = report.comparison_tables(replace(comparison, models=some))
    (foreign,) = (table for table in tables if "AUROC" in str(table.title))
    assert foreign.row_count == 1


def test_without_the_images_all_but_the_errors_is_compared(store: Path, tmp_path: Path) -> None:
    def find() -> dataset.Source:
        raise DataError("found no data set")

    shutil.copytree(store / "fc", tmp_path / "fc")
    (tmp_path / "fc" / "1.tar.gz").write_bytes(b"not an artifact, and no folder")
    comparison = compare(tmp_path, find, _say_nothing)
    assert [model.model for model in comparison.models] == ["fc/1"]
    assert comparison.errors == comparing.Errors()


def test_detectors_and_segmenters_have_a_table_of_their_own(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_detector(store)
    write_segmenter(store)
    comparison = compare(store, lambda: pytest.fail("no images are needed"), _say_nothing)
    assert comparison.models == ()
    boxes, masks = sorted(comparison.objects, key=lambda model: model.task)
    assert (boxes.model, boxes.scores["mAP"]) == ("finder/1", 0.6)
    assert masks.scores.keys() == {"IoU", "F1"}
    assert boxes.latency_ms > 0
    report.write_comparison(comparison, tmp_path / "out")
    text = (tmp_path / "out" / report.COMPARISON_MARKDOWN).read_text()
    assert "finder/1" in text
    assert "mAP 60.0%" in text
    content = json.loads((tmp_path / "out" / report.COMPARISON_JSON).read_text())
    assert [row["model"] for row in content["objects"]] == ["cells/1", "finder/1"]
    for table in report.comparison_tables(comparison):
        assert table.row_count == 2
        shown = io.StringIO()
        Console(width=120, file=shown).print(table)
        lines = [line for line in shown.getvalue().splitlines() if line.strip()]
        assert len(lines) == 5, lines  # a title, headings, a rule, and no cell of two lines


def test_a_store_of_several_tasks_has_the_tables_of_each(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store / "fc", tmp_path / "fc")
    write_detector(tmp_path)
    comparison = compare(tmp_path, lambda: pytest.fail("one classifier alone"), _say_nothing)
    assert [model.model for model in comparison.models] == ["fc/1"]
    assert [model.model for model in comparison.objects] == ["finder/1"]
    titles = [str(table.title) for table in report.comparison_tables(comparison)]
    assert titles[0] == "Accuracy and training"
    assert titles[-2:] == ["Boxes and masks", "Boxes and masks: size and speed, one thread"]
