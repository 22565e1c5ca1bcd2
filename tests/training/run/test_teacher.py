"""Runs that learn a teacher's answers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from app.artifact.directory import Artifact
from tests.support.training_fixtures import TINY, train_quietly
from training.architectures import find_architecture
from training.data import dataset
from training.errors import RecipeError
from training.evaluate import load_network
from training.run import train
from training.run.checkpoint import Checkpoint, Learner
from training.run.optimization import make_optimizer
from training.run.teacher import make_teacher
from training.run.train import Batch, compute_logits


def _images(source: dataset.Source) -> torch.Tensor:
    images = source.load_train().images
    return dataset.normalize(images, *dataset.channel_statistics(images))


@pytest.mark.parametrize("kind", ["trained", "exported"])
def test_a_teacher_is_a_run_or_a_model(
    kind: str, trained: Checkpoint, exported: Artifact, source: dataset.Source
) -> None:
    folder = trained.path.parent if kind == "trained" else exported.path
    images = _images(source)
    teacher = make_teacher(TINY.replace(teacher=str(folder)), source, images)
    with torch.no_grad():
        found, expected = teacher(images), load_network(trained)(images)
    assert torch.allclose(found, expected, atol=1e-3)
    assert not any(weight.requires_grad for weight in teacher.parameters())


def test_the_loss_is_the_cross_entropy_to_the_teachers_answers_for_the_same_images(
    source: dataset.Source,
) -> None:
    torch.manual_seed(0)
    recipe = TINY.replace(micro_batch=10, label_smoothing=0.0)
    network, teacher = (
        find_architecture(recipe.architecture).build(10, 0.0).eval() for _ in range(2)
    )
    images, labels = _images(source)[:20], source.load_train().labels[:20]
    with torch.no_grad():
        expected = F.cross_entropy(network(images), teacher(images).softmax(1))
    learner = Learner(recipe, network, network, make_optimizer(recipe, network))
    loss, _ = train.learn(learner, Batch(images, labels), 1.0, teacher=teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


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
    [("none", "no such"), ("classes", "^teacher is '.*', which has other classes$")],
)
def test_a_teacher_that_cannot_teach_is_named_before_an_epoch_is_spent(
    fault: str, said: str, trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    recipe = TINY.replace(teacher=str(trained.path.parent))
    if fault == "none":
        recipe = recipe.replace(teacher=str(tmp_path / "nowhere"))
    else:
        source = replace(source, classes=tuple(name.upper() for name in source.classes))
    with pytest.raises(RecipeError, match=said):
        train_quietly(recipe, source, tmp_path / "run")
    assert not list((tmp_path / "run").glob("epoch-*"))
