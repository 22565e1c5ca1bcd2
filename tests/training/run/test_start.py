from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from app.artifact.directory import Artifact
from app.artifact.files import TORCHSCRIPT_GRAPH
from app.inference.backends import open_backend
from tests.support.artifacts import copy_store
from tests.support.training_fixtures import TINY, train_quietly
from training.architectures import find_architecture
from training.data import dataset
from training.errors import RecipeError
from training.evaluate import evaluate
from training.export.export import Export, export
from training.recipes import Recipe
from training.run.start import start_from_model


@pytest.fixture(scope="module")
def folded(source: dataset.Source, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A network with shortcuts whose normalisation has become part of its convolutions."""
    folder = tmp_path_factory.mktemp("folded")
    last = train_quietly(TINY.replace(architecture="resnet20", epochs=1), source, folder / "run")
    found = evaluate(last, source, torch.device("cpu"), weights="float16")
    return export(Export(last, found, source, "folded", "1"), folder / "store")


def _started(recipe: Recipe, source: dataset.Source) -> tuple[nn.Module, torch.Tensor]:
    """Return a network that starts from the recipe's model, and normalised training images."""
    images = source.load_train()
    chosen, _ = dataset.split_distinct(images, recipe.holdout, recipe.split_seed)
    learned = images[chosen].images
    pixels = dataset.normalize(learned, *dataset.channel_statistics(learned))
    torch.manual_seed(1)
    network = find_architecture(recipe.architecture).build(len(source.classes), 0.0)
    start_from_model(recipe, source, network, pixels)
    return network, pixels


@pytest.mark.parametrize("kind", ["exported", "folded"])
def test_a_network_starts_with_a_models_answers(
    kind: str, source: dataset.Source, request: pytest.FixtureRequest
) -> None:
    model: Artifact = request.getfixturevalue(kind)
    recipe = TINY.replace(architecture=model.manifest.architecture, start=str(model.path))
    network, pixels = _started(recipe, source)
    with torch.no_grad():
        logits = network.eval()(pixels) / model.manifest.temperature
        learning = network.train()(pixels) / model.manifest.temperature
    images = source.load_train()
    chosen, _ = dataset.split_distinct(images, recipe.holdout, recipe.split_seed)
    expected = open_backend(model, "onnx-cpu").predict(images[chosen].images.numpy()).probabilities
    assert logits.softmax(1).numpy() == pytest.approx(expected, abs=2e-3)
    if kind == "folded":  # its statistics are those of just these images
        assert learning.softmax(1).numpy() == pytest.approx(expected, abs=2e-3)


def test_a_run_goes_on_where_its_model_stopped(
    exported: Artifact, source: dataset.Source, tmp_path: Path
) -> None:
    fresh = train_quietly(TINY.replace(epochs=1), source, tmp_path / "fresh").state
    recipe = TINY.replace(epochs=1, start=str(exported.path))
    state = train_quietly(recipe, source, tmp_path / "started").state
    assert state.recipe.start == str(exported.path)
    assert state.history[0].loss < 0.9 * fresh.history[0].loss


def test_the_last_layer_is_new_where_the_classes_are(
    exported: Artifact, source: dataset.Source
) -> None:
    recipe = TINY.replace(start=str(exported.path))
    same, _ = _started(recipe, source)
    other, _ = _started(recipe, replace(source, classes=source.classes[:-1]))
    ours, theirs = same.state_dict(), other.state_dict()
    assert theirs["fc2.weight"].shape == (9, 256)
    for name in ours:
        if not name.startswith("fc2."):
            assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "manifest.json: no such file"),
        ("damaged", f"{TORCHSCRIPT_GRAPH}: sha256 is"),
        ("architecture", "which is a simple-cnn; architecture is 'fc'"),
        ("holdout", "holdout 0.2 and split_seed 0 would hold out; it held out 0.1 by split_seed 0"),
        ("split_seed", "holdout 0.1 and split_seed 1 would hold out; it held out 0.1"),
    ],
)
def test_a_model_that_a_run_cannot_start_from_is_named_before_an_epoch_is_spent(
    exported: Artifact, source: dataset.Source, tmp_path: Path, fault: str, said: str
) -> None:
    folder = copy_store(exported.path.parents[1], tmp_path / "store") / "tiny" / "1"
    recipe = TINY.replace(start=str(folder))
    if fault == "missing":
        recipe = TINY.replace(start=str(tmp_path / "nothing"))
    elif fault == "damaged":
        graph = bytearray((folder / TORCHSCRIPT_GRAPH).read_bytes())
        graph[-1] ^= 1
        (folder / TORCHSCRIPT_GRAPH).write_bytes(graph)
    elif fault == "architecture":
        recipe = recipe.replace(architecture="fc")
    elif fault == "holdout":
        recipe = recipe.replace(holdout=0.2)
    else:
        recipe = recipe.replace(split_seed=1)
    with pytest.raises(RecipeError, match=f"^start is '{recipe.start}'.*{said}"):
        train_quietly(recipe, source, tmp_path / "run")
    assert not list((tmp_path / "run").glob("epoch-*"))
