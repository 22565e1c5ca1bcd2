"""What skip connections are for: `python -m bench.quality.skips FOLDER`.

Trains `unet` with and without them, both by the recipe of `unet` but on smaller pictures, and
measures them on the test pictures of the FOLDER with masks. Prints a table, writes
`bench/results/skips.json`, and fills `docs/segmentation.md` and its picture: held-out pictures, and
the objects that each of the two finds there. Runs that are there already are not trained again.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image

from app.explore.masks import draw_masks
from app.images.decode import decode_placed
from app.tasks.segmentation import segment
from bench import BUILD, ROOT
from bench.harness.report import publish, table
from training.architectures.describe import describe
from training.data.annotated import Scene
from training.data.class_folders import MAX_PIXELS
from training.data.scenes import SceneSource, find_scenes
from training.evaluate_scenes import EvaluatedSegmenter, evaluate_segmenter
from training.recipes import find_recipe
from training.run.progress import SilentReporter
from training.run.scene_lessons import RESIZE, count_outputs, numbers_of, split
from training.run.train import train

DOCUMENT = ROOT / "docs" / "segmentation.md"
PICTURE = ROOT / "docs" / "images" / "skips.png"
RUNS = BUILD / "skips"
SIDE = 128
RECIPE = find_recipe("unet").replace(height=SIDE, width=SIDE)
NETWORKS = {"with": "unet", "without": "unet-no-skips"}
PARTS, PART_SIDE = 3, 128
"""How much of how many pictures is drawn."""
TILE, GAP = 256, 8
"""Of the drawing, in its pixels."""


def learn(architecture: str, source: SceneSource, run: Path) -> EvaluatedSegmenter:
    """Train a network and measure it."""
    recipe = RECIPE.replace(architecture=architecture)
    return evaluate_segmenter(train(recipe, source, run, SilentReporter(), resume=True), source)


def figures(architecture: str, source: SceneSource, found: EvaluatedSegmenter) -> dict[str, float]:
    """Return a network's size and its figures on the test pictures."""
    test = found.evaluation.test
    outputs = count_outputs("segmentation", source)
    description = describe(architecture, outputs, (SIDE, SIDE))
    return {
        "parameters": description.parameters,
        "macs": description.macs,
        "iou": round(test.iou, 4),
        "boundary_f1": round(test.boundary_f1, 4),
        "instance_f1": round(test.instance_f1 or 0.0, 4),
    }


def skips_table(found: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table of both networks."""
    head = ["skip connections", "parameters", "MACs", "IoU", "F1 of borders", "F1 of objects"]
    rows = [
        [
            name,
            f"{each['parameters']:,}",
            f"{each['macs'] / 1e6:,.0f} M",
            f"{each['iou']:.3f}",
            f"{each['boundary_f1']:.3f}",
            f"{each['instance_f1']:.3f}",
        ]
        for name, each in found.items()
    ]
    return table(head, rows)


def drawn(scene: Scene, networks: Sequence[EvaluatedSegmenter]) -> list[Image.Image]:
    """Return a part of a picture, with its annotated objects, and with those of each network."""
    content = scene.load()
    picture, _ = decode_placed(content, (scene.height, scene.width), MAX_PIXELS)
    truth = numbers_of(scene).clip(min=0)
    maps = [np.zeros_like(truth), truth]
    for network in networks:
        image, placement = decode_placed(content, (SIDE, SIDE), MAX_PIXELS, resize=RESIZE)
        outputs = network.served.predict(np.stack([image]))
        maps.append(segment(outputs, network.instances, placement).regions[0].astype(np.int32))
    part = slice(0, PART_SIDE), slice(0, PART_SIDE)
    tiles = [draw_masks(picture[part], each[part], [0] * int(each.max())) for each in maps]
    return [Image.open(io.BytesIO(tile)).resize((TILE, TILE)) for tile in tiles]


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return tiles in rows, on white."""
    step = TILE + GAP
    page = Image.new("RGB", (len(rows[0]) * step - GAP, len(rows) * step - GAP), "white")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            page.paste(tile, (column * step, row * step))
    return page


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder: Path) -> None:
    """Train, measure, write the results and fill the document."""
    source = find_scenes(folder)
    found, networks = {}, []
    for name, architecture in NETWORKS.items():
        networks.append(learn(architecture, source, RUNS / name))
        found[name] = figures(architecture, source, networks[-1])
        click.echo(skips_table({name: found[name]}))
    _, heldout = split(RECIPE, source)
    tall = [scene for scene in heldout if min(scene.height, scene.width) >= PART_SIDE]
    rows = [drawn(scene, networks) for scene in tall[:: len(tall) // PARTS][:PARTS]]
    sheet(rows).quantize(256).save(PICTURE, optimize=True)
    publish("skips", {"side": SIDE, "networks": found}, skips_table(found), DOCUMENT)


if __name__ == "__main__":
    main()
