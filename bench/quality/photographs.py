"""Photographs that models never saw: `python -m bench.quality.photographs FOLDER`.

FOLDER holds a folder of pictures for each class of CIFAR-10, named like it, and any others, whose
pictures show none of the ten classes. For every model of the store (`CONVSCOPE_STORE`), by the
float32 graph that is served: how many photographs of the classes are answered rightly, how often
the 95% sets hold the class, and how well the out-of-distribution score tells the foreign ones from
test images, and from the photographs of the classes. Prints a table, writes
`bench/results/photographs.json` and fills `docs/confidence.md`.
"""

from functools import partial
from hashlib import sha256
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.tensors import Images, Outputs
from app.images.decode import decode
from app.inference.backends import open_backend
from app.tasks.classification import DEFAULT_SETS, find_threshold, prediction_sets
from bench import ROOT
from bench.harness.report import publish, table
from bench.quality.stored_models import measure_store
from training.data import dataset
from training.evaluate import SERVED_BATCH, first_test_images
from training.export.confidence import auroc

DOCUMENT = ROOT / "docs" / "confidence.md"
TEST_IMAGES = 2000
THREADS = 2
SIDE = 32
MAX_PIXELS = 40_000_000
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


class Photographs:
    """Decoded pictures of a folder, by the names of the folders in it."""

    def __init__(self, folder: Path) -> None:
        """Decode all pictures as the service does.

        Raises:
            ImageError: a file is no picture that the service reads.
        """
        self.sha256 = sha256()
        self.kinds = {
            kind.name: self._read(kind) for kind in sorted(folder.iterdir()) if kind.is_dir()
        }

    def _read(self, kind: Path) -> Images:
        pictures = []
        for file in sorted(path for path in kind.rglob("*") if path.is_file()):
            data = file.read_bytes()
            self.sha256.update(sha256(data).digest())
            pictures.append(decode(data, (SIDE, SIDE), MAX_PIXELS))
        return np.stack(pictures)


def photograph_table(models: dict[str, Figures]) -> str:
    """Return a Markdown table of all models, with the meaning of each column."""
    rows = [[model, *(_cell(found, name) for name in COLUMNS)] for model, found in models.items()]
    said = "; ".join(f"*{name}*: {meaning}" for name, meaning in COLUMNS.items())
    return f"{table(['model', *COLUMNS], rows)}\n\n{said}."


def _cell(found: Figures, name: str) -> str:
    value = found[name]
    shown = f"{value:.1%}" if name in list(COLUMNS)[:4] else f"{value:.3f}"
    return f"{shown} ({found[f'{name} kind']})" if f"{name} kind" in found else shown


def measure(artifact: Artifact, photographs: Photographs, test: dataset.Split) -> Figures:
    """Return a model's figures, 0 to 1, by the names of `COLUMNS`.

    Args:
        artifact: the model, with thresholds.
        photographs: of its classes and of others.
        test: test images.
    """
    classes, confidence = artifact.manifest.classes, artifact.manifest.confidence["float32"]
    backend = open_backend(artifact, "onnx-cpu", THREADS)

    def ask(images: Images) -> tuple[Outputs, NDArray[np.float32]]:
        outputs = Outputs.in_batches(backend.predict, images, SERVED_BATCH)
        if outputs.ood_scores is None:
            raise SystemExit(f"{artifact.ref} gives no out-of-distribution scores")
        return outputs, outputs.ood_scores

    known = {name: images for name, images in photographs.kinds.items() if name in classes}
    labels = np.repeat([classes.index(name) for name in known], [len(x) for x in known.values()])
    pictures = np.concatenate(list(known.values()))
    answers, own = ask(pictures)
    _, usual = ask(test.images.numpy())
    foreign = {name: ask(x)[1] for name, x in photographs.kinds.items() if name not in classes}
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
    photographs = Photographs(folder)
    test = first_test_images(dataset.find(None), TEST_IMAGES)
    counts = {name: len(images) for name, images in photographs.kinds.items()}
    found = measure_store(
        "photographs",
        partial(measure, photographs=photographs, test=test),
        pictures=counts,
        sha256=photographs.sha256.hexdigest(),
    )
    publish("photographs", found, photograph_table(found["models"]), DOCUMENT)


if __name__ == "__main__":
    main()
