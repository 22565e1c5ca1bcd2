from pathlib import Path

import pytest

from app.artifact.directory import Artifact
from app.inference.backends import open_backend
from tests.support.artifacts import amend, copy_store
from tests.support.training_fixtures import TINY, train_quietly
from training.data import dataset
from training.errors import RecipeError
from training.run.teacher import ask_teacher


def test_a_teachers_probabilities_take_the_labels_place(
    exported: Artifact, source: dataset.Source
) -> None:
    train = source.load_train()
    taught = ask_teacher(exported.path, source.classes, train)
    assert taught.images is train.images
    expected = open_backend(exported, "onnx-cpu").predict(train.images.numpy()).probabilities
    assert taught.labels.numpy() == pytest.approx(expected, abs=1e-6)


def test_a_network_learns_its_teachers_answers_in_place_of_labels(
    exported: Artifact, source: dataset.Source, tmp_path: Path
) -> None:
    recipe = TINY.replace(teacher=str(exported.path), epochs=1)
    state = train_quietly(recipe, source, tmp_path).state
    taught = ask_teacher(exported.path, source.classes, source.load_train())
    assert state.recipe.teacher == str(exported.path)
    # No loss is below the entropy of what is learned; that of labels would be 0.
    entropy = -(taught.labels * taught.labels.log()).sum(1).mean().item()
    assert entropy > 1
    assert entropy < state.history[-1].loss


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "manifest.json: no such file"),
        ("classes", "which knows other classes"),
        ("graph", "model.onnx"),
    ],
)
def test_a_teacher_that_cannot_teach_is_named_before_an_epoch_is_spent(
    exported: Artifact, source: dataset.Source, tmp_path: Path, damage: str, said: str
) -> None:
    folder = copy_store(exported.path.parents[1], tmp_path / "store") / "tiny" / "1"
    if damage == "missing":
        folder = tmp_path / "nothing"
    elif damage == "classes":
        amend(folder, classes=[f"class {number}" for number in range(10)])
    else:
        (folder / "model.onnx").write_bytes(b"damaged")
    recipe = TINY.replace(teacher=str(folder))
    with pytest.raises(RecipeError, match=f"^teacher is '{folder}'.*{said}"):
        train_quietly(recipe, source, tmp_path / "run")
    assert not list((tmp_path / "run").glob("epoch-*"))
