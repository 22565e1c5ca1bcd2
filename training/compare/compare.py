"""A comparison of all artifacts of a store: cost, accuracy and errors.

Accuracy comes from each artifact's evaluation; latency and throughput are measured. To find errors
in common, the float32 graphs classify the test images, which `training.evaluate` reads, once more.
No choice depends on them. `training.compare.report` makes the tables, `training.compare.plots` the
plots.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from app.artifact.detection import DetectorManifest
from app.artifact.directory import Artifact, read_artifact
from app.artifact.files import HISTORY, ONNX_GRAPH, TORCHSCRIPT_GRAPH
from app.artifact.golden import read_golden
from app.artifact.manifest import Manifest, Precision, Task, Views
from app.artifact.segmentation import SegmenterManifest
from app.artifact.tensors import Images
from app.errors import ConvscopeError
from app.images import RgbImage
from app.inference.backends import Backend, open_backend
from app.tasks.classification import DEFAULT_SETS
from training.compare.overlap import Overlap, find_overlap
from training.data import dataset
from training.errors import DataError, RunError
from training.evaluate import answer_test
from training.run.checkpoint import EpochFigures, parse_history
from training.run.hardware import name_processor

BATCH = 64
ROUNDS = 15
SINGLE_CALLS = 50
BATCH_CALLS = 4
FULLY_CONNECTED = "fc"
"""The architecture of the networks without a convolution."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Int8Figures:
    """Figures of the int8 graph, in the units of `ModelFigures`."""

    accuracy: float
    latency_ms: float
    images_per_second: float


@dataclass(frozen=True)
class ConfidenceFigures:
    """Figures of the float32 graph's prediction sets and out-of-distribution score.

    Attributes:
        found: the part of the test images whose set has the true class, by the wanted part ("90%"),
            with the default method.
        classes: the mean number of classes in a set, by the wanted part.
        false_alarms: the part of the test images that is marked as foreign.
        auroc: of test images against each kind of foreign images.
    """

    found: dict[str, float]
    classes: dict[str, float]
    false_alarms: float
    auroc: dict[str, float]


@dataclass(frozen=True)
class ModelFigures:
    """One row of the comparison.

    Attributes:
        model: `name/version`.
        architecture: of the network.
        parameters: learned numbers.
        macs: multiply-accumulates for one image, in all its views.
        views: of each image, whose logits the graph averages.
        onnx_bytes: size of the ONNX graph.
        torchscript_bytes: size of the TorchScript graph.
        training_seconds: of the run and of those that it started from in turn.
        training_hardware: the processors or GPUs of them, in turn.
        epochs: passes over the training images in the last run.
        training_images: the number of images that it was trained on.
        accuracy: on the test split, 0 to 1.
        cross_entropy: on the test split, calibrated, in nats.
        ece: expected calibration error on the test split, calibrated.
        recall_by_class: the part of each class's test images that is recognised.
        latency_ms: of one image, median, ONNX on one thread.
        images_per_second: at batch 64, median, ONNX on one thread.
        int8: figures of the int8 graph; None if the artifact has none.
        confidence: None if no images were held out.
        history: one record for each epoch.
    """

    model: str
    architecture: str
    parameters: int
    macs: int
    views: Views
    onnx_bytes: int
    torchscript_bytes: int
    training_seconds: float
    training_hardware: str
    epochs: int
    training_images: int
    accuracy: float
    cross_entropy: float
    ece: float
    recall_by_class: dict[str, float]
    latency_ms: float
    images_per_second: float
    int8: Int8Figures | None
    confidence: ConfidenceFigures | None
    history: tuple[EpochFigures, ...]


@dataclass(frozen=True)
class ObjectFigures:
    """One row of the comparison of detectors and segmenters.

    Attributes:
        model: `name/version`.
        task: its task.
        architecture: of the network.
        data: the data set.
        parameters: learned numbers.
        macs: multiply-accumulates for one picture.
        bytes: of all files.
        training_seconds: of the run.
        training_hardware: the processors or GPUs of it.
        scores: on the test split, by name: mAP, or IoU and F1.
        int8_scores: of the int8 graph; empty if there is none.
        latency_ms: of one picture, median, ONNX on one thread.
        int8_latency_ms: likewise; None if there is no int8 graph.
    """

    model: str
    task: Task
    architecture: str
    data: str
    parameters: int
    macs: int
    bytes: int
    training_seconds: float
    training_hardware: str
    scores: dict[str, float]
    int8_scores: dict[str, float]
    latency_ms: float
    int8_latency_ms: float | None


@dataclass(frozen=True)
class Errors:
    """Errors in common of a store's models on the same test images.

    Attributes:
        overlap: of the models that were trained on the data found; None for fewer than two.
        left_out: models that were trained on other data.
        pictures: the test images that `overlap` names, by index, uint8 `[H,W,3]`.
    """

    overlap: Overlap | None = None
    left_out: tuple[str, ...] = ()
    pictures: dict[int, RgbImage] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All models of a store.

    Attributes:
        models: the classifiers, by name and version.
        errors: errors in common.
        timed_on: the processor that latency and throughput were measured on.
        objects: the detectors and segmenters, by name and version.
    """

    models: tuple[ModelFigures, ...]
    errors: Errors
    timed_on: str
    objects: tuple[ObjectFigures, ...] = ()


def compare(
    store: Path, find_data: Callable[[], dataset.Source], tell: Callable[[str], None]
) -> Comparison:
    """Verify and measure every artifact of a store.

    Args:
        store: the folder of the artifacts.
        find_data: finds the data set whose test images are classified; called only for two models
            or more. Without a data set, errors are not compared.
        tell: is given a line before each step, which may take minutes.

    Raises:
        RunError: the store holds no artifact or a damaged one.
    """
    try:
        artifacts = _read_store(store)
        classifiers = [one for one in artifacts if one.manifest.task == "classification"]
        errors = _find_errors(classifiers, find_data, tell) if len(classifiers) > 1 else Errors()
        figures, objects = [], []
        for artifact in artifacts:
            tell(f"timing {artifact.ref}")
            if artifact in classifiers:
                figures.append(_figures(artifact))
            else:
                objects.append(_object_figures(artifact))
        return Comparison(tuple(figures), errors, name_processor(), tuple(objects))
    except ConvscopeError as exc:
        raise RunError(str(exc)) from exc


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point beats, by rising cost.

    Args:
        points: pairs of a cost and a gain. A point beats another if it is better in one and not
            worse in the other. Of equal points, one is returned.
    """
    front: list[Point] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def _find_errors(
    artifacts: Sequence[Artifact],
    find_data: Callable[[], dataset.Source],
    tell: Callable[[str], None],
) -> Errors:
    """Compare errors if the test images are found; no other figure needs them."""
    try:
        source = find_data()
    except DataError:
        return Errors()
    return _compare_errors(artifacts, source, tell)


def _read_store(store: Path) -> list[Artifact]:
    places = filter(Path.is_dir, store.glob("[!.]*/[1-9]*"))
    artifacts = [read_artifact(path) for path in places]
    if not artifacts:
        raise RunError(f"{store}: holds no artifact")
    for artifact in artifacts:
        artifact.verify()
    return sorted(artifacts, key=lambda item: (item.manifest.name, int(item.manifest.version)))


def _compare_errors(
    artifacts: Sequence[Artifact], source: dataset.Source, tell: Callable[[str], None]
) -> Errors:
    same = [item for item in artifacts if item.manifest.data.sha256 == source.sha256]
    left_out = tuple(item.ref for item in artifacts if item not in same)
    if len(same) < 2:
        return Errors(left_out=left_out)
    threads = torch.get_num_threads()
    answers = {}
    for item in same:
        tell(f"asking {item.ref} about the test images")
        backend = open_backend(item, "onnx-cpu", threads)
        answers[item.ref] = answer_test(backend.predict, source)
    dense = {item.ref for item in same if item.manifest.architecture == FULLY_CONNECTED}
    predictions = {key: answered.predicted for key, answered in answers.items()}
    test = answers[same[0].ref]
    overlap = find_overlap(test.labels, predictions, source.classes, dense)
    pictures = {index: test.images[index] for index in _named_images(overlap)}
    return Errors(overlap, left_out, pictures)


def _named_images(overlap: Overlap) -> Iterator[int]:
    for group in (overlap.by_all, overlap.by_fully_connected):
        if group is not None:
            yield from (example.index for example in group.examples)


def _figures(artifact: Artifact) -> ModelFigures:
    manifest, evaluation = artifact.classifier, artifact.evaluation()
    history = parse_history(artifact.read(HISTORY).decode())
    latency_ms, images_per_second = _speed(artifact, "float32")
    int8 = None
    if manifest.int8 is not None:
        int8 = Int8Figures(manifest.int8.test_accuracy, *_speed(artifact, "int8"))
    return ModelFigures(
        model=artifact.ref,
        architecture=manifest.architecture,
        parameters=manifest.parameters,
        macs=manifest.macs,
        views=manifest.views,
        onnx_bytes=len(artifact.read_graph(ONNX_GRAPH)),
        torchscript_bytes=manifest.files[TORCHSCRIPT_GRAPH].bytes,
        training_seconds=manifest.training_seconds,
        training_hardware=manifest.hardware,
        epochs=len(history),
        training_images=manifest.data.train,
        accuracy=manifest.test.accuracy,
        cross_entropy=manifest.test.cross_entropy_calibrated,
        ece=manifest.test.ece_calibrated,
        recall_by_class={figures.label: figures.recall for figures in evaluation.per_class},
        latency_ms=latency_ms,
        images_per_second=images_per_second,
        int8=int8,
        confidence=_confidence(artifact),
        history=history,
    )


def _object_figures(artifact: Artifact) -> ObjectFigures:
    manifest = artifact.manifest
    scores, int8_scores = _scores(manifest)
    int8 = manifest.int8 is not None
    return ObjectFigures(
        model=artifact.ref,
        task=manifest.task,
        architecture=manifest.architecture,
        data=manifest.data.name,
        parameters=manifest.parameters,
        macs=manifest.macs,
        bytes=sum(record.bytes for record in manifest.files.values()),
        training_seconds=manifest.training_seconds,
        training_hardware=manifest.hardware,
        scores=scores,
        int8_scores=int8_scores,
        latency_ms=_latency_ms(artifact, "float32"),
        int8_latency_ms=_latency_ms(artifact, "int8") if int8 else None,
    )


def _scores(manifest: Manifest) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores of a detector or segmenter on the test split, and of its int8 graph."""
    if isinstance(manifest, DetectorManifest):
        scores = {"mAP": manifest.test.map, "mAP50": manifest.test.map50}
        record = manifest.int8
        int8 = {"mAP": record.test_map, "mAP50": record.test_map50} if record is not None else {}
        return scores, int8
    if isinstance(manifest, SegmenterManifest):
        found = {"IoU": manifest.test.iou, "F1": manifest.test.instance_f1}
        masks = manifest.int8
        graph = {} if masks is None else {"IoU": masks.test_iou, "F1": masks.test_instance_f1}
        return _known(found), _known(graph)
    return {}, {}


def _known(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: score for name, score in scores.items() if score is not None}


def _latency_ms(artifact: Artifact, precision: Precision) -> float:
    backend = open_backend(artifact, "onnx-cpu", threads=1, precision=precision)
    return 1000 * _seconds_a_call(backend, read_golden(artifact)[0][:1], SINGLE_CALLS)


def _confidence(artifact: Artifact) -> ConfidenceFigures | None:
    confidence = artifact.classifier.confidence.get("float32")
    if confidence is None:
        return None
    measured = [item for item in confidence.conformal.measured if item.method == DEFAULT_SETS]
    foreign = confidence.out_of_distribution
    return ConfidenceFigures(
        found={f"{item.wanted:.0%}": item.found for item in measured},
        classes={f"{item.wanted:.0%}": item.classes for item in measured},
        false_alarms=foreign.test_false_alarms,
        auroc=foreign.auroc,
    )


def _speed(artifact: Artifact, precision: Precision) -> tuple[float, float]:
    """Return the latency of one image in milliseconds, and images a second at batch 64."""
    backend = open_backend(artifact, "onnx-cpu", threads=1, precision=precision)
    images: Images = np.resize(read_golden(artifact)[0], (BATCH, *artifact.manifest.image_size, 3))
    return (
        1000 * _seconds_a_call(backend, images[:1], SINGLE_CALLS),
        BATCH / _seconds_a_call(backend, images, BATCH_CALLS),
    )


def _seconds_a_call(backend: Backend, images: Images, calls: int) -> float:
    """Return the median over rounds of a call's mean time, after a round to warm up."""
    rounds = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        for _ in range(calls):
            backend.predict(images)
        rounds.append((time.perf_counter() - started) / calls)
    return statistics.median(rounds[1:])
