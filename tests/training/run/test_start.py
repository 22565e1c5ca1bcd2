import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from app.artifact.directory import Artifact
from app.artifact.files import TORCHSCRIPT_GRAPH
from app.inference.backends import open_backend
from tests.support.artifacts import copy_store
from tests.support.training_fixtures import TINY, train_quietly
from training.architectures import find_architecture
from training.architectures.rounding import rounded
from training.data import dataset
from training.data.augmentation import Augmentation, Epoch, epoch_batches
from training.errors import RecipeError
from training.recipes import RECIPES, Recipe
from training.run.checkpoint import NETWORK, Checkpoint
from training.run.start import average_with_start, begin_with, check_start
from training.run.trained import load_trained, read_trained


def _started(recipe: Recipe, source: dataset.Source) -> tuple[nn.Module, dataset.Split]:
    """Return a network that starts as the recipe says, and the images that it would learn from."""
    images = source.load_train()
    chosen, _ = dataset.split_distinct(images, recipe.holdout, recipe.split_seed)
    learned = images[chosen]
    torch.manual_seed(1)
    network = find_architecture(recipe.architecture).build(len(source.classes), 0.0)
    trained = read_trained(Path(recipe.start))
    begin_with(trained, network, _normalized(learned), recipe.architecture, source.classes)
    return network, learned


def _normalized(split: dataset.Split) -> torch.Tensor:
    return dataset.normalize(split.images, *dataset.channel_statistics(split.images))


def _probabilities(network: nn.Module, split: dataset.Split, temperature: float) -> np.ndarray:
    with torch.no_grad():
        answers: np.ndarray = (network(_normalized(split)) / temperature).softmax(1).numpy()
    return answers


@pytest.mark.parametrize("kind", ["exported", "half"])
def test_a_network_starts_with_a_models_answers(
    kind: str, source: dataset.Source, request: pytest.FixtureRequest
) -> None:
    model: Artifact = request.getfixturevalue(kind)
    network, learned = _started(TINY.replace(start=str(model.path)), source)
    found = _probabilities(network.eval(), learned, model.classifier.temperature)
    expected = open_backend(model, "onnx-cpu").predict(learned.images.numpy()).probabilities
    if kind == "exported":
        assert found == pytest.approx(expected, abs=2e-3)
    else:  # the model looks at the mirror image too
        assert (found.argmax(1) == expected.argmax(1)).mean() > 0.7


def test_a_normalisation_that_became_part_of_a_convolution_is_taken_out_again(
    source: dataset.Source,
) -> None:
    torch.manual_seed(0)
    resnet = find_architecture("resnet20").build(10, 0.0).train()
    learned = source.load_train()
    resnet(_normalized(learned))  # moves the statistics of its normalisations
    folded = rounded(copy.deepcopy(resnet)).state_dict()
    weights = {name: tensor.half() for name, tensor in folded.items()}
    torch.manual_seed(1)
    network = find_architecture("resnet20").build(10, 0.0)
    load_trained(network, weights, _normalized(learned))
    expected = _probabilities(resnet.eval(), learned, 1.0)
    assert _probabilities(network.eval(), learned, 1.0) == pytest.approx(expected, abs=5e-3)
    # The statistics are of just these images, so nothing moves when it learns from them.
    assert _probabilities(network.train(), learned, 1.0) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("kind", ["model", "run"])
def test_a_run_goes_on_where_another_stopped(
    kind: str, exported: Artifact, trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    place = str(exported.path if kind == "model" else trained.path.parent)
    fresh = train_quietly(TINY.replace(epochs=1), source, tmp_path / "fresh").state
    run = tmp_path / "started"
    state = train_quietly(TINY.replace(epochs=1, start=place), source, run).state
    assert state.recipe.start == place
    assert state.history[0].loss < 0.9 * fresh.history[0].loss
    before = trained.state.training_seconds
    assert state.training_seconds == pytest.approx(before + state.history[0].seconds)


def test_a_run_that_goes_on_needs_the_one_that_it_started_from_no_longer(
    trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    first = Path(shutil.copytree(trained.path.parent, tmp_path / "first"))
    recipe = TINY.replace(epochs=1, start=str(first))
    ended = train_quietly(recipe, source, tmp_path / "second")
    shutil.rmtree(first)
    assert train_quietly(recipe, source, tmp_path / "second", resume=True).state == ended.state


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
    ("architecture", "anew"),
    [
        ("yolo", {"down", "merge16", "merge8", "head8", "head16"}),
        ("unet", {"up", "merge", "head"}),
        ("unet-no-skips", {"up", "merge", "head"}),
    ],
)
def test_a_detector_or_segmenter_begins_with_the_features_of_its_backbone(
    architecture: str, anew: set[str], source: dataset.Source, tmp_path: Path
) -> None:
    backbone = find_architecture(architecture).backbone
    recipe = TINY.replace(architecture=backbone, epochs=1)
    run = train_quietly(recipe, source, tmp_path / "backbone")
    torch.manual_seed(1)
    network = find_architecture(architecture).build(3, 0.0)
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(4, 3, 64, 64)
    trained = read_trained(run.path.parent)
    named = begin_with(trained, network, images, architecture, ("a", "b", "c"))
    assert set(named.split(", ")) == anew
    learned = run.read(NETWORK)
    for name, tensor in network.state_dict().items():
        expected = before if name.partition(".")[0] in anew else learned
        assert torch.equal(tensor, expected[name]), name


def test_a_detector_does_not_begin_with_a_classifier_that_is_not_its_backbone(
    exported: Artifact,
) -> None:
    trained = read_trained(exported.path)
    recipe = RECIPES["yolo"].replace(start=str(exported.path))
    said = "it is a simple-cnn; it must be a 'yolo' or 'yolo-backbone'"
    with pytest.raises(RecipeError, match=f"^{said}$"):
        check_start(recipe, trained, trained.classes)
    alone = replace(trained, architecture="yolo-backbone")
    check_start(recipe, alone, trained.classes)
    averaged = recipe.replace(averaged=0.0, start_part=0.5)
    with pytest.raises(RecipeError, match=r"^it is a yolo-backbone alone; start_part is 0\.5$"):
        check_start(averaged, alone, trained.classes)


def test_a_run_that_has_lost_its_weights_is_named(
    trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(trained.path.parent, tmp_path / "first"))
    weights = copied / trained.path.name / NETWORK
    weights.unlink()
    recipe = TINY.replace(start=str(copied))
    with pytest.raises(RecipeError, match=f"^start is '{copied}': {weights}: No such file"):
        train_quietly(recipe, source, tmp_path / "second")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "manifest.json: no such file"),
        ("damaged", f"{TORCHSCRIPT_GRAPH}: sha256 is"),
        ("architecture", "it is a simple-cnn; it must be a 'fc'"),
        ("holdout", "holdout 0.2 and split_seed 0 would hold out; it held out 0.1 by split_seed 0"),
        ("split_seed", "holdout 0.1 and split_seed 1 would hold out; it held out 0.1"),
        ("classes", "it has other classes; start_part is 0.5"),
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
    elif fault == "classes":
        recipe = recipe.replace(start_part=0.5)
        source = replace(source, classes=tuple(name.upper() for name in source.classes))
    else:
        recipe = recipe.replace(split_seed=1)
    with pytest.raises(RecipeError, match=f"^start is '{recipe.start}'.*{said}"):
        train_quietly(recipe, source, tmp_path / "run")
    assert not list((tmp_path / "run").glob("epoch-*"))


def test_final_weights_are_a_mean_with_those_of_the_start(
    trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    recipe = TINY.replace(epochs=2, start=str(trained.path.parent), degraded=0.5)
    first = train_quietly(recipe, source, tmp_path / "alone")
    alone = first.read(NETWORK)
    mixed = recipe.replace(start_part=0.25)
    ended = train_quietly(mixed, source, tmp_path / "mixed")
    begun, found = trained.read(NETWORK), ended.read(NETWORK)
    for name, tensor in found.items():
        if "running" not in name and tensor.is_floating_point():
            expected = 0.75 * alone[name] + 0.25 * begun[name]
            assert torch.allclose(tensor, expected, atol=1e-6), name
    assert ended.state.history[0].loss == first.state.history[0].loss
    # The first layer's statistics are those of the last epoch's images, as they were augmented.
    _, learned = _started(recipe, source)
    mean, deviation = ended.state.mean, ended.state.deviation
    varied = Augmentation(degraded=0.5, mean=(0, 0, 0), deviation=(1, 1, 1))
    (batch,) = epoch_batches(learned, len(learned), Epoch(2, recipe.seed), varied)
    images = dataset.normalize(batch.images, mean, deviation)
    outputs = functional.conv2d(images, found["conv1.weight"], found.get("conv1.bias"), padding=1)
    assert torch.allclose(found["bn1.running_mean"], outputs.mean((0, 2, 3)), atol=1e-4)


def test_normalisations_are_measured_anew_for_averaged_weights() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    network = nn.Sequential(conv, norm, nn.Dropout(0.5))
    start = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        conv.weight += 1.0
    batches = list(torch.randn(3, 50, 3, 8, 8) * 2 + 1)
    average_with_start(network, start, 0.5, batches)
    assert torch.allclose(conv.weight, start["0.weight"] + 0.5)
    outputs = [conv(batch) for batch in batches]
    means = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    variances = torch.stack([output.var((0, 2, 3)) for output in outputs]).mean(0)
    found = network.state_dict()
    assert torch.allclose(found["1.running_mean"], means, atol=1e-5)
    assert torch.allclose(found["1.running_var"], variances, atol=1e-4)
    assert norm.momentum == nn.BatchNorm2d(4).momentum
