"""Runs that learn a teacher's answers, and what such a run needs to go on."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from app.inference.backends import open_backend
from tests.support.training_fixtures import (
    TINY,
    InterruptAfterFirst,
    Interrupted,
    train_quietly,
)
from training.architectures import find_architecture
from training.data import dataset
from training.errors import RecipeError, RunError
from training.evaluate import evaluate, load_network
from training.export.export import Export, export
from training.recipes import RECIPES, Arithmetic, Recipe, find_recipe
from training.run import train
from training.run.checkpoint import NETWORK, Checkpoint, Learner
from training.run.image_lessons import compute_logits
from training.run.lessons import Batch
from training.run.optimization import make_optimizer
from training.run.teacher import Teacher
from training.run.trained import Trained, read_trained

MEAN, DEVIATION = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.mark.parametrize("kind", ["trained", "exported", "half"])
def test_a_teacher_answers_a_runs_images_as_it_answers_its_own(
    kind: str, trained: Checkpoint, source: dataset.Source, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(kind)
    folder = found.path.parent if kind == "trained" else found.path
    pixels = source.load_train().images
    images = dataset.normalize(pixels, MEAN, DEVIATION)
    teacher = Teacher(read_trained(folder), images, MEAN, DEVIATION)
    answers = teacher(images).numpy()
    if kind == "half":  # it looks at the mirror image too
        expected = open_backend(found, "onnx-cpu").predict(pixels.numpy()).probabilities
        assert (answers.argmax(1) == expected.argmax(1)).mean() > 0.7
    else:
        state = trained.state
        network = load_network(trained)
        logits = compute_logits(network, pixels, state.mean, state.deviation, torch.device("cpu"))
        assert answers == pytest.approx(logits.softmax(1).numpy(), abs=2e-3)
    assert not any(weight.requires_grad for weight in teacher.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_is_the_cross_entropy_to_the_teachers_answers_for_the_same_images(
    trained: Checkpoint, source: dataset.Source, precision: Arithmetic
) -> None:
    torch.manual_seed(0)
    recipe = TINY.replace(micro_batch=10, precision=precision)
    network = find_architecture(recipe.architecture).build(10, 0.0).eval()
    split = source.load_train()
    images = dataset.normalize(split.images, MEAN, DEVIATION)
    teacher = Teacher(read_trained(trained.path.parent), images, MEAN, DEVIATION)
    few, labels = images[:20], split.labels[:20]
    with torch.no_grad():
        expected = functional.cross_entropy(network(few), teacher(few))
    learner = Learner(recipe, network, network, make_optimizer(recipe, network))
    loss, _ = train.learn(learner, Batch(few, labels), 1.0, teacher=teacher)
    assert loss.item() == pytest.approx(
        expected.item(), rel=1e-5 if precision == "float32" else 0.02
    )


def test_a_teacher_is_learned_from_where_labels_are_wrong(
    trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    images = source.load_train()
    wrong = dataset.Split(images.images, (images.labels + 1) % 10)
    mislabelled = replace(source, load_train=lambda: wrong)
    recipe = TINY.replace(epochs=5, teacher=str(trained.path.parent))
    pupil = train_quietly(recipe, mislabelled, tmp_path / "run")

    def answers(one: Checkpoint) -> torch.Tensor:
        state = one.state
        network: nn.Module = load_network(one)
        return compute_logits(
            network, images.images, state.mean, state.deviation, torch.device("cpu")
        ).argmax(1)

    found = answers(pupil)
    like_the_teacher = (found == answers(trained)).float().mean()
    as_labelled = (found == wrong.labels).float().mean()
    assert like_the_teacher > 0.4
    assert as_labelled < 0.2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("none", "nowhere"),
        ("classes", "it has other classes"),
        ("holdout", "it has learned from images that holdout 0.2 and split_seed 0 would hold out"),
        ("crop", "crop is 24; simple-cnn cannot take that"),
        ("weights", "Missing key"),
    ],
)
def test_a_teacher_that_cannot_teach_is_named_before_an_epoch_is_spent(
    fault: str,
    said: str,
    trained: Checkpoint,
    source: dataset.Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = TINY.replace(teacher=str(trained.path.parent))
    match fault:
        case "none":
            recipe = recipe.replace(teacher=str(tmp_path / "nowhere"))
        case "classes":
            source = replace(source, classes=tuple(name.upper() for name in source.classes))
        case "holdout":
            recipe = recipe.replace(holdout=0.2)
        case "crop":
            recipe = recipe.replace(architecture="resnet20", crop=24, cropped=0.5)
        case "weights":

            def without_a_layer(folder: Path) -> Trained:
                whole = read_trained(folder)
                kept = {name: one for name, one in whole.weights.items() if "fc2" not in name}
                return replace(whole, weights=kept)

            monkeypatch.setattr(train, "read_trained", without_a_layer)
    with pytest.raises(RecipeError, match=f"^teacher is '{recipe.teacher}': .*{said}"):
        train_quietly(recipe, source, tmp_path / "run")
    assert not list((tmp_path / "run").glob("epoch-*"))


@pytest.fixture
def guided(trained: Checkpoint, tmp_path: Path) -> Recipe:
    """A recipe whose start and teacher are a copy of a run, at `other`."""
    other = str(shutil.copytree(trained.path.parent, tmp_path / "other"))
    return TINY.replace(start=other, start_part=0.5, teacher=other)


def test_a_guided_run_that_is_resumed_ends_as_an_undisturbed_one_and_then_needs_nobody(
    guided: Recipe, trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    whole = train_quietly(guided, source, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_quietly(guided, source, tmp_path / "run", reporter=InterruptAfterFirst())
    ended = train_quietly(guided, source, tmp_path / "run", resume=True)
    found, expected = ended.read(NETWORK), whole.read(NETWORK)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert ended.state.hardware == whole.state.hardware
    own = sum(figures.seconds for figures in ended.state.history)
    assert ended.state.training_seconds == pytest.approx(trained.state.training_seconds + own)
    shutil.rmtree(tmp_path / "other")
    assert train_quietly(guided, source, tmp_path / "run", resume=True).state == ended.state


@pytest.mark.slow
def test_a_manifest_has_the_hashes_of_start_and_teacher(
    guided: Recipe, source: dataset.Source, tmp_path: Path
) -> None:
    ended = train_quietly(guided.replace(epochs=1), source, tmp_path / "run")
    found = evaluate(ended, source, torch.device("cpu"))
    manifest = export(Export(ended, found, source, "guided", "1"), tmp_path / "store").manifest
    digest = read_trained(tmp_path / "other").sha256
    assert manifest.lineage == {"start": digest, "teacher": digest}
    assert manifest.training_seconds == ended.state.training_seconds


@pytest.mark.parametrize("field", ["start", "teacher"])
def test_a_run_does_not_go_on_with_another_start_or_teacher(
    field: str, guided: Recipe, source: dataset.Source, tmp_path: Path
) -> None:
    fresh = {"start": "", "start_part": 0.0} if field == "teacher" else {"teacher": ""}
    recipe = guided.replace(**fresh)
    with pytest.raises(Interrupted):
        train_quietly(recipe, source, tmp_path / "run", reporter=InterruptAfterFirst())
    shutil.rmtree(tmp_path / "other")
    train_quietly(TINY.replace(seed=1), source, tmp_path / "other")
    with pytest.raises(RunError, match=f"{field} is '.*other', whose weights have changed since"):
        train_quietly(recipe, source, tmp_path / "run", resume=True)


def test_recipes_start_from_and_are_taught_by_runs_of_other_recipes() -> None:
    for recipe in RECIPES.values():
        for place in filter(None, (recipe.start, recipe.teacher)):
            other = find_recipe(place.removeprefix("runs/").removesuffix("-seed0"))
            assert recipe.holdout <= other.holdout
            if place == recipe.start:
                backbone = find_architecture(recipe.architecture).backbone
                assert other.architecture in {recipe.architecture, backbone}


def test_the_hash_is_of_all_weights(trained: Checkpoint) -> None:
    one = read_trained(trained.path.parent)
    weights = {name: tensor.clone() for name, tensor in one.weights.items()}
    assert replace(one, weights=weights).sha256 == one.sha256
    name = next(reversed(weights))
    weights[name].view(-1)[-1:] += 1
    assert replace(one, weights=weights).sha256 != one.sha256
    assert np.unique([one.sha256, replace(one, weights={}).sha256]).size == 2
