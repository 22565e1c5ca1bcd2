import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.training_fixtures import (
    TINY,
    InterruptAfterFirst,
    Interrupted,
    files_of_at_most,
    train_quietly,
)
from training.data import dataset
from training.data.augmentation import Augmentation, Epoch, epoch_batches
from training.errors import Diverged, RecipeError, RunError
from training.recipes import Arithmetic, Recipe, find_recipe
from training.run import checkpoint
from training.run import train as loop
from training.run.checkpoint import Checkpoint, Learner
from training.run.lessons import Batch
from training.run.train import check_finite


def _weights(last: Checkpoint) -> dict[str, Tensor]:
    return load_file(last.path / checkpoint.NETWORK)


def _equal(first: Checkpoint, second: Checkpoint) -> bool:
    a, b = _weights(first), _weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns(trained: Checkpoint) -> None:
    first, last = trained.state.history
    assert last.loss < first.loss
    assert last.train_accuracy is not None
    assert last.train_accuracy > 0.2


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    assert _equal(train_quietly(TINY, source, tmp_path), trained)


def test_another_seed_gives_other_weights(
    trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    assert not _equal(train_quietly(TINY.replace(seed=1), source, tmp_path), trained)


@pytest.mark.parametrize("architecture", ["simple-cnn", "fc"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_everything_that_augments_and_regularises_is_the_same_twice(
    source: dataset.Source, tmp_path: Path, architecture: str, precision: Arithmetic
) -> None:
    recipe = TINY.replace(
        architecture=architecture,
        precision=precision,
        epochs=1,
        optimizer="adamw",
        schedule="one-cycle",
        weight_decay=0.05,
        label_smoothing=0.1,
        dropout=0.2,
        flip="random",
        translate=4,
    )
    runs = [train_quietly(recipe, source, tmp_path / name) for name in ("a", "b")]
    assert _equal(*runs)
    assert _weights(runs[0])["fc1.weight"].dtype == torch.float32


def test_a_proxy_leaves_the_network_the_selected_part_of_each_batch(
    source: dataset.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, chosen = [], []
    learn, choose = loop.learn, loop.learn_hardest

    def recorded_learn(learner: Learner, batch: Batch, *more: Any) -> Any:
        learned.append(batch.targets)
        return learn(learner, batch, *more)

    def recorded_choose(learner: Learner, batch: Batch, *more: Any) -> Any:
        hardest = choose(learner, batch, *more)
        chosen.append(batch.targets[hardest])
        return hardest

    monkeypatch.setattr(loop, "learn", recorded_learn)
    monkeypatch.setattr(loop, "learn_hardest", recorded_choose)
    recipe = TINY.replace(architecture="fc", epochs=1, proxy="speednet-proxy", selected=0.3)
    last = train_quietly(recipe, source, tmp_path)
    assert [len(labels) for labels in learned] == [32, 32, 2]  # of 107, 107 and 6
    assert all(torch.equal(*labels) for labels in zip(learned, chosen, strict=True))
    assert (last.path / "proxy_network.safetensors").is_file()


def test_a_recipes_augmentation_is_what_batches_are_cut_with(
    source: dataset.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[tuple[int, int, Augmentation]] = []

    def recorded(split: dataset.Split, batch: int, epoch: Epoch, augmentation: Augmentation) -> Any:
        cut.append((epoch.number, batch, augmentation))
        return epoch_batches(split, batch, epoch, augmentation)

    monkeypatch.setattr("training.run.image_lessons.epoch_batches", recorded)
    recipe = TINY.replace(
        architecture="speednet-proxy",
        flip="alternating",
        translate=3,
        crop=28,
        cropped=0.5,
        cutout=5,
        brightness=0.1,
        contrast=0.2,
        noise=9,
        degraded=0.3,
    )
    state = train_quietly(recipe, source, tmp_path).state
    mean, deviation = (tuple(255 * x for x in part) for part in (state.mean, state.deviation))
    cropped = Augmentation("alternating", 3, 28, 5, 0.1, 0.2, 9, 0.3, mean, deviation)
    assert cut == [(1, 32, cropped), (2, 32, replace(cropped, crop=0))]


def test_dropout_and_smoothed_labels_change_what_is_learned(
    trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    for recipe in (TINY.replace(dropout=0.5), TINY.replace(label_smoothing=0.2)):
        run = tmp_path / str(recipe.dropout)
        assert not _equal(train_quietly(recipe, source, run), trained)


@pytest.mark.parametrize("spoiled", ["learn", "learn_hardest"])
def test_weights_that_an_epochs_last_step_spoils_stop_the_run(
    source: dataset.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: str
) -> None:
    step = getattr(loop, spoiled)

    def spoil(learner: Learner, *arguments: Any) -> Any:
        result = step(learner, *arguments)
        with torch.no_grad():
            next(learner.network.parameters()).fill_(float("inf"))
        return result

    monkeypatch.setattr(loop, spoiled, spoil)
    recipe = TINY.replace(batch_size=120, architecture="fc", proxy="fc", selected=0.5)
    with pytest.raises(Diverged, match=r"fc1.weight holds values .* after epoch 1"):
        train_quietly(recipe, source, tmp_path)
    assert not list(tmp_path.glob("epoch-*"))


def test_a_run_keeps_the_memory_that_its_steps_free(
    source: dataset.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[None] = []
    monkeypatch.setattr("training.run.train.keep_freed_memory", lambda: kept.append(None))
    train_quietly(TINY.replace(epochs=1), source, tmp_path)
    assert len(kept) == 1


def test_the_test_split_is_not_read(source: dataset.Source, tmp_path: Path) -> None:
    def refuse() -> dataset.Split:
        raise AssertionError("the test split was read")

    train_quietly(TINY.replace(epochs=1), replace(source, load_test=refuse), tmp_path)


def test_training_on_all_images_has_no_heldout_accuracy(
    source: dataset.Source, tmp_path: Path
) -> None:
    last = train_quietly(TINY.replace(epochs=1, holdout=0.0), source, tmp_path)
    assert last.state.history[0].heldout_accuracy is None


@pytest.mark.parametrize(
    "recipe",
    [
        TINY,
        TINY.replace(architecture="fc"),
        find_recipe("simple-cnn-augmented").replace(epochs=2, batch_size=32),
        find_recipe("speednet-96").replace(
            architecture="speednet-proxy",
            epochs=2,
            batch_size=32,
            micro_batch=16,
            holdout=0.1,
        ),
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(
    recipe: Recipe, source: dataset.Source, tmp_path: Path
) -> None:
    undisturbed = train_quietly(recipe, source, tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        train_quietly(recipe, source, tmp_path / "resumed", reporter=InterruptAfterFirst())
    resumed = train_quietly(recipe, source, tmp_path / "resumed", resume=True)
    assert _equal(resumed, undisturbed)
    assert [figures.loss for figures in resumed.state.history] == [
        figures.loss for figures in undisturbed.state.history
    ]


def test_a_run_that_goes_on_elsewhere_names_all_that_computed_it_in_turn(
    source: dataset.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter(["3.11.1", "3.12.2", "3.12.2"])
    monkeypatch.setattr("training.run.train.platform.python_version", lambda: next(versions))
    names = iter(["2 × core, 2 threads", "core, 2 threads", "core, 2 threads"])
    monkeypatch.setattr("training.run.train.describe_device", lambda _device: next(names))
    recipe = TINY.replace(epochs=3)
    for resume in (False, True):
        with pytest.raises(Interrupted):
            train_quietly(recipe, source, tmp_path, reporter=InterruptAfterFirst(), resume=resume)
    last = train_quietly(recipe, source, tmp_path, resume=True)
    assert last.state.hardware == "2 × core, 2 threads, then core, 2 threads"
    assert last.state.libraries["python"] == "3.11.1, then 3.12.2"


def test_a_run_that_goes_on_with_moved_images_says_where_they_are(
    source: dataset.Source, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train_quietly(TINY, source, tmp_path / "run", reporter=InterruptAfterFirst())
    moved = dataset.find(shutil.copytree(source.place, tmp_path / "moved"))
    last = train_quietly(TINY, moved, tmp_path / "run", resume=True)
    assert last.state.data_place == str(tmp_path / "moved")


def _command(image_folder: Path, run: Path, *more: str) -> list[str]:
    options = ["--epochs", "4", "--batch-size", "16", "--precision", "float32", "--dropout", "0.2"]
    places = ["--data-dir", str(image_folder), "--out", str(run), "--device", "cpu"]
    return [sys.executable, "-m", "training.cli", "train", "simple-cnn", *options, *places, *more]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the first checkpoint", "after it"])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    image_folder: Path, tmp_path: Path, moment: str
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(_command(image_folder, undisturbed), check=True, capture_output=True)
    process = subprocess.Popen(_command(image_folder, killed), stdout=subprocess.PIPE)
    assert process.stdout is not None
    waited_for = b"simple-cnn on" if moment.startswith("before") else b"epoch 2/4"
    while waited_for not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    resumed = subprocess.run(
        _command(image_folder, killed, "--resume"), check=True, capture_output=True, text=True
    )
    assert ("epoch 1/4" in resumed.stdout) == moment.startswith("before")
    assert _equal(checkpoint.open_run(killed), checkpoint.open_run(undisturbed))


def test_a_run_in_the_way_is_not_touched(trained: Checkpoint, source: dataset.Source) -> None:
    run = trained.path.parent
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="--resume"):
        train_quietly(TINY, source, run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_recipe_is_refused_by_its_differences(
    trained: Checkpoint, source: dataset.Source
) -> None:
    other = TINY.replace(learning_rate=0.01, epochs=5)
    with pytest.raises(RunError, match=r"epochs 2 \(now 5\), learning_rate 0.001 \(now 0.01\)"):
        train_quietly(other, source, trained.path.parent, resume=True)


def test_a_run_at_a_constant_rate_goes_on_to_more_epochs_as_if_it_had_begun_with_them(
    trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    run = shutil.copytree(trained.path.parent, tmp_path / "run")
    longer = TINY.replace(epochs=4)
    last = train_quietly(longer, source, run, resume=True)
    assert last.state.epoch == 4
    assert last.state.recipe == longer
    assert _equal(last, train_quietly(longer, source, tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"schedule": "linear"}, "schedule linear"),
        ({"schedule": "one-cycle"}, "schedule one-cycle"),
        ({"crop": 28, "cropped": 0.5, "architecture": "speednet-proxy"}, "cropped images"),
    ],
)
def test_more_epochs_that_would_have_changed_the_finished_ones_are_refused(
    source: dataset.Source, tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    recipe = TINY.replace(epochs=1, **changes)
    train_quietly(recipe, source, tmp_path)
    message = (
        f"epoch-00001: is of a run of 1 epochs, and with {cause} each epoch depends on their "
        f"number; start anew, without --resume, with --epochs 2 --out {tmp_path}-2-epochs"
    )
    with pytest.raises(RunError, match=message):
        train_quietly(recipe.replace(epochs=2), source, tmp_path, resume=True)


def test_fewer_epochs_than_a_run_has_are_refused(
    trained: Checkpoint, source: dataset.Source
) -> None:
    with pytest.raises(RunError, match="has 2 epochs; epochs 1 are fewer"):
        train_quietly(TINY.replace(epochs=1), source, trained.path.parent, resume=True)


def test_a_checkpoint_of_other_data_is_refused(trained: Checkpoint, source: dataset.Source) -> None:
    other = replace(source, sha256="0" * 64)
    with pytest.raises(RunError, match="0" * 64):
        train_quietly(TINY, other, trained.path.parent, resume=True)


def test_a_finished_run_is_resumed_to_itself(trained: Checkpoint, source: dataset.Source) -> None:
    assert train_quietly(TINY, source, trained.path.parent, resume=True) == trained


def test_an_infinite_loss_stops_the_run_and_the_last_checkpoint_stands(
    source: dataset.Source, tmp_path: Path
) -> None:
    last = train_quietly(TINY.replace(epochs=1), source, tmp_path)
    state = (last.path / checkpoint.STATE).read_text()
    (last.path / checkpoint.STATE).write_text(state.replace('"epochs": 1', '"epochs": 2'))
    weights = {name: tensor.clone() for name, tensor in _weights(last).items()}
    weights["fc2.weight"].fill_(float("nan"))
    save_file(weights, last.path / checkpoint.NETWORK)
    with pytest.raises(Diverged, match="the mean loss is nan in epoch 2"):
        train_quietly(TINY, source, tmp_path, resume=True)
    assert [path.name for path in tmp_path.glob("*epoch*")] == ["epoch-00001"]


def test_no_space_left_stops_the_run_and_leaves_nothing_half_written(
    source: dataset.Source, tmp_path: Path
) -> None:
    with files_of_at_most(1_000_000), pytest.raises(RunError, match="cannot be written"):
        train_quietly(TINY, source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_architecture_is_answered_with_the_known_ones(
    source: dataset.Source, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="no architecture 'lenet'; there are simple-cnn, fc"):
        train_quietly(TINY.replace(architecture="lenet"), source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_said_before_an_epoch_is_spent(
    source: dataset.Source, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="file/run: cannot be written"):
        train_quietly(TINY, source, tmp_path / "file" / "run")


def test_weights_that_the_last_step_has_spoiled_are_named() -> None:
    network = torch.nn.BatchNorm1d(2)
    network.running_mean = torch.tensor([0.0, float("inf")])
    with pytest.raises(Diverged, match="running_mean holds values that are not finite"):
        check_finite(network, epoch=3)


def test_an_architecture_for_other_images_is_refused(
    source: dataset.Source, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="vgg16-imagenet takes images of"):
        train_quietly(TINY.replace(architecture="vgg16-imagenet"), source, tmp_path)
