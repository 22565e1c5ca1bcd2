"""The use of each way of degrading training images: `python -m bench.quality.degradations`.

The exercise's CNN goes on from `simple-cnn/1` for some epochs, with half of the images degraded in
one way alone, and answers the held-out images, clean and after each of the corruptions. Prints a
table, writes `bench/results/degradations.json` and fills `docs/training.md`. The test split is not
read, because these figures chose the ways. Runs that are there already are not trained again.
"""

from pathlib import Path
from statistics import mean
from unittest.mock import patch

import click
import torch

from bench import BUILD, ROOT
from bench.harness.report import publish, table
from training.compare.corruptions import CLEAN, CORRUPTIONS
from training.data import dataset, degradation
from training.evaluate import load_heldout, load_network
from training.recipes import find_recipe
from training.run import checkpoint
from training.run.image_lessons import compute_logits
from training.run.progress import SilentReporter
from training.run.train import train

DOCUMENT = ROOT / "docs" / "training.md"
RUNS = BUILD / "degradations"
RECIPE = find_recipe("simple-cnn-augmented").replace(
    start=str(ROOT / "models_store" / "simple-cnn" / "1"),
    epochs=4,
    learning_rate=2e-3,
    degraded=0.5,
)
WAYS = {kind.__name__: ((kind,), 0.0) for kind in degradation.KINDS} | {
    "compress": ((degradation.leave,), 1.0)
}
"""The kinds that are drawn from, and the part of the images that are compressed."""


def degradation_table(found: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table of the ways."""
    rows = [
        [f"`{way}`", *(f"{values[name]:.1%}" for name in (*CORRUPTIONS, "mean"))]
        for way, values in found.items()
    ]
    return table(["degraded by", *CORRUPTIONS, "mean"], rows)


def measure(way: str, source: dataset.Source, run: Path) -> dict[str, float]:
    """Train with one way of degrading; return accuracies on held-out images by corruption."""
    kinds, compressed = WAYS[way]
    with patch.multiple(degradation, KINDS=kinds, COMPRESSED=compressed):
        train(RECIPE, source, run, SilentReporter(), resume=True)
    last = checkpoint.open_run(run)
    network, heldout = load_network(last), load_heldout(last, source)
    found = {}
    for name, corruption in CORRUPTIONS.items():
        images = torch.from_numpy(corruption(heldout.images.numpy()))
        logits = compute_logits(
            network, images, last.state.mean, last.state.deviation, torch.device("cpu")
        )
        found[name] = round((logits.argmax(1) == heldout.labels).float().mean().item(), 4)
    found["mean"] = round(mean(value for name, value in found.items() if name != CLEAN), 4)
    return found


@click.command(help=__doc__)
def main() -> None:
    """Train, measure, write the results and fill the document."""
    source = dataset.find(None)
    found = {}
    for way in WAYS:
        found[way] = measure(way, source, RUNS / way)
        click.echo(degradation_table({way: found[way]}))
    publish("degradations", {"accuracy": found}, degradation_table(found), DOCUMENT)


if __name__ == "__main__":
    main()
