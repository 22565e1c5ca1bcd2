"""The table of corruptions in `docs/confidence.md`: `python -m bench.quality.corruptions`.

It holds what `convscope-train corruptions` measures, for every model of the store
(`CONVSCOPE_STORE`). The figures also go to `bench/results/corruptions.json`. CIFAR-10 is found as
by `convscope-train`.
"""

from dataclasses import asdict

import click

from app.artifact.store import read_store
from app.settings import read_settings
from bench import ROOT
from bench.harness.report import publish, table
from training.corruptions import (
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


@click.command(help=__doc__)
def main() -> None:
    """Measure, write the results and fill the document."""
    settings = read_settings()
    tests = corrupted_tests(dataset.find(None))
    models = {}
    for artifact in read_store(settings.store, settings.models, settings.default_model):
        models[artifact.ref] = measure(artifact, tests)
        click.echo(f"{artifact.ref} is done")
    figures = {
        model: {name: asdict(answers) for name, answers in found.items()}
        for model, found in models.items()
    }
    content = corruption_table(models)
    publish("corruptions", {"images": IMAGES, "models": figures}, content, DOCUMENT)


if __name__ == "__main__":
    main()
