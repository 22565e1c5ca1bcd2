"""Photographs that models never saw: `python -m bench.quality.photographs FOLDER`.

FOLDER holds a folder of pictures for each class of CIFAR-10, named like it, and any others, whose
pictures show none of the ten classes; what lies beside these folders is left out. For every model
of the store (`CONVSCOPE_STORE`), by the float32 graph that is served: how many photographs of the
classes are answered rightly, how often the 95% sets hold the class, and how well the
out-of-distribution score tells the foreign ones from test images, and from the photographs of the
classes. Prints a table, writes `bench/results/photographs.json` and fills `docs/confidence.md`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.tensors import Images, Outputs
from app.inference.backends import open_backend
from app.tasks.classification import DEFAULT_SETS, find_threshold, prediction_sets
from bench import ROOT
from bench.harness.report import publish, table
from bench.quality.stored_models import measure_store
from training.data import dataset
from training.data.class_folders import first_told, read_class_folders
from training.errors import DataError
from training.evaluate import SERVED_BATCH, spaced_test_images
from training.export.confidence import auroc

DOCUMENT = ROOT / "docs" / "confidence.md"
TEST_IMAGES = 2000
THREADS = 2
SIDE = 32
COVERAGE = 0.95
COLUMNS = {
    "right": "photographs of the ten classes that are answered rightly",
    "in the set": "those whose class the 95% set holds",
    "flagged": "those marked as out of distribution",
    "foreign flagged": "foreign photographs marked so",
    "from test images": "AUROC of foreign photographs against test images",
    "worst": "the lowest of any kind of foreign photographs",
    "best": "the highest",
    "from photographs": "AUROC of foreign photographs against those of the ten classes",
}

Figures = dict[str, float | str]


def photograph_kinds(folder: Path) -> tuple[dict[str, Images], str]:
    """Return decoded pictures by the names of their folders, and a hash of names and contents.

    Raises:
        SystemExit: a folder has a file that is no picture, or fewer than three pictures.
    """
    try:
        found = read_class_folders(folder, (SIDE, SIDE))
    except DataError as exc:
        raise SystemExit(str(exc)) from exc
    if left_out := [one for one in found.left_out if one.class_name]:
        raise SystemExit("\n".join(first_told(left_out)))
    (pictures,) = found.splits
    kinds = {
        name: pictures.images[pictures.labels == label] for label, name in enumerate(found.classes)
    }
    return kinds, found.sha256


def photograph_table(models: dict[str, Figures]) -> str:
    """Return a Markdown table of all models, with the meaning of each column."""
    rows = [[model, *(_cell(found, name) for name in COLUMNS)] for model, found in models.items()]
    said = "; ".join(f"*{name}*: {meaning}" for name, meaning in COLUMNS.items())
    return f"{table(['model', *COLUMNS], rows)}\n\n{said}."


def _cell(found: Figures, name: str) -> str:
    value = found[name]
    shown = f"{value:.1%}" if name in list(COLUMNS)[:4] else f"{value:.3f}"
    return f"{shown} ({found[f'{name} kind']})" if f"{name} kind" in found else shown


def measure(artifact: Artifact, photographs: Mapping[str, Images], test: dataset.Split) -> Figures:
    """Return a model's figures, 0 to 1, by the names of `COLUMNS`.

    Args:
        artifact: the model, with thresholds.
        photographs: of its classes and of others, by kind.
        test: test images.
    """
    classes, confidence = artifact.manifest.classes, artifact.classifier.confidence["float32"]
    backend = open_backend(artifact, "onnx-cpu", THREADS)

    def ask(images: Images) -> tuple[Outputs, NDArray[np.float32]]:
        outputs = Outputs.in_batches(backend.predict, images, SERVED_BATCH)
        if outputs.ood_scores is None:
            raise SystemExit(f"{artifact.ref} gives no out-of-distribution scores")
        return outputs, outputs.ood_scores

    known = {name: images for name, images in photographs.items() if name in classes}
    labels = np.repeat([classes.index(name) for name in known], [len(x) for x in known.values()])
    pictures = np.concatenate(list(known.values()))
    answers, own = ask(pictures)
    _, usual = ask(test.images.numpy())
    foreign = {name: ask(x)[1] for name, x in photographs.items() if name not in classes}
    every = np.concatenate(list(foreign.values()))
    kinds = {name: auroc(usual, scores) for name, scores in foreign.items()}
    worst, best = min(kinds, key=kinds.__getitem__), max(kinds, key=kinds.__getitem__)
    threshold = find_threshold(confidence.conformal, COVERAGE, DEFAULT_SETS)
    if threshold is None:
        raise SystemExit(f"{artifact.ref} has no thresholds of {DEFAULT_SETS}")
    sets = prediction_sets(answers.probabilities, pictures, DEFAULT_SETS, threshold)
    limit = confidence.out_of_distribution.threshold
    return {
        "right": _part(answers.probabilities.argmax(1) == labels),
        "in the set": _part(sets[np.arange(len(sets)), labels]),
        "flagged": _part(own > limit),
        "foreign flagged": _part(every > limit),
        "from test images": auroc(usual, every),
        "worst": kinds[worst],
        "worst kind": worst,
        "best": kinds[best],
        "best kind": best,
        "from photographs": auroc(own, every),
    }


def _part(chosen: NDArray[np.bool_]) -> float:
    return round(float(chosen.mean()), 4)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Measure, write the results and fill the document."""
    photographs, digest = photograph_kinds(folder)
    test = spaced_test_images(dataset.find(None), TEST_IMAGES)
    counts = {name: len(images) for name, images in photographs.items()}
    found = measure_store(
        "photographs",
        partial(measure, photographs=photographs, test=test),
        spaced_test_images=TEST_IMAGES,
        pictures=counts,
        sha256=digest,
    )
    publish("photographs", found, photograph_table(found["models"]), DOCUMENT)


if __name__ == "__main__":
    main()
