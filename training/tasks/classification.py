"""Classification: the loss to learn from, the calibration and the metrics.

Targets are labels, or a teacher's probabilities; label smoothing is part of the loss. Any
augmentation of `training.data.augmentation` keeps labels true. torchmetrics computes the metrics.
Nothing here knows of a network, a file or a data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.artifact.manifest import ClassFigures, Confusion, Evaluation, Mistake, TestFigures
from training.vision import import_torchvision

CALIBRATION_BINS = 15
TOP_CONFUSIONS = 10
CONFIDENT_MISTAKES = 10
TEMPERATURES = (0.05, 20.0)
"""Limits of a fitted temperature. Beyond them there are too few held-out images to tell, and
logits drown in rounding."""


def losses(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Return each image's cross-entropy in nats, `[N]`.

    Args:
        logits: float `[N,classes]`.
        targets: labels, int64 `[N]`, or probabilities, float `[N,classes]`.
        label_smoothing: weight of the uniform distribution in the target, 0 to below 1.
    """
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many images have their highest logit at their label, int64 `[]`."""
    return (logits.argmax(1) == labels).sum()


class _Lesson:
    """What a classifier learns: the label of each image."""

    losses = staticmethod(losses)
    count_correct = staticmethod(count_correct)


LESSON = _Lesson()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T in `TEMPERATURES` for which softmax(logits / T) has the least cross-entropy.

    Temperature scaling (Guo et al. 2017), by L-BFGS on log T in double precision.

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


def measure(
    logits: Tensor, labels: Tensor, temperature: float, classes: tuple[str, ...]
) -> Evaluation:
    """Return all figures of a network on the test split.

    Args:
        logits: float32 `[N,classes]`, before the temperature.
        labels: int64 `[N]`.
        temperature: divides the logits of the calibrated figures.
        classes: names by label.
    """
    calibrated = logits / temperature
    probabilities = calibrated.softmax(1)
    count, metrics = len(classes), _metrics()
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


@dataclass(frozen=True)
class ServedFigures:
    """Figures of served probabilities; cross-entropy is in nats, ECE has 15 bins."""

    accuracy: float
    cross_entropy: float
    ece: float


def measure_served(probabilities: Tensor, labels: Tensor) -> ServedFigures:
    """Return the figures of a graph's answers.

    Args:
        probabilities: float32 `[N,classes]`.
        labels: int64 `[N]`.
    """
    # Finite logarithms, also of a probability that is too small for a float32.
    logarithms = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
    return ServedFigures(
        accuracy=count_correct(probabilities, labels).item() / len(labels),
        cross_entropy=_figure(F.nll_loss(logarithms, labels)),
        ece=_calibration_error(probabilities, labels),
    )


def _metrics() -> ModuleType:
    """Return torchmetrics' classification metrics; they import torchvision where they find it."""
    import_torchvision()
    from torchmetrics.functional import classification

    return classification


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
