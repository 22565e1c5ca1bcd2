"""Thresholds of prediction sets and of foreign images: fitted on held-out images, then measured.

The backend that serves an ONNX graph computes the answers to fit them on; TorchScript must give the
same scores. Nothing here writes a file or reads the test split.
"""

from collections.abc import Mapping
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from app.artifact.manifest import Confidence, Conformal, Coverage, OutOfDistribution, SetMethod
from app.artifact.tensors import Images, Outputs
from app.tasks.classification import (
    class_scores,
    find_threshold,
    fit_threshold,
    prediction_sets,
)
from training.evaluate import SERVED_BATCH, Answered, Predict, outputs_for
from training.export.graphs import ServedNetwork
from training.export.layer_outputs import outputs_of
from training.export.ood import OodScore, layer_for_score, statistics_of

MEASURED_COVERAGES = (0.9, 0.95, 0.99)
FALSE_ALARMS = 0.05
CERTAINTY = 0.9
"""The probability that a class's threshold covers as often as it promises."""

OOD_TRAINING_IMAGES = 5000
_METHODS: tuple[SetMethod, ...] = get_args(SetMethod)


def fit_ood_score(served: ServedNetwork, train: Images, heldout: Images) -> OodScore:
    """Fit and calibrate the out-of-distribution score of a network.

    Args:
        served: the network, without a score.
        train: images that it learned from, uint8 `[N,H,W,3]`; 5,000 are plenty.
        heldout: images that it did not learn from, uint8 `[N,H,W,3]`.
    """
    layer = layer_for_score(served.layers)
    statistics, _ = _look(served, layer, train)
    score = OodScore(layer, statistics)
    score.calibrate(*_look(served, layer, heldout))
    return score


@torch.inference_mode()
def _look(served: ServedNetwork, layer: str, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the statistics of a layer's maps `[N,2C]`, and the logits `[N,classes]`."""
    statistics, logits = [], []
    for batch in torch.from_numpy(images).split(SERVED_BATCH):
        with outputs_of(served.plain, [layer], len(batch)) as maps:
            logits.append(served(batch)[0])
        statistics.append(statistics_of(maps[layer]))
    return torch.cat(statistics), torch.cat(logits)


def measure_confidence(
    heldout: Answered,
    test: Answered,
    foreign: Mapping[str, Images],
    predict: Predict,
) -> Confidence:
    """Fit the thresholds of one graph on held-out images; measure them on the test split.

    Args:
        heldout: images that the network did not learn from.
        test: the test split, on which nothing is chosen.
        foreign: images of no known class, by kind.
        predict: the graph, which gives out-of-distribution scores.
    """
    scores = {name: _scores(outputs_for(predict, images)) for name, images in foreign.items()}
    known, usual = _scores(heldout.outputs), _scores(test.outputs)
    threshold = float(np.quantile(known, 1 - FALSE_ALARMS))
    return Confidence(
        heldout_images=len(heldout.labels),
        conformal=_fit_conformal(heldout, test),
        out_of_distribution=OutOfDistribution(
            threshold=threshold,
            heldout_false_alarms=_part(known > threshold),
            test_false_alarms=_part(usual > threshold),
            auroc={name: auroc(usual, values) for name, values in scores.items()},
            detected={name: _part(values > threshold) for name, values in scores.items()},
        ),
    )


def auroc(known: NDArray[np.float32], foreign: NDArray[np.float32]) -> float:
    """Return how often the foreign image of a pair scores higher; equal scores count half."""
    from sklearn.metrics import roc_auc_score  # a second to import, for exports alone

    is_foreign = np.repeat([False, True], [len(known), len(foreign)])
    return _figure(roc_auc_score(is_foreign, np.concatenate([known, foreign])))


def _fit_conformal(heldout: Answered, test: Answered) -> Conformal:
    likely, ordered = (_true_scores(heldout, method) for method in ("lac", "aps"))
    classes = range(heldout.outputs.probabilities.shape[1])
    fitted = Conformal(
        lac=_thresholds(likely),
        aps=_thresholds(ordered),
        class_conditional=tuple(
            _class_thresholds(likely[heldout.labels == label]) for label in classes
        ),
        measured=(),
    )
    measured = tuple(
        _measure_coverage(test, fitted, method, wanted)
        for method in _METHODS
        for wanted in MEASURED_COVERAGES
    )
    return fitted.model_copy(update={"measured": measured})


def _true_scores(heldout: Answered, method: SetMethod) -> NDArray[np.float64]:
    """Return the scores of the true classes, `[N]`."""
    scores = class_scores(heldout.outputs.probabilities, heldout.images, method)
    return scores[np.arange(len(scores)), heldout.labels]


def _thresholds(true_scores: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(fit_threshold(true_scores, percent / 100) for percent in range(1, 100))


def _class_thresholds(true_scores: NDArray[np.float64]) -> tuple[float, ...]:
    """Return one class's thresholds, which allow for how few images they are fitted on.

    Of n scores, the k-th smallest covers a part that has the beta distribution of k and n - k + 1.
    k is the least for which `CERTAINTY` of that distribution is above the coverage (Vovk 2012,
    proposition 2); with too few scores for any k, the threshold is 1.

    Args:
        true_scores: of the class's held-out images, `[n]`.
    """
    from scipy.stats import binom  # half a second to import, for exports alone

    below = binom.ppf(CERTAINTY, len(true_scores), np.arange(1, 100) / 100).astype(int)
    return tuple(np.append(np.sort(true_scores), 1.0)[below].tolist())


def _measure_coverage(
    test: Answered, fitted: Conformal, method: SetMethod, wanted: float
) -> Coverage:
    threshold = find_threshold(fitted, wanted, method)
    if threshold is None:
        raise ValueError(f"there are no thresholds of {method}")
    sets = prediction_sets(test.outputs.probabilities, test.images, method, threshold)
    held, sizes = sets[np.arange(len(sets)), test.labels], sets.sum(1)
    return Coverage(
        method=method,
        wanted=wanted,
        found=_part(held),
        classes=_figure(sizes.mean()),
        empty=_part(sizes == 0),
        worst_class=min(_part(held[test.labels == label]) for label in np.unique(test.labels)),
    )


def _scores(outputs: Outputs) -> NDArray[np.float32]:
    if outputs.ood_scores is None:
        raise ValueError("the graph gives no out-of-distribution scores")
    return outputs.ood_scores


def _part(chosen: NDArray[np.bool_]) -> float:
    return _figure(chosen.mean())


def _figure(value: float | np.floating) -> float:
    return round(float(value), 6)
