"""`yolo` beside the first YOLO, by its number of cells: `python -m bench.quality.grids FOLDER`.

Trains the networks by their recipes, but on small pictures, and measures them on the test pictures
of the annotated FOLDER. A cell of the first YOLO finds one object, so a part of the
objects has a cell that an earlier one has taken. Prints a table, writes `bench/results/grids.json`
and fills `docs/detection.md`. Runs that are there already are not trained again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench import BUILD, ROOT
from bench.harness.report import publish, table
from training.architectures import yolo_v1
from training.architectures.describe import describe
from training.architectures.yolo import Yolo
from training.data.annotated import Scene
from training.data.scenes import SceneSource, find_scenes
from training.evaluate_scenes import evaluate_detector
from training.recipes import find_recipe
from training.run.progress import SilentReporter
from training.run.scene_lessons import lay
from training.run.train import train
from training.tasks.detection import Truth
from training.tasks.detection_v1 import learned_objects

DOCUMENT = ROOT / "docs" / "detection.md"
RUNS = BUILD / "grids"
SIZE = (144, 192)
FIRST = {"yolo-v1-4": 4, "yolo-v1": 7, "yolo-v1-14": 14}
"""The first YOLO's architectures, and their cells along each side."""


def taken(scenes: Sequence[Scene], cells: int) -> float:
    """Return the part of the objects whose centre is in the cell of an earlier object."""
    objects = learned = 0
    for scene in scenes:
        laid = lay(scene, SIZE, masks=False)
        truth = Truth(laid.boxes[None], laid.labels[None])
        objects += int(truth.is_object.sum())
        learned += len(learned_objects(truth, SIZE, (cells, cells))[0])
    return 1 - learned / objects


def measure(architecture: str, source: SceneSource, run: Path) -> dict[str, Any]:
    """Train a network, and return its figures on the test pictures."""
    recipe = find_recipe("yolo-v1" if architecture in FIRST else "yolo").replace(
        architecture=architecture, height=SIZE[0], width=SIZE[1]
    )
    trained = train(recipe, source, run, SilentReporter(), resume=True)
    test = evaluate_detector(trained, source).evaluation.test
    description = describe(architecture, len(source.classes), SIZE)
    cells = FIRST.get(architecture)
    grids = (
        [[cells] * 2] if cells else [[side // stride for side in SIZE] for stride in Yolo.strides]
    )
    return {
        "grids": grids,
        "boxes": sum(rows * columns for rows, columns in grids) * (yolo_v1.BOXES if cells else 1),
        "taken": round(taken(source.train, cells), 4) if cells else 0.0,
        "parameters": description.parameters,
        "macs": description.macs,
        "map50": round(test.map50, 4),
        "map": round(test.map, 4),
    }


def grids_table(found: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table of the networks."""
    head = ["", "cells", "boxes", "cell taken", "parameters", "MACs", "AP at IoU 0.5", "AP"]
    rows = [
        [
            f"`{name}`",
            " and ".join(f"{columns}×{rows}" for rows, columns in each["grids"]),
            f"{each['boxes']:,}",
            f"{each['taken']:.0%}",
            f"{each['parameters']:,}",
            f"{each['macs'] / 1e6:,.0f} M",
            f"{each['map50']:.3f}",
            f"{each['map']:.3f}",
        ]
        for name, each in found.items()
    ]
    return table(head, rows)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder: Path) -> None:
    """Train, measure, write the results and fill the document."""
    source = find_scenes(folder)
    found = {}
    for name in (*FIRST, "yolo"):
        found[name] = measure(name, source, RUNS / name)
        click.echo(grids_table({name: found[name]}))
    publish("grids", {"size": SIZE, "networks": found}, grids_table(found), DOCUMENT)


if __name__ == "__main__":
    main()
