"""Figures of a trained network, and the only reader of the test split.

The temperature is fitted on the held-out images; the test split is read once, after that. The
arithmetic of the metrics is torchmetrics'. Nothing here writes an artifact.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.contract import (
    EVALUATION,
    ClassFigures,
    Confusion,
    Evaluation,
    Images,
    Mistake,
    Probabilities,
    TestFigures,
    Views,
    Weights,
)
from training import data, durable
from training.architectures import find_architecture
from training.checkpoint import Checkpoint
from training.errors import DataError, RunError
from training.half_weights import rounded
from training.train import compute_logits
from training.views import with_views
from training.vision import import_torchvision

CALIBRATION_BINS = 15
TOP_CONFUSIONS = 10
CONFIDENT_MISTAKES = 10


def load_network(checkpoint: Checkpoint, weights: Weights = "float32") -> nn.Module:
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
    source: data.Source,
    device: torch.device,
    views: Views = 1,
    weights: Weights = "float32",
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

    def logits_of(split: data.Split) -> Tensor:
        return compute_logits(network, split.images, state.mean, state.deviation, device)

    temperature = 1.0
    heldout = load_heldout(checkpoint, source)
    if len(heldout) > 0:
        temperature = fit_temperature(logits_of(heldout), heldout.labels)
    test = source.load_test()
    evaluation = _measure(logits_of(test), test.labels, temperature, state.classes)
    return evaluation.model_copy(update={"views": views, "weights": weights})


def check_source(checkpoint: Checkpoint, source: data.Source) -> None:
    """Raise DataError unless `source` is the data set that the run was trained on."""
    if source.sha256 != checkpoint.state.data_sha256:
        raise DataError(
            f"{source.place}: data with sha256 {source.sha256}; "
            f"{checkpoint.path} was trained on {checkpoint.state.data_sha256}"
        )


def load_heldout(checkpoint: Checkpoint, source: data.Source) -> data.Split:
    """Return the images that the run held out; none if its recipe held out none."""
    train = source.load_train()
    recipe = checkpoint.state.recipe
    _, heldout = data.split_holdout(train.labels, recipe.holdout, recipe.split_seed)
    return train[heldout]


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T for which softmax(logits / T) has the least cross-entropy.

    Temperature scaling (Guo et al. 2017), found by L-BFGS on log T in double precision.

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
    return log_temperature.exp().item()


def agreement_on_test(
    source: data.Source,
    reference: Callable[[Images], Probabilities],
    others: dict[str, Callable[[Images], Probabilities]],
) -> dict[str, float]:
    """Return for each of `others` the part of all test images that it classifies as `reference`."""
    images = source.load_test().images.numpy()
    expected = _predictions(reference, images)
    return {
        name: float(np.mean(_predictions(predict, images) == expected))
        for name, predict in others.items()
    }


def predictions_on_test(
    source: data.Source, models: Mapping[str, Callable[[Images], Probabilities]]
) -> tuple[data.Split, dict[str, NDArray[np.int64]]]:
    """Return the test split and the class that each model predicts for each of its images.

    Args:
        source: the data set.
        models: uint8 images `[N,H,W,3]` to probabilities `[N,classes]`, by the models' names.

    Returns:
        The split, and by name int64 `[N]`.
    """
    test = source.load_test()
    images = test.images.numpy()
    return test, {name: _predictions(predict, images) for name, predict in models.items()}


@dataclass(frozen=True)
class ServedFigures:
    """Figures of probabilities as they are served; cross-entropy is in nats, ECE has 15 bins."""

    accuracy: float
    cross_entropy: float
    ece: float


def accuracy(predict: Callable[[Images], Probabilities], split: data.Split) -> float:
    """Return the part of a split's images that a backend classifies correctly."""
    return float(np.mean(_predictions(predict, split.images.numpy()) == split.labels.numpy()))


def measure_served(
    predict: Callable[[Images], Probabilities], source: data.Source
) -> ServedFigures:
    """Measure a backend on the test split, where nothing depends on the outcome any more."""
    test = source.load_test()
    probabilities = torch.from_numpy(_probabilities(predict, test.images.numpy()))
    classes = probabilities.shape[1]
    return ServedFigures(
        accuracy=_figure(
            _metrics().multiclass_accuracy(probabilities, test.labels, classes, average="micro")
        ),
        cross_entropy=_figure(F.nll_loss(_log(probabilities), test.labels)),
        ece=_calibration_error(probabilities, test.labels),
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


def _probabilities(predict: Callable[[Images], Probabilities], images: Images) -> Probabilities:
    parts = range(0, len(images), 500)
    return np.concatenate([predict(images[start : start + 500]) for start in parts])


def _predictions(predict: Callable[[Images], Probabilities], images: Images) -> NDArray[np.int64]:
    classes: NDArray[np.int64] = _probabilities(predict, images).argmax(1)
    return classes


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
