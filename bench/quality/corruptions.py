"""The table of corruptions in `docs/confidence.md`: `python -m bench.quality.corruptions`.

It holds what `convscope-train corruptions` measures, for every model of the store
(`CONVSCOPE_STORE`) that was not measured yet. The figures also go to
`bench/results/corruptions.json`. CIFAR-10 is found as by `convscope-train`.
"""

from dataclasses import asdict
from typing import Any

import click

from app.artifact.directory import Artifact
from bench import ROOT
from bench.harness.report import publish, table
from bench.quality.stored_models import measure_store
from training.compare.corruptions import (
    CORRUPTIONS,
    IMAGES,
    Answers,
    corrupted_tests,
    mean_accuracy,
    measure,
)
from training.data import dataset

DOCUMENT = ROOT / "docs" / "confidence.md"


def corruption_table(models: dict[str, dict[str, Answers]]) -> str:
    """Return a Markdown table of the models, with the meaning of each column."""
    rows = [
        [model, *(str(found[name]) for name in CORRUPTIONS), f"{mean_accuracy(found):.1%}"]
        for model, found in models.items()
    ]
    said = "; ".join(f"*{name}*: {one.meaning}" for name, one in CORRUPTIONS.items())
    columns = table(["model", *CORRUPTIONS, "mean"], rows)
    return f"{columns}\n\n{said}; *mean*: of the accuracies but the clean one."


def answers_in(results: dict[str, Any]) -> dict[str, dict[str, Answers]]:
    """Return the models' answers from the content of the results file."""
    return {
        model: {name: Answers(**answers) for name, answers in found.items()}
        for model, found in results["models"].items()
    }


@click.command(help=__doc__)
def main() -> None:
    """Measure, write the results and fill the document."""
    tests = corrupted_tests(dataset.find(None))

    def figures_of(artifact: Artifact) -> dict[str, Any]:
        return {name: asdict(answers) for name, answers in measure(artifact, tests).items()}

    found = measure_store("corruptions", figures_of, spaced_test_images=IMAGES)
    publish("corruptions", found, corruption_table(answers_in(found)), DOCUMENT)


if __name__ == "__main__":
    main()
