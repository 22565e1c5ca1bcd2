"""Fixtures of training: the sample on disk, and a run and an artifact of it."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from app.artifact.directory import Artifact, read_artifact
from app.artifact.tensors import Images
from tests.support import sample
from tests.support.made_once import made_once
from training.data import cifar10, dataset
from training.data.foreign import foreign_images
from training.evaluate import evaluate, read_evaluation, save_evaluation
from training.export.export import Export, export
from training.recipes import Recipe, find_recipe
from training.report import LEARNING_CURVE, draw_learning_curve
from training.run.checkpoint import Checkpoint, EpochFigures, open_run
from training.run.progress import Reporter, SilentReporter
from training.run.train import train

SCENES_DIR_VARIABLE = "CONVSCOPE_SCENES_DIR"
THREADS = torch.get_num_threads()
TINY = find_recipe("simple-cnn").replace(epochs=2, batch_size=32, precision="float32")


def train_quietly(
    recipe: Recipe,
    source: dataset.Source,
    run: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Checkpoint:
    return train(recipe, source, run, reporter or SilentReporter(), device="cpu", resume=resume)


class Interrupted(Exception):
    pass


class InterruptAfterFirst(SilentReporter):
    """Ends a run after its next epoch."""

    def epoch_ended(self, figures: EpochFigures) -> None:  # noqa: ARG002
        raise Interrupted


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Have the kernel refuse to let a file grow beyond so many bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def _as_many_threads_as_before() -> Iterator[None]:
    """A torch backend that a test opens changes them, and sums of the next test with them."""
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture
def as_deterministic_as_before() -> Iterator[None]:
    """A training turns it on, and the tutorial's loop off."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session", autouse=True)
def _few_foreign_images() -> Iterator[None]:
    """Of each kind 50: all of them take longer to classify than everything else of an export."""

    def few() -> dict[str, Images]:
        return {kind: images[:50] for kind, images in foreign_images().items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.export.export.foreign_images", few)
        yield


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "sample", sample.write_image_folder)


@pytest.fixture(scope="session")
def source(image_folder: Path) -> dataset.Source:
    return dataset.find(image_folder)


@pytest.fixture(scope="session")
def trained(source: dataset.Source, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A run of two epochs on the sample, evaluated."""

    def make(run: Path) -> None:
        last = train_quietly(TINY, source, run)
        draw_learning_curve(last.state.history, run / LEARNING_CURVE)
        save_evaluation(last, evaluate(last, source, torch.device("cpu")))

    return open_run(made_once(tmp_path_factory, "tiny", make))


@pytest.fixture(scope="session")
def exported(
    trained: Checkpoint, source: dataset.Source, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """The run's artifact, `tiny/1`, in a store of its own."""

    def make(store: Path) -> None:
        found = read_evaluation(trained)
        assert found is not None
        export(Export(trained, found, source, "tiny", "1"), store)

    return read_artifact(made_once(tmp_path_factory, "exported", make) / "tiny" / "1")


@pytest.fixture(scope="session")
def half(source: dataset.Source, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact `half/1` with float16 weights, two views and an int8 graph."""

    def make(folder: Path) -> None:
        last = train_quietly(TINY.replace(epochs=1, holdout=0.4), source, folder / "run")
        found = evaluate(last, source, torch.device("cpu"), views=2, weights="float16")
        export(Export(last, found, source, "half", "1", int8=True), folder / "store")

    return read_artifact(made_once(tmp_path_factory, "half", make) / "store" / "half" / "1")


@pytest.fixture(scope="session")
def real_cifar10() -> dataset.Source:
    """The whole of CIFAR-10, where `CONVSCOPE_DATA_DIR` names a folder that holds it."""
    place = os.environ.get(dataset.DATA_DIR_VARIABLE)
    if not place or not (Path(place) / cifar10.BINARY.folder).is_dir():
        pytest.skip(f"{dataset.DATA_DIR_VARIABLE} names no folder with {cifar10.BINARY.folder}")
    return dataset.find(Path(place))


@pytest.fixture(scope="session")
def real_scenes() -> Callable[[str], Path]:
    """The folder of a real annotated set, where a variable names the folder that holds it."""

    def find(name: str) -> Path:
        place = os.environ.get(SCENES_DIR_VARIABLE)
        if not place or not (Path(place) / name).is_dir():
            pytest.skip(f"{SCENES_DIR_VARIABLE} names no folder with {name}")
        return Path(place) / name

    return find
