"""Figures of a trained network, and the only reader of the test split.

The temperature is fitted on the held-out images, and nothing is chosen on the test split. The
arithmetic of the metrics is torchmetrics'. Nothing here writes an artifact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.artifact.files import EVALUATION
from app.artifact.manifest import (
    ClassFigures,
    Confusion,
    Evaluation,
    Mistake,
    TestFigures,
    Views,
    WeightFormat,
)
from app.artifact.tensors import Images, Outputs
from training.architectures import find_architecture
from training.data import dataset
from training.errors import DataError, RunError
from training.export.half_weights import rounded
from training.export.views import with_views
from training.run import durable
from training.run.checkpoint import Checkpoint
from training.run.train import compute_logits
from training.vision import import_torchvision

CALIBRATION_BINS = 15
TOP_CONFUSIONS = 10
CONFIDENT_MISTAKES = 10
TEMPERATURES = (0.05, 20.0)
"""Beyond these, the held-out images are too few to tell, and logits drown in rounding."""
SERVED_BATCH = 50
"""Images that a graph is given at once: 500 leave a processor's cache and take twice as long."""

Predict = Callable[[Images], Outputs]
"""What a backend makes of uint8 images `[N,H,W,3]`."""


def load_network(checkpoint: Checkpoint, weights: WeightFormat = "float32") -> nn.Module:
    """Return the checkpoint's network, float32, on the processor, in evaluation mode.

    With `float16`, its kernels and matrices are rounded to what a float16 can hold.
    """
    state = checkpoint.state
    build = find_architecture(state.recipe.architecture).build
    network = build(len(state.classes), state.recipe.dropout)
    checkpoint.load_network(network)
    return network.eval() if weights == "float32" else rounded(network)


def evaluate(
    checkpoint: Checkpoint,
    source: dataset.Source,
    device: torch.device,
    views: Views = 1,
    weights: WeightFormat = "float32",
) -> Evaluation:
    """Fit the temperature on the held-out images, then measure on the test split.

    Args:
        checkpoint: of a run; a run without a holdout keeps the temperature 1.
        source: the data set that it was trained on.
        device: what computes the logits, in float32.
        views: of each image, whose logits are averaged.
        weights: what the network's kernels and matrices are rounded to.

    Raises:
        DataError: `source` is not the data set that the run was trained on.
        RunError: the weights cannot be read.
    """
    state = checkpoint.state
    check_source(checkpoint, source)
    network = with_views(load_network(checkpoint, weights), views).to(device)

    def logits_of(split: dataset.Split) -> Tensor:
        return compute_logits(network, split.images, state.mean, state.deviation, device)

    temperature = 1.0
    heldout = load_heldout(checkpoint, source)
    if len(heldout) > 0:
        temperature = fit_temperature(logits_of(heldout), heldout.labels)
    test = source.load_test()
    evaluation = _measure(logits_of(test), test.labels, temperature, state.classes)
    return evaluation.model_copy(update={"views": views, "weights": weights})


def check_source(checkpoint: Checkpoint, source: dataset.Source) -> None:
    """Raise DataError unless `source` is the data set that the run was trained on."""
    if source.sha256 != checkpoint.state.data_sha256:
        raise DataError(
            f"{source.place}: data with sha256 {source.sha256}; "
            f"{checkpoint.path} was trained on {checkpoint.state.data_sha256}"
        )


def load_splits(
    checkpoint: Checkpoint, source: dataset.Source
) -> tuple[dataset.Split, dataset.Split]:
    """Return the images that the run learned from, and those that it held out, if any."""
    images, recipe = source.load_train(), checkpoint.state.recipe
    train, heldout = dataset.split_holdout(images.labels, recipe.holdout, recipe.split_seed)
    return images[train], images[heldout]


def load_heldout(checkpoint: Checkpoint, source: dataset.Source) -> dataset.Split:
    """Return the images that the run held out; none if its recipe held out none."""
    _, heldout = load_splits(checkpoint, source)
    return heldout


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T in `TEMPERATURES` for which softmax(logits / T) fits best.

    That is, has the least cross-entropy. Temperature scaling (Guo et al. 2017), found by L-BFGS
    on log T in double precision.

    Args:
        logits: float `[N,classes]`.
        labels: int64 `[N]`.
    """
    logits = logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    least, most = TEMPERATURES
    return min(max(log_temperature.exp().item(), least), most)


@dataclass(frozen=True)
class Answered:
    """Images with their true classes and what a graph gives for them.

    Attributes:
        images: uint8 `[N,H,W,3]`.
        labels: int64 `[N]`.
        outputs: of the graph.
    """

    images: Images
    labels: NDArray[np.int64]
    outputs: Outputs

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable classes, int64 `[N]`."""
        classes: NDArray[np.int64] = self.outputs.probabilities.argmax(1)
        return classes

    @property
    def accuracy(self) -> float:
        """The part of the images that is classified correctly."""
        return float(np.mean(self.predicted == self.labels))


def answer(predict: Predict, split: dataset.Split) -> Answered:
    """Return what a graph gives for all images of a split."""
    images: Images = split.images.numpy()
    return Answered(images, split.labels.numpy(), outputs_for(predict, images))


def answer_test(predict: Predict, source: dataset.Source) -> Answered:
    """Return what a graph gives for the test split, when nothing depends on the outcome."""
    return answer(predict, source.load_test())


def changed_test(
    source: dataset.Source, change: Callable[[Images], Images], images: int
) -> dataset.Split:
    """Return the first test images after a change, to ask how a finished model bears it.

    Args:
        source: the data set.
        change: of uint8 images `[N,H,W,3]`, to others of the same shape.
        images: how many.
    """
    test = source.load_test()
    changed = torch.from_numpy(change(test.images[:images].numpy()))
    return dataset.Split(changed, test.labels[:images])


def outputs_for(predict: Predict, images: Images) -> Outputs:
    """Return what a graph gives for any number of images."""
    return Outputs.in_batches(predict, images, SERVED_BATCH)


@dataclass(frozen=True)
class ServedFigures:
    """Figures of probabilities as they are served; cross-entropy is in nats, ECE has 15 bins."""

    accuracy: float
    cross_entropy: float
    ece: float


def measure_served(answered: Answered) -> ServedFigures:
    """Measure what a graph gave for the test split."""
    probabilities = torch.from_numpy(answered.outputs.probabilities)
    labels = torch.from_numpy(answered.labels)
    return ServedFigures(
        accuracy=answered.accuracy,
        cross_entropy=_figure(F.nll_loss(_log(probabilities), labels)),
        ece=_calibration_error(probabilities, labels),
    )


def save_evaluation(checkpoint: Checkpoint, evaluation: Evaluation) -> None:
    """Write `evaluation.json` beside the weights that were measured, so that it goes with them.

    Raises:
        RunError: it cannot be written.
    """
    path = checkpoint.path / EVALUATION
    try:
        durable.write_text(path, evaluation.model_dump_json(indent=1))
    except OSError as exc:
        raise RunError(f"{path}: cannot be written: {exc}") from exc


def read_evaluation(checkpoint: Checkpoint) -> Evaluation | None:
    """Return what `save_evaluation` wrote, or None if the checkpoint has not been measured.

    Raises:
        RunError: the file is not an evaluation.
    """
    path = checkpoint.path / EVALUATION
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as exc:
        raise RunError(f"{path}: not an evaluation: {exc}") from exc


def _log(probabilities: Tensor) -> Tensor:
    """Return logarithms, finite where a probability was too small for a float32."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def _metrics() -> ModuleType:
    """Return torchmetrics' classification metrics; it imports torchvision where it finds it."""
    import_torchvision()
    from torchmetrics.functional import classification

    return classification


def _measure(
    logits: Tensor, labels: Tensor, temperature: float, classes: tuple[str, ...]
) -> Evaluation:
    calibrated = logits / temperature
    probabilities = calibrated.softmax(1)
    count = len(classes)
    metrics = _metrics()
    matrix = metrics.multiclass_confusion_matrix(probabilities, labels, count)
    return Evaluation(
        classes=classes,
        images=len(labels),
        temperature=temperature,
        test=TestFigures(
            accuracy=_figure(
                metrics.multiclass_accuracy(probabilities, labels, count, average="micro")
            ),
            cross_entropy_raw=_figure(F.cross_entropy(logits, labels)),
            cross_entropy_calibrated=_figure(F.cross_entropy(calibrated, labels)),
            ece_raw=_calibration_error(logits.softmax(1), labels),
            ece_calibrated=_calibration_error(probabilities, labels),
        ),
        confusion_matrix=tuple(tuple(row) for row in matrix.tolist()),
        per_class=tuple(_class_figures(probabilities, labels, classes)),
        top_confusions=tuple(_top_confusions(matrix, classes)),
        confident_mistakes=tuple(_confident_mistakes(probabilities, labels, classes)),
    )


def _figure(value: Tensor) -> float:
    """Return a float32 figure without the digits that it does not hold."""
    return round(value.item(), 6)


def _calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    error: Tensor = _metrics().multiclass_calibration_error(
        probabilities, labels, probabilities.shape[1], n_bins=CALIBRATION_BINS, norm="l1"
    )
    return _figure(error)


def _class_figures(
    probabilities: Tensor, labels: Tensor, classes: tuple[str, ...]
) -> Iterator[ClassFigures]:
    count, metrics = len(classes), _metrics()
    figures = [
        [_figure(part) for part in metric(probabilities, labels, count, average="none")]
        for metric in (
            metrics.multiclass_precision,
            metrics.multiclass_recall,
            metrics.multiclass_f1_score,
        )
    ]
    support = torch.bincount(labels, minlength=count).tolist()
    for label, precision, recall, f1, images in zip(classes, *figures, support, strict=True):
        yield ClassFigures(label=label, precision=precision, recall=recall, f1=f1, support=images)


def _top_confusions(matrix: Tensor, classes: tuple[str, ...]) -> Iterator[Confusion]:
    wrong = matrix.clone().fill_diagonal_(0).flatten()
    for index in wrong.argsort(descending=True, stable=True)[:TOP_CONFUSIONS].tolist():
        true, predicted = divmod(index, len(classes))
        if wrong[index] > 0:
            yield Confusion(
                true=classes[true], predicted=classes[predicted], count=int(wrong[index])
            )


def _confident_mistakes(
    probabilities: Tensor, labels: Tensor, classes: tuple[str, ...]
) -> Iterator[Mistake]:
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    order = confidence[wrong].argsort(descending=True, stable=True)[:CONFIDENT_MISTAKES]
    for index in wrong[order].tolist():
        yield Mistake(
            index=index,
            true=classes[labels[index]],
            predicted=classes[predicted[index]],
            confidence=_figure(confidence[index]),
        )
