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
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from training import checkpoint, data
from training.architectures import find_architecture
from training.checkpoint import Checkpoint, EpochFigures, RunState
from training.errors import Diverged, RecipeError, RunError
from training.optimization import learning_rate, make_optimizer, set_learning_rate
from training.recipes import Recipe

DeviceName = Literal["auto", "cpu", "cuda"]

EVALUATION_BATCH = 500
PROGRESS_STEPS = 16  # how often the loss is looked at: seldom enough for a GPU not to wait


class Reporter(Protocol):
    """Who is told how the run goes."""

    def epoch_started(self, epoch: int, epochs: int, images: int) -> None:
        """An epoch of so many images starts; the first is 1."""
        ...

    def progressed(self, images: int, loss: float, accuracy: float) -> None:
        """So many images of the epoch are done, with this mean loss and accuracy (0 to 1)."""
        ...

    def epoch_ended(self, figures: EpochFigures) -> None:
        """The epoch is done and its checkpoint is on disk."""
        ...


@dataclass(frozen=True)
class Run:
    """What does not change from epoch to epoch."""

    recipe: Recipe
    network: nn.Module
    optimizer: torch.optim.Optimizer
    train: data.Split
    heldout: data.Split
    mean: list[float]
    deviation: list[float]
    device: torch.device


def train(
    recipe: Recipe,
    source: data.Source,
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
    torch_device = choose_device(device)
    recipe = replace(recipe, precision=_resolve_precision(recipe, torch_device))
    architecture = find_architecture(recipe.architecture)
    if architecture.image_size != data.IMAGE_SIZE:
        raise RecipeError(f"{recipe.architecture} takes images of {architecture.image_size} pixels")
    last = checkpoint.newest(run_dir)
    if last is not None:
        _check_resumable(last, recipe, source, run_dir, resume=resume)
    _make_directory(run_dir)
    torch.use_deterministic_algorithms(torch_device.type == "cpu")
    torch.manual_seed(recipe.seed)
    network = architecture.build(len(source.classes), recipe.dropout)
    run = _prepare(recipe, source, network, torch_device)
    state = _new_state(run, source)
    if last is not None:
        last.load_network(run.network)
        last.load_optimizer(run.optimizer)
        state = last.state
        checkpoint.write_history(run_dir, state)
    while state.epoch < recipe.epochs:
        reporter.epoch_started(state.epoch + 1, recipe.epochs, len(run.train))
        figures = _epoch(run, state.epoch + 1, reporter)
        check_finite(run.network, figures.epoch)
        state = replace(state, history=(*state.history, figures))
        checkpoint.save(run_dir, state, run.network, run.optimizer)
        reporter.epoch_ended(figures)
    return checkpoint.open_run(run_dir)


def choose_device(name: DeviceName) -> torch.device:
    """Return the device of this name.

    Raises:
        RecipeError: CUDA is asked for and torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device is cuda, but torch sees no CUDA device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


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
            network(data.normalize(batch.to(device), mean, deviation)).float().cpu()
            for batch in images.split(EVALUATION_BATCH)
        ]
    )


def _epoch(run: Run, epoch: int, reporter: Reporter) -> EpochFigures:
    """Train on every image once and measure the held-out ones."""
    run.network.train()
    started = time.perf_counter()
    seed = run.recipe.seed * 100_003 + epoch
    torch.manual_seed(seed)
    total_loss = torch.zeros((), device=run.device)
    total_correct = torch.zeros((), device=run.device)
    images = 0
    for step, batch in enumerate(_augmented(run, seed), start=1):
        set_learning_rate(run.optimizer, learning_rate(run.recipe, len(run.train), epoch, step))
        loss, logits = _step(run, batch)
        total_loss += loss * len(batch)
        total_correct += (logits.argmax(1) == batch.labels).sum()
        images += len(batch)
        if step % PROGRESS_STEPS == 0 or images == len(run.train):
            mean_loss = total_loss.item() / images
            if not math.isfinite(mean_loss):
                raise Diverged(f"the mean loss is {mean_loss} in epoch {epoch}, step {step}")
            reporter.progressed(images, mean_loss, total_correct.item() / images)
    seconds = time.perf_counter() - started
    return EpochFigures(
        epoch=epoch,
        loss=total_loss.item() / images,
        train_accuracy=total_correct.item() / images,
        heldout_accuracy=_heldout_accuracy(run),
        images_per_second=images / seconds,
        seconds=seconds,
    )


def _step(run: Run, batch: data.Split) -> tuple[Tensor, Tensor]:
    """Take one step of the optimizer; return the batch's mean loss and its logits, detached."""
    images = data.normalize(batch.images, run.mean, run.deviation)
    bfloat16 = run.recipe.precision == "bfloat16"
    with torch.autocast(run.device.type, torch.bfloat16, enabled=bfloat16):
        logits = run.network(images)
    logits = logits.float()
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=run.recipe.label_smoothing)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    return loss.detach(), logits.detach()


def _augmented(run: Run, seed: int) -> Iterator[data.Split]:
    return data.epoch_batches(
        run.train,
        run.recipe.batch_size,
        torch.Generator().manual_seed(seed),
        flip=run.recipe.flip,
        translate=run.recipe.translate,
    )


def _heldout_accuracy(run: Run) -> float | None:
    if len(run.heldout) == 0:
        return None
    logits = compute_logits(run.network, run.heldout.images, run.mean, run.deviation, run.device)
    return (logits.argmax(1) == run.heldout.labels.cpu()).float().mean().item()


def _prepare(recipe: Recipe, source: data.Source, network: nn.Module, device: torch.device) -> Run:
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = source.load_train()
    chosen, held = data.split_holdout(images.labels, recipe.holdout, recipe.split_seed)
    mean, deviation = data.channel_statistics(images.images[chosen])
    return Run(
        recipe=recipe,
        network=network,
        optimizer=make_optimizer(recipe, network),
        train=images[chosen].to(device),
        heldout=images[held].to(device),
        mean=mean,
        deviation=deviation,
        device=device,
    )


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


def _new_state(run: Run, source: data.Source) -> RunState:
    return RunState(
        recipe=run.recipe,
        data_name=source.name,
        data_sha256=source.sha256,
        data_place=str(source.place.resolve()),
        classes=source.classes,
        mean=run.mean,
        deviation=run.deviation,
        hardware=_hardware(run.device),
        libraries={"python": platform.python_version(), "torch": torch.__version__},
    )


def _check_resumable(
    last: Checkpoint, recipe: Recipe, source: data.Source, run_dir: Path, *, resume: bool
) -> None:
    if not resume:
        raise RunError(
            f"{run_dir}: holds a run already; go on with --resume or choose another --out"
        )
    if last.state.recipe != recipe:
        old, new = last.state.recipe.as_dict(), recipe.as_dict()
        differing = ", ".join(
            f"{name} {old[name]} (now {new[name]})" for name in old if old[name] != new[name]
        )
        raise RunError(f"{last.path}: is of another recipe: {differing}")
    if last.state.data_sha256 != source.sha256:
        raise RunError(
            f"{last.path}: was trained on data with sha256 {last.state.data_sha256}; "
            f"{source.place} has {source.sha256}"
        )


def _resolve_precision(recipe: Recipe, device: torch.device) -> Literal["float32", "bfloat16"]:
    if recipe.precision != "auto":
        return recipe.precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Private, and so perhaps not there in another version; float32 is right everywhere.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return "bfloat16" if fast else "float32"


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {torch.get_num_threads()} threads"
