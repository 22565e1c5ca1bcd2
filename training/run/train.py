"""The loop: a recipe and images to checkpoints.

    convscope-train train simple-cnn --seed 0

Every epoch starts from seeds of its own, made of the recipe's seed and the epoch's number, so a
run that is resumed after any epoch draws the same numbers as one that was never stopped. The test
split is not read here.
"""

import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import Tensor, nn

from training.architectures import find_architecture
from training.architectures.describe import describe
from training.architectures.speednet import SpeedNet
from training.data import dataset
from training.data.augmentation import Augmentation, Epoch, epoch_batches
from training.errors import DataError, Diverged, RecipeError, RunError
from training.recipes import Recipe
from training.run import checkpoint, distributed
from training.run.checkpoint import Checkpoint, EpochFigures, RunState
from training.run.distributed import Workers
from training.run.hardware import (
    DeviceName,
    choose_device,
    describe_device,
    keep_freed_memory,
    resolve_precision,
)
from training.run.learner import Batch, Learner, normalize
from training.run.optimization import make_optimizer, schedule
from training.run.reporter import Reporter, SilentReporter

EVALUATION_BATCH = 500
INITIALIZATION_IMAGES = 5000
PROGRESS_STEPS = 16  # how often the loss is looked at: seldom enough for a GPU not to wait


@dataclass(frozen=True)
class Run:
    """What does not change from epoch to epoch."""

    recipe: Recipe
    learner: Learner
    proxy: Learner | None
    train: dataset.Split
    heldout: dataset.Split
    mean: list[float]
    deviation: list[float]
    device: torch.device
    workers: Workers

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        return self.learner.network


def train(
    recipe: Recipe,
    source: dataset.Source,
    run_dir: Path,
    reporter: Reporter,
    *,
    device: DeviceName = "auto",
    resume: bool = False,
) -> Checkpoint:
    """Train by a recipe, leaving a checkpoint an epoch in `run_dir`.

    Args:
        recipe: every number of the run.
        source: the images.
        run_dir: made if it does not exist.
        reporter: is told how it goes.
        device: `auto` is CUDA where there is a GPU.
        resume: go on from the newest checkpoint, or start if there is none yet.

    Returns:
        The checkpoint of the last epoch.

    Raises:
        RecipeError: the recipe does not fit the device or names no architecture.
        RunError: `run_dir` holds a run and `resume` is off, holds one of another recipe or of
            other data, or cannot be written.
        Diverged: the loss became infinite or not a number; the last checkpoint stands.
        DataError: the images cannot be read or split.
    """
    torch_device = choose_device(device, distributed.local_index())
    recipe = recipe.replace(precision=resolve_precision(recipe.precision, torch_device))
    _check_architectures(recipe)
    last = checkpoint.newest(run_dir)
    if last is not None:
        _check_resumable(last, recipe, source, run_dir, resume=resume)
    _make_directory(run_dir)
    keep_freed_memory()
    torch.use_deterministic_algorithms(torch_device.type == "cpu")
    # Else every tensor is filled before it is written to, in case something reads it first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with distributed.join(torch_device) as workers:
        if recipe.batch_size < workers.count:
            raise RecipeError(
                f"batch_size is {recipe.batch_size}; {workers.count} processes need at least "
                f"{workers.count}"
            )
        workers.check_same((last.state.epoch if last else 0, recipe.model_dump(), source.sha256))
        run = _prepare(recipe, source, torch_device, workers)
        state = _new_state(run, source)
        if last is not None:
            last.load(run.learner, run.proxy)
            state = last.state.resumed_on(state)
        _go_on(run, state, run_dir, reporter if workers.is_first else SilentReporter())
        workers.wait_for_all()
    return checkpoint.open_run(run_dir)


def _go_on(run: Run, state: RunState, run_dir: Path, reporter: Reporter) -> None:
    """Train the epochs that are left, with a checkpoint after each."""
    if run.workers.is_first and state.epoch > 0:
        checkpoint.write_history(run_dir, state)
    while state.epoch < run.recipe.epochs:
        reporter.epoch_started(state.epoch + 1, run.recipe.epochs, len(run.train))
        figures = _epoch(run, state.epoch + 1, reporter)
        for learner in filter(None, (run.learner, run.proxy)):
            check_finite(learner.network, figures.epoch)
        state = replace(state, history=(*state.history, figures))
        if run.workers.is_first:
            checkpoint.save(run_dir, state, run.learner, run.proxy)
        reporter.epoch_ended(figures)


@torch.inference_mode()
def compute_logits(
    network: nn.Module,
    images: Tensor,
    mean: list[float],
    deviation: list[float],
    device: torch.device,
) -> Tensor:
    """Return float32 logits `[N,classes]` on the processor for uint8 images `[N,H,W,3]`.

    In evaluation mode and float32, as the exported graphs compute them (on CUDA, convolutions
    multiply in TF32).
    """
    network.eval()
    return torch.cat(
        [
            network(dataset.normalize(batch.to(device), mean, deviation)).float().cpu()
            for batch in images.split(EVALUATION_BATCH)
        ]
    )


def _epoch(run: Run, number: int, reporter: Reporter) -> EpochFigures:
    """Train on every image once, or on the chosen part, and measure the held-out ones."""
    run.network.train()
    started = time.perf_counter()
    epoch = Epoch(number, run.recipe.seed)
    torch.manual_seed(run.workers.own(epoch.own_seed))
    totals = torch.zeros(3, device=run.device)  # loss, correct, images learned from
    seen = 0
    for step, candidates in enumerate(_augmented(run, epoch), start=1):
        if len(candidates) < run.workers.count:
            break  # the last images of an epoch are too few for every process to have one
        rate = schedule(run.recipe, len(run.train), number, step)
        share = run.workers.share(candidates)
        weight = run.workers.weight(len(share), len(candidates))
        batch = _choose(run, normalize(share, run.mean, run.deviation), rate, weight)
        largest = _part(run.recipe, run.workers.largest_share(len(candidates)))
        loss, correct = run.learner.learn(batch, rate, weight, largest)
        totals += torch.stack([loss * len(batch), correct, torch.full_like(loss, len(batch))])
        seen += len(candidates)
        if step % PROGRESS_STEPS == 0 or seen == len(run.train):
            mean_loss, accuracy = _means(totals)
            if not math.isfinite(mean_loss):
                raise Diverged(f"the mean loss is {mean_loss} in epoch {number}, step {step}")
            reporter.progressed(seen, mean_loss, accuracy)
    mean_loss, accuracy = _means(run.workers.sum(totals))
    seconds = time.perf_counter() - started
    return EpochFigures(
        epoch=number,
        loss=mean_loss,
        train_accuracy=accuracy,
        heldout_accuracy=_heldout_accuracy(run) if run.workers.is_first else None,
        images_per_second=seen / seconds,
        seconds=seconds,
    )


def _means(totals: Tensor) -> tuple[float, float]:
    """Return loss and accuracy of one image from the sums over an epoch so far."""
    loss, correct, images = totals.tolist()
    return loss / images, correct / images


def _choose(run: Run, candidates: Batch, rate: float, weight: float) -> Batch:
    """Return what the network learns from: all, or what the proxy found hardest."""
    if run.proxy is None:
        return candidates
    count = _part(run.recipe, len(candidates))
    return candidates[run.proxy.learn_hardest(candidates, count, rate, weight)]


def _part(recipe: Recipe, candidates: int) -> int:
    """Return how many of the candidates are learned from."""
    return min(recipe.batch_size, math.ceil(candidates * recipe.selected - 1e-9))


def _augmented(run: Run, epoch: Epoch) -> Iterator[dataset.Split]:
    recipe = run.recipe
    augmentation = Augmentation(
        flip=recipe.flip,
        translate=recipe.translate,
        crop=recipe.crop if epoch.number <= recipe.cropped_epochs else 0,
        cutout=recipe.cutout,
        brightness=recipe.brightness,
        contrast=recipe.contrast,
        noise=recipe.noise,
        mean=tuple(255 * part for part in run.mean),
        deviation=tuple(255 * part for part in run.deviation),
    )
    return epoch_batches(run.train, recipe.candidates, epoch, augmentation)


def _heldout_accuracy(run: Run) -> float | None:
    if len(run.heldout) == 0:
        return None
    logits = compute_logits(run.network, run.heldout.images, run.mean, run.deviation, run.device)
    return (logits.argmax(1) == run.heldout.labels.cpu()).float().mean().item()


def _prepare(recipe: Recipe, source: dataset.Source, device: torch.device, workers: Workers) -> Run:
    images = source.load_train()
    chosen, held = dataset.split_holdout(images.labels, recipe.holdout, recipe.split_seed)
    if len(chosen) < workers.count:
        raise DataError(
            f"{source.place}: {len(chosen)} images to learn from; {workers.count} processes need "
            f"at least {workers.count}"
        )
    train = images[chosen].to(device)
    mean, deviation = dataset.channel_statistics(train.images)
    spaced = train.images[:: max(1, len(train) // INITIALIZATION_IMAGES)]  # of all classes
    first = dataset.normalize(spaced[:INITIALIZATION_IMAGES], mean, deviation)
    torch.manual_seed(recipe.seed)
    learner, *proxies = (
        _new_learner(recipe, architecture, len(source.classes), first, workers)
        for architecture in filter(None, (recipe.architecture, recipe.proxy))
    )
    return Run(
        recipe=recipe,
        learner=learner,
        proxy=proxies[0] if proxies else None,
        train=train,
        heldout=images[held].to(device),
        mean=mean,
        deviation=deviation,
        device=device,
        workers=workers,
    )


def _new_learner(
    recipe: Recipe, architecture: str, classes: int, images: Tensor, workers: Workers
) -> Learner:
    """Build a network, on the device of the normalised images that it may start from."""
    network = find_architecture(architecture).build(classes, recipe.dropout).to(images.device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if isinstance(network, SpeedNet):
        network.whiten_from(images)
    averaging = workers.average_gradients_of(network)
    return Learner(recipe, network, averaging, make_optimizer(recipe, network))


def _make_directory(run_dir: Path) -> None:
    """Find out before an epoch is spent whether the run can be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=run_dir):
            pass
    except OSError as exc:
        raise RunError(f"{run_dir}: cannot be written: {exc}") from exc


def check_finite(network: nn.Module, epoch: int) -> None:
    """Raise Diverged unless all weights are finite: the last step shows in no loss."""
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise Diverged(f"{name} holds values that are not finite after epoch {epoch}")


def _check_architectures(recipe: Recipe) -> None:
    for name in filter(None, (recipe.architecture, recipe.proxy)):
        size = find_architecture(name).image_size
        if size != dataset.IMAGE_SIZE:
            raise RecipeError(
                f"{name} takes images of {size} pixels; these are {dataset.IMAGE_SIZE}"
            )
        if recipe.crop:
            try:
                describe(name, image_size=(recipe.crop, recipe.crop))
            except RuntimeError as exc:
                raise RecipeError(f"crop is {recipe.crop}; {name} cannot learn from that") from exc


def _new_state(run: Run, source: dataset.Source) -> RunState:
    return RunState(
        recipe=run.recipe,
        data_name=source.name,
        data_sha256=source.sha256,
        data_place=str(source.place.absolute()),
        classes=source.classes,
        mean=run.mean,
        deviation=run.deviation,
        hardware=_hardware(run),
        libraries={"python": platform.python_version(), "torch": torch.__version__},
    )


def _check_resumable(
    last: Checkpoint, recipe: Recipe, source: dataset.Source, run_dir: Path, *, resume: bool
) -> None:
    if not resume:
        raise RunError(
            f"{run_dir}: holds a run already; go on with --resume or choose another --out"
        )
    if last.state.recipe != recipe:
        old, new = last.state.recipe.model_dump(), recipe.model_dump()
        differing = ", ".join(
            f"{name} {old[name]} (now {new[name]})" for name in old if old[name] != new[name]
        )
        raise RunError(f"{last.path}: is of another recipe: {differing}")
    if last.state.data_sha256 != source.sha256:
        raise RunError(
            f"{last.path}: was trained on data with sha256 {last.state.data_sha256}; "
            f"{source.place} has {source.sha256}"
        )


def _hardware(run: Run) -> str:
    name = describe_device(run.device)
    return name if run.workers.count == 1 else f"{run.workers.count} × {name}"
