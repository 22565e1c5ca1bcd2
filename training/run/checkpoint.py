"""A run's folder and its checkpoints, which are written whole or not at all.

    runs/<run>/
        epoch-00007/          the newest finished epoch; older ones are removed
            network.safetensors
            learned.safetensors   where the network is a moving average: the weights that learn
            optimizer.safetensors
            proxy_network.safetensors, proxy_optimizer.safetensors   where the recipe has a proxy
            state.json        recipe, data and history: everything but tensors
            evaluation.json   once the checkpoint has been evaluated
        history.json          the epochs so far, for plots
        learning_curve.png    when the run has ended

A process that is killed at any moment leaves its last whole checkpoint. Nothing is pickled.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from training.errors import RecipeError, RunError
from training.recipes import Recipe
from training.run import durable

NETWORK = "network.safetensors"
LEARNED = "learned.safetensors"
OPTIMIZER = "optimizer.safetensors"
PROXY = "proxy_"
STATE = "state.json"
HISTORY = "history.json"
EPOCHS = "epoch-" + 5 * "[0-9]"


@dataclass(frozen=True)
class EpochFigures:
    """Figures of one epoch.

    Attributes:
        epoch: counts from 1.
        loss: the mean over the images learned from.
        train_accuracy: on them, 0 to 1; None where answers are not right or wrong.
        heldout_accuracy: on the held-out images, or the score that stands for it: a detector's mAP
            at an overlap of 0.5, a segmenter's mean overlap. None without held-out images or if it
            was not measured.
        images_per_second: learned from.
        seconds: that it took.
    """

    epoch: int
    loss: float
    train_accuracy: float | None
    heldout_accuracy: float | None
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class RunState:
    """Everything of a run but its tensors.

    Attributes:
        recipe: with `precision` resolved to the hardware's.
        data_name: the data set's name.
        data_sha256: the data set's hash.
        classes: names by label.
        mean: of each channel over the images trained on, 0 to 1.
        deviation: of each channel over the images trained on, 0 to 1.
        hardware: the processor or GPU.
        libraries: versions of Python and torch.
        data_place: the data set's folder.
        history: one record for each finished epoch.
        seconds_before: spent in training the network that the run started from.
        lineage: hashes of the weights of its `start` and its `teacher`.
    """

    recipe: Recipe
    data_name: str
    data_sha256: str
    classes: tuple[str, ...]
    mean: list[float]
    deviation: list[float]
    hardware: str
    libraries: dict[str, str]
    data_place: str = ""
    history: tuple[EpochFigures, ...] = ()
    seconds_before: float = 0.0
    lineage: dict[str, str] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    @property
    def training_seconds(self) -> float:
        """Time spent in finished epochs, those of the start too."""
        return self.seconds_before + sum(figures.seconds for figures in self.history)

    def begun_after(self, seconds: float, hardware: str) -> "RunState":
        """Return the state of a run that starts from a network, which took so long there."""
        return replace(self, seconds_before=seconds, hardware=_in_turn(hardware, self.hardware))

    def resumed_on(self, now: "RunState") -> "RunState":
        """Return the state of a run that goes on, with the names of all its hardware in turn.

        The recipe may have another number of epochs now.

        Args:
            now: the state of a run that starts here.
        """
        libraries = {
            name: _in_turn(self.libraries.get(name, "unknown"), version)
            for name, version in now.libraries.items()
        }
        return replace(
            self,
            recipe=now.recipe,
            data_place=now.data_place,
            hardware=_in_turn(self.hardware, now.hardware),
            libraries=self.libraries | libraries,
        )


def _in_turn(before: str, now: str) -> str:
    """Append the present name unless it is the last one already."""
    then = ", then "
    return before if before.rpartition(then)[2] == now else before + then + now


@dataclass(frozen=True)
class Learner:
    """A network and the optimizer that moves its weights; a checkpoint holds both.

    Attributes:
        recipe: of the run.
        network: holds the weights.
        averaging: the network, or a wrapper that averages gradients with other processes.
        optimizer: of the weights.
        average: follows the network, where the recipe says so.
    """

    recipe: Recipe
    network: nn.Module
    averaging: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None

    @property
    def result(self) -> nn.Module:
        """The network that the run is for: the moving average, or the one that learns."""
        return self.network if self.average is None else self.average

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the average towards the network; further in the first steps, which count from 1."""
        if self.average is None:
            return
        part = 1 - min(self.recipe.averaged, (1 + step) / (10 + step))
        state = self.network.state_dict()
        for name, tensor in self.average.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(state[name], part)
            else:
                tensor.copy_(state[name])


@dataclass(frozen=True)
class Checkpoint:
    """A finished epoch on disk."""

    path: Path
    state: RunState

    def load(self, learner: Learner, proxy: Learner | None) -> None:
        """Load the weights and the optimizer's state of a run that goes on.

        Raises:
            RunError: a file is damaged or holds other tensors than the network.
        """
        self.load_network(learner.result)
        if learner.average is not None:
            _load(learner.network, self.read(LEARNED), self.path / LEARNED)
        self._load_optimizer(learner.optimizer)
        if proxy is not None:
            self.load_network(proxy.network, PROXY)
            self._load_optimizer(proxy.optimizer, PROXY)

    def load_network(self, network: nn.Module, prefix: str = "") -> None:
        """Load the weights into a network of the same architecture.

        Raises:
            RunError: the file is damaged or holds other tensors than the network.
        """
        _load(network, self.read(prefix + NETWORK), self.path / (prefix + NETWORK))

    def read(self, file_name: str) -> dict[str, Tensor]:
        """Return the tensors of one of its files, by name.

        Raises:
            RunError: the file is missing or damaged.
        """
        path = self.path / file_name
        try:
            return load(path.read_bytes())  # load_file takes no path that is not UTF-8
        except OSError as exc:
            raise RunError(f"{path}: {exc.strerror}") from exc
        except SafetensorError as exc:
            raise RunError(f"{path}: {exc}") from exc

    def _load_optimizer(self, optimizer: torch.optim.Optimizer, prefix: str = "") -> None:
        path = self.path / (prefix + OPTIMIZER)
        tensors = self.read(path.name)
        state: dict[int, dict[str, Tensor]] = {}
        groups = optimizer.state_dict()["param_groups"]
        try:
            for key, tensor in tensors.items():
                index, _, name = key.partition(".")
                state.setdefault(int(index), {})[name] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (KeyError, ValueError) as exc:
            raise RunError(f"{path}: not the state of this optimizer: {exc}") from exc
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape:
                    # A fused optimizer needs its moments in the memory layout of the weights.
                    values[name] = torch.empty_like(parameter).copy_(value)


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights by the network's names for them.

    Raises:
        RunError: the network has other weights. Names them, in one line.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as exc:
        raise RunError(" ".join(str(exc).split())) from exc


def _load(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        load_weights(network, weights)
    except RunError as exc:
        raise RunError(f"{path}: {exc}") from exc


def save(run: Path, state: RunState, learner: Learner, proxy: Learner | None = None) -> None:
    """Write a checkpoint of the finished epoch, then remove the older ones.

    Raises:
        RunError: it cannot be written; the older checkpoints stand as they were.
    """
    final = run / f"epoch-{state.epoch:05d}"
    try:
        with durable.new_directory(final) as partial:
            _save_learner(learner, partial)
            if proxy is not None:
                _save_learner(proxy, partial, PROXY)
            (partial / STATE).write_text(_to_json(state), encoding="utf-8")
    except (OSError, SafetensorError) as exc:
        raise RunError(f"{final}: cannot be written: {exc}") from exc
    write_history(run, state)
    for path in run.glob(EPOCHS):
        if path.name < final.name:
            shutil.rmtree(path, ignore_errors=True)


def _save_learner(learner: Learner, folder: Path, prefix: str = "") -> None:
    save_file(_contiguous(learner.result.state_dict()), folder / (prefix + NETWORK))
    if learner.average is not None:
        save_file(_contiguous(learner.network.state_dict()), folder / (prefix + LEARNED))
    save_file(_optimizer_tensors(learner.optimizer), folder / (prefix + OPTIMIZER))


def write_history(run: Path, state: RunState) -> None:
    """Write `history.json` into a run's directory.

    Raises:
        RunError: it cannot be written.
    """
    try:
        durable.write_text(run / HISTORY, history_json(state.history))
    except OSError as exc:
        raise RunError(f"{run / HISTORY}: cannot be written: {exc}") from exc


def history_json(history: tuple[EpochFigures, ...]) -> str:
    """Return the content of a `history.json`."""
    return json.dumps([asdict(figures) for figures in history], indent=1)


def newest(run: Path) -> Checkpoint | None:
    """Return a run's newest checkpoint, or None if it has none.

    Raises:
        RunError: the state of the checkpoint cannot be read.
    """
    paths = sorted(run.glob(EPOCHS))
    if not paths:
        return None
    path = paths[-1] / STATE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["recipe"] = Recipe.model_validate(values["recipe"])
        values["classes"] = tuple(values["classes"])
        values["history"] = tuple(EpochFigures(**figures) for figures in values["history"])
        return Checkpoint(paths[-1], RunState(**values))
    except (OSError, ValueError, KeyError, TypeError, RecipeError) as exc:
        raise RunError(f"{path}: not the state of a run: {exc}") from exc


def open_run(run: Path) -> Checkpoint:
    """Return the newest checkpoint of a run.

    Raises:
        RunError: the run has no checkpoint, or its state cannot be read.
    """
    checkpoint = newest(run)
    if checkpoint is None:
        raise RunError(f"{run}: holds no checkpoint")
    return checkpoint


def parse_history(text: str) -> tuple[EpochFigures, ...]:
    """Read the content of a `history.json`.

    Raises:
        RunError: the text is not a history.
    """
    try:
        return tuple(EpochFigures(**figures) for figures in json.loads(text))
    except (ValueError, TypeError) as exc:
        raise RunError(f"{HISTORY}: not the history of a run: {exc}") from exc


def _to_json(state: RunState) -> str:
    values: dict[str, Any] = {**vars(state)}
    values["recipe"] = state.recipe.model_dump()
    values["history"] = [asdict(figures) for figures in state.history]
    return json.dumps(values, indent=1)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return _contiguous(
        {
            f"{index}.{name}": value
            for index, values in state.items()
            for name, value in values.items()
        }
    )


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
