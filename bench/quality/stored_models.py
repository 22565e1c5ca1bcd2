"""Figures of every model in the store, where those of a model that was measured stay."""

import json
from collections.abc import Callable
from typing import Any

import click

from app.artifact.directory import Artifact
from app.artifact.store import read_store
from app.settings import read_settings
from bench import RESULTS
from bench.harness.results import write


def measure_store(
    name: str, measure: Callable[[Artifact], dict[str, Any]], **conditions: object
) -> dict[str, Any]:
    """Return the conditions and, as `models`, the figures of each model by its `name/version`.

    A model's version never changes, so one that is in `bench/results` is not measured again,
    unless the conditions are others. (After a change of what is measured, delete the file.) Each
    model's figures are written at once, so an interrupted run loses one model's.

    Args:
        name: of the file in `bench/results`, without its ending.
        measure: returns the figures of one model, as JSON has them.
        conditions: of the measurement, as JSON has them.
    """
    settings = read_settings()
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if any(known.get(key) != value for key, value in conditions.items()):
        known = {}
    kept = known.get("models", {})
    found: dict[str, Any] = {**conditions, "models": {}}
    store = read_store(settings.store, settings.models, settings.default_model)
    for artifact in store.for_task("classification"):
        found["models"][artifact.ref] = kept.get(artifact.ref) or measure(artifact)
        write(path, known | {**conditions, "models": kept | found["models"]})
        click.echo(f"{artifact.ref} is done")
    return found
