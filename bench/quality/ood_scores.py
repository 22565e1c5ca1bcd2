"""Comparison of scores that detect foreign images.

    python -m bench.quality.ood_scores runs/simple-cnn-seed0 …

Compares scores that need only a forward pass, on each kind of images of `training.data.foreign` and
on the held-out images of the runs. The test split is not read, because these figures chose the
score of `training.export.ood`. They go to `bench/results/ood_scores.json` and
`docs/confidence.md`.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import click
import torch
from torch import Tensor

from app.artifact.tensors import Images
from bench import ROOT
from bench.harness.report import publish, table
from training.data import dataset
from training.data.foreign import foreign_images
from training.evaluate import (
    SERVED_BATCH,
    check_source,
    load_heldout,
    load_network,
)
from training.export.confidence import OOD_TRAINING_IMAGES, auroc
from training.export.graphs import ServedNetwork
from training.export.layer_outputs import outputs_of
from training.export.ood import OodScore, layer_for_score, statistics_of
from training.export.quantize import choose_training_images
from training.run import checkpoint
from training.tasks.classification import fit_temperature

DOCUMENT = ROOT / "docs" / "confidence.md"
_SCORES = {
    "max probability": "one minus the highest probability",
    "max logit": "the highest logit, negative",
    "energy": "the log of the sum of the logits' exponentials, negative",
    "distance, last": "Mahalanobis distance of the last layer's inputs from the nearest class mean",
    "distance, early": "Mahalanobis distance of channels' means and deviations at the served layer",
    "served": "`distance, early` and `energy`, each scaled by held-out images, halved",
}

Figures = dict[str, dict[str, float]]


class Looked:
    """A network's outputs for images: logits, the last layer's inputs, a layer's statistics."""

    def __init__(self, served: ServedNetwork, layer: str, images: Images) -> None:
        before_last = served.layers[-1].source or served.layers[-2].name
        logits, last, early = [], [], []
        with torch.inference_mode():
            for batch in torch.from_numpy(images).split(SERVED_BATCH):
                with outputs_of(served.plain, [layer, before_last], len(batch)) as maps:
                    logits.append(served(batch)[0])
                early.append(statistics_of(maps[layer]))
                last.append(maps[before_last].flatten(1))
        self.logits, self.last, self.early = torch.cat(logits), torch.cat(last), torch.cat(early)

    @property
    def probabilities(self) -> Tensor:
        """Float `[N,classes]`."""
        return self.logits.softmax(1)


def measure(run: Path, source: dataset.Source) -> Figures:
    """Return the AUROC of each score by kind, for the last checkpoint of a run."""
    state = checkpoint.open_run(run)
    check_source(state, source)
    heldout = load_heldout(state, source)
    mean, deviation = state.state.mean, state.state.deviation
    network = load_network(state)
    plain = ServedNetwork(network, mean, deviation, 1.0)
    layer = layer_for_score(plain.layers)
    temperature = fit_temperature(
        Looked(plain, layer, heldout.images.numpy()).logits, heldout.labels
    )
    served = ServedNetwork(network, mean, deviation, temperature)
    chosen = choose_training_images(state, source, OOD_TRAINING_IMAGES)
    look = Looked(served, layer, chosen.images.numpy())
    known = Looked(served, layer, heldout.images.numpy())
    scores = _scores(look, chosen.labels, known, layer)
    usual = {name: score(known).numpy() for name, score in scores.items()}
    figures: Figures = {name: {} for name in scores}
    for kind, images in foreign_images().items():
        foreign = Looked(served, layer, images)
        for name, score in scores.items():
            figures[name][kind] = auroc(usual[name], score(foreign).numpy())
    return figures


def _scores(
    look: Looked, labels: Tensor, heldout: Looked, layer: str
) -> dict[str, Callable[[Looked], Tensor]]:
    ours = OodScore(layer, look.early)
    ours.calibrate(heldout.early, heldout.logits)
    last = _class_distance(look.last, labels)
    return {
        "max probability": lambda seen: 1 - seen.probabilities.amax(1),
        "max logit": lambda seen: -seen.logits.amax(1),
        "energy": lambda seen: -seen.logits.logsumexp(1),
        "distance, last": lambda seen: last(seen.last),
        "distance, early": lambda seen: ours.halves(seen.early, seen.logits)[:, 0],
        "served": lambda seen: ours.combine(ours.halves(seen.early, seen.logits)),
    }


def _class_distance(features: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Lee et al. 2018: one covariance for all classes, the nearest class's mean."""
    means = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
    away = (features - means[labels]).double()
    covariance = away.T @ away / len(away)
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance))
    precision = torch.linalg.inv(covariance).float()

    def distance(seen: Tensor) -> Tensor:
        apart = seen[:, None] - means
        return torch.einsum("nkd,de,nke->nk", apart, precision, apart).amin(1)

    return distance


def score_table(figures: dict[str, Figures]) -> str:
    """Return a Markdown table for each run, and the meaning of the scores."""
    tables = []
    for run, scores in figures.items():
        kinds = list(next(iter(scores.values())))
        rows = []
        for name, values in scores.items():
            cells = [values[kind] for kind in kinds]
            rows.append([name, *(f"{x:.3f}" for x in (*cells, fmean(cells)))])
        tables.append(table([run, *kinds, "mean"], rows))
    said = "; ".join(f"*{name}*: {meaning}" for name, meaning in _SCORES.items())
    return "\n\n".join([*tables, f"{said}."])


@click.command(help=__doc__)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--data-dir", type=click.Path(path_type=Path))
def main(runs: tuple[Path, ...], data_dir: Path | None) -> None:
    """Measure, write the results and fill the document."""
    source = dataset.find(data_dir)
    figures = {run.name: measure(run, source) for run in runs}
    publish("ood-scores", {"auroc": figures}, score_table(figures), DOCUMENT)


if __name__ == "__main__":
    main()
