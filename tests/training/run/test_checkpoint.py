import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.training_fixtures import TINY, train_quietly
from training.architectures import find_architecture
from training.data import dataset
from training.errors import RunError
from training.run import checkpoint
from training.run.checkpoint import Checkpoint


@pytest.fixture
def run(trained: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    copy = tmp_path / "run"
    shutil.copytree(trained.path.parent, copy)
    return copy


def test_only_the_newest_epoch_is_kept(run: Path) -> None:
    assert sorted(path.name for path in run.glob("*epoch*")) == ["epoch-00002"]


def test_the_state_is_read_back_as_it_was_written(run: Path, trained: Checkpoint) -> None:
    assert checkpoint.open_run(run).state == trained.state
    assert trained.state.recipe == TINY


def test_the_weights_are_read_back_as_they_were_written(run: Path) -> None:
    network = find_architecture("simple-cnn").build(10, 0.0)
    checkpoint.open_run(run).load_network(network)
    for name, tensor in load_file(run / "epoch-00002" / checkpoint.NETWORK).items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_an_unfinished_checkpoint_is_not_seen(run: Path) -> None:
    shutil.copytree(run / "epoch-00002", run / ".epoch-00003.partial")
    assert checkpoint.open_run(run).state.epoch == 2


def test_the_newest_epoch_is_taken_where_a_killed_run_left_two(run: Path) -> None:
    shutil.copytree(run / "epoch-00002", run / "epoch-00001")
    assert checkpoint.open_run(run).path.name == "epoch-00002"


def test_a_copy_that_somebody_made_is_neither_opened_nor_removed(
    trained: Checkpoint, source: dataset.Source, tmp_path: Path
) -> None:
    shutil.copytree(trained.path, tmp_path / "epoch-00002-backup")
    train_quietly(TINY.replace(epochs=1), source, tmp_path)
    assert (tmp_path / "epoch-00002-backup").is_dir()
    assert checkpoint.open_run(tmp_path).state.epoch == 1


def test_a_folder_without_checkpoints_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"{tmp_path}: holds no checkpoint"):
        checkpoint.open_run(tmp_path)


def test_a_damaged_state_is_named(run: Path) -> None:
    path = run / "epoch-00002" / checkpoint.STATE
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RunError, match=str(path)):
        checkpoint.open_run(run)


def test_damaged_weights_are_named(run: Path) -> None:
    path = run / "epoch-00002" / checkpoint.NETWORK
    path.write_bytes(path.read_bytes()[:-1000])
    network = find_architecture("simple-cnn").build(10, 0.0)
    with pytest.raises(RunError, match=str(path)):
        checkpoint.open_run(run).load_network(network)


def test_a_damaged_state_of_the_optimizer_is_named(run: Path, source: dataset.Source) -> None:
    path = run / "epoch-00002" / checkpoint.OPTIMIZER
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(RunError, match=str(path)):
        train_quietly(TINY.replace(epochs=3), source, run, resume=True)


def test_weights_of_another_network_are_refused(run: Path) -> None:
    with pytest.raises(RunError, match=checkpoint.NETWORK) as caught:
        checkpoint.open_run(run).load_network(find_architecture("fc").build(10, 0.0))
    assert "\n" not in str(caught.value)


def test_tensors_of_no_optimizer_are_refused(run: Path, source: dataset.Source) -> None:
    path = run / "epoch-00002" / checkpoint.OPTIMIZER
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(RunError, match=f"{path}: not the state of this optimizer"):
        train_quietly(TINY.replace(epochs=3), source, run, resume=True)
