"""The training loop: from a recipe and its lessons to checkpoints.

    convscope-train train simple-cnn --seed 0

`train` prepares a run and trains its epochs, `_train_epoch` cuts the batches, `learn` takes a step
on one. Every epoch has random seeds of its own, made from the recipe's seed and the epoch's number,
so a run that is resumed after any epoch draws the same numbers as an undisturbed run. The test
split is not read here.
"""

import math
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor, nn

from app.commands import printable
from training.architectures import find_architecture, initialize_from
from training.data.augmentation import Epoch
from training.errors import DataError, Diverged, RecipeError, RunError
from training.kernels.weight_gradients import fast_weight_gradients
from training.recipes import Recipe
from training.run import checkpoint, distributed
from training.run.checkpoint import Checkpoint, EpochFigures, Learner, RunState
from training.run.distributed import Workers
from training.run.hardware import (
    DeviceName,
    choose_device,
    describe_device,
    keep_freed_memory,
    resolve_precision,
)
from training.run.image_lessons import check_takes_images
from training.run.lessons import Batch, Lesson, Lessons
from training.run.optimization import make_optimizer, schedule, set_learning_rate
from training.run.progress import Reporter, SilentReporter
from training.run.sources import Source, check_lessons, load_lessons
from training.run.start import average_with_start, begin_with, check_start
from training.run.teacher import Teacher
from training.run.trained import Trained, read_trained
from training.tasks import classification

AVERAGING_IMAGES = 500
AVERAGING_BATCHES = 10
"""Of so many images, over which the statistics of averaged weights are measured."""

PROGRESS_STEPS = 16
"""Steps from one look at the loss to the next: enough that a GPU need not wait."""


@dataclass(frozen=True)
class Run:
    """Everything of a run that stays the same from epoch to epoch.

    Attributes:
        recipe: with `precision` resolved.
        learner: the network and its optimizer.
        proxy: the small network that chooses images, where the recipe has one.
        lessons: all that it learns from.
        device: computes everything.
        workers: the run's processes.
        teacher: gives the answers to learn, where the recipe has one.
        start_weights: to average the final ones with, if the recipe says so.
    """

    recipe: Recipe
    learner: Learner
    proxy: Learner | None
    lessons: Lessons
    device: torch.device
    workers: Workers
    teacher: Teacher | None = None
    start_weights: dict[str, Tensor] | None = None


def train(
    recipe: Recipe,
    source: Source,
    run_dir: Path,
    reporter: Reporter,
    *,
    device: DeviceName = "auto",
    resume: bool = False,
) -> Checkpoint:
    """Train by a recipe; write a checkpoint after every epoch.

    Args:
        recipe: every number of the run.
        source: the images.
        run_dir: the run's folder; made if it does not exist.
        reporter: is told how the run goes.
        device: `auto` is CUDA where there is a GPU.
        resume: go on from the newest checkpoint, or start if there is none. A recipe of more
            epochs continues a run whose finished epochs are the same with it.

    Returns:
        The checkpoint of the last epoch.

    Raises:
        RecipeError: the recipe does not fit the device or names no architecture, or a start or a
            teacher that this run cannot have.
        RunError: `run_dir` holds a run and `resume` is off, holds a run of another recipe or of
            other data, or cannot be written; or its start or teacher has changed meanwhile.
        Diverged: the loss became infinite or not a number; the last checkpoint stands.
        DataError: the images cannot be read or split.
    """
    torch_device = choose_device(device, distributed.local_index())
    recipe = recipe.replace(precision=resolve_precision(recipe.precision, torch_device))
    check_lessons(recipe, source)
    last = checkpoint.newest(run_dir)
    if last is not None:
        _check_resumable(last, recipe, source, run_dir, resume=resume)
        if last.state.epoch == recipe.epochs:
            checkpoint.write_history(run_dir, last.state)
            return last
    lineage = _read_lineage(recipe, source, last)
    _make_directory(run_dir)
    keep_freed_memory()
    torch.use_deterministic_algorithms(torch_device.type == "cpu")
    # Deterministic algorithms would also fill every new tensor, in case it is read before written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with distributed.join(torch_device) as workers:
        begun = last.state.epoch if last else 0
        read = {name: trained.sha256 for name, trained in lineage.items()}
        workers.check_same((begun, recipe.model_dump(), source.sha256, read))
        _train_together(recipe, source, torch_device, workers, run_dir, last, lineage, reporter)
    return checkpoint.open_run(run_dir)


def _train_together(
    recipe: Recipe,
    source: Source,
    device: torch.device,
    workers: Workers,
    run_dir: Path,
    last: Checkpoint | None,
    lineage: Mapping[str, Trained],
    reporter: Reporter,
) -> None:
    """Train as one of the processes, from the last checkpoint; return when all have ended.

    A function of its own, because networks must be gone when the processes part (`join`).
    """
    run = _prepare(recipe, source, device, workers, lineage.get("teacher"))
    state = _new_state(run, source, lineage)
    if not workers.is_first:
        reporter = SilentReporter()
    if (start := lineage.get("start")) is not None:
        _begin(run, start, source, reporter)
        if recipe.start_part > 0:  # also of a run that goes on, whose own weights follow
            run = replace(run, start_weights=deepcopy(run.learner.network.state_dict()))
    if last is not None:
        last.load(run.learner, run.proxy)
        state = last.state.resumed_on(state)
    elif start is not None:
        state = state.begun_after(start.seconds, start.hardware)
    _train_epochs(run, state, run_dir, reporter)
    workers.wait_for_all()


def _train_epochs(run: Run, state: RunState, run_dir: Path, reporter: Reporter) -> None:
    """Train the remaining epochs, with a checkpoint after each."""
    if run.workers.is_first and state.epoch > 0:
        checkpoint.write_history(run_dir, state)
    while state.epoch < run.recipe.epochs:
        reporter.epoch_started(state.epoch + 1, run.recipe.epochs, len(run.lessons))
        figures = _train_epoch(run, state.epoch + 1, reporter)
        for learner in filter(None, (run.learner, run.proxy)):
            check_finite(learner.result, figures.epoch)
        state = replace(state, history=(*state.history, figures))
        if run.workers.is_first:
            checkpoint.save(run_dir, state, run.learner, run.proxy)
        reporter.epoch_ended(figures)


def _train_epoch(run: Run, number: int, reporter: Reporter) -> EpochFigures:
    """Look at every image once and learn from it, or from the hard ones; measure the held-out."""
    recipe, workers, lessons = run.recipe, run.workers, run.lessons
    has_right_answers = lessons.lesson.count_correct is not None
    run.learner.network.train()
    started = time.perf_counter()
    epoch = Epoch(number, recipe.seed)
    torch.manual_seed(workers.own(epoch.own_seed))
    totals = torch.zeros(3, device=run.device)  # loss, correct, images learned from
    seen = 0
    drafts = lessons.drafts(epoch, recipe.candidates)
    for step, draft in enumerate(drafts, start=1):
        if len(draft) < workers.count:
            break  # the last images are too few for every process to have one
        rate = schedule(recipe, len(lessons), number, step)
        share = workers.share(draft)
        weight = workers.weight(len(share), len(draft))
        batch = lessons.prepare(share)
        if run.proxy is not None:
            hardest = learn_hardest(run.proxy, batch, _selected(recipe, len(batch)), rate, weight)
            batch = batch[hardest]
        largest = _selected(recipe, workers.largest_share(len(draft)))
        loss, correct = learn(
            run.learner, batch, rate, weight, largest, run.teacher, lessons.lesson
        )
        run.learner.follow((number - 1) * math.ceil(len(lessons) / recipe.candidates) + step)
        totals += torch.stack([loss * len(batch), correct, torch.full_like(loss, len(batch))])
        seen += len(draft)
        if step % PROGRESS_STEPS == 0 or seen == len(lessons):
            mean_loss, accuracy = _means(totals)
            if not math.isfinite(mean_loss):
                raise Diverged(f"the mean loss is {mean_loss} in epoch {number}, step {step}")
            reporter.progressed(seen, mean_loss, accuracy if has_right_answers else None)
    mean_loss, accuracy = _means(workers.sum(totals))
    if run.start_weights is not None and number == recipe.epochs:
        _average_with_start(run, run.start_weights, epoch)
    seconds = time.perf_counter() - started
    return EpochFigures(
        epoch=number,
        loss=mean_loss,
        train_accuracy=accuracy if has_right_answers else None,
        heldout_accuracy=lessons.measure(run.learner.result, number) if workers.is_first else None,
        images_per_second=seen / seconds,
        seconds=seconds,
    )


def learn(
    learner: Learner,
    batch: Batch,
    rate: float,
    weight: float = 1.0,
    largest: int = 0,
    teacher: Teacher | None = None,
    lesson: Lesson = classification.LESSON,
) -> tuple[Tensor, Tensor]:
    """Take a step on a batch; return its mean loss and its number of correct answers, detached.

    Args:
        learner: the network and its optimizer.
        batch: to learn from.
        rate: part of the peak learning rate.
        weight: of the batch's mean loss, where the batch is a process's share of a larger one.
        largest: images in the largest share, where there are several: all processes must average
            gradients equally often.
        teacher: its answers are learned; without one, the targets are.
        lesson: of the network's task.
    """
    total = torch.zeros((), device=batch.images.device)
    correct = torch.zeros((), dtype=torch.int64, device=batch.images.device)
    set_learning_rate(learner.optimizer, rate)
    learner.optimizer.zero_grad(set_to_none=True)
    largest = max(largest, len(batch))
    passes = math.ceil(largest / (learner.recipe.micro_batch or largest))
    for part in batch.parts(passes):
        answers = part.targets if teacher is None else _answers(teacher, learner, part.images)
        outputs = _outputs(learner, part.images)
        losses = lesson.losses(outputs, answers, learner.recipe.label_smoothing)
        loss = losses.sum() / len(batch)
        (loss * weight).backward()
        total += loss.detach()
        if lesson.count_correct is not None:
            correct += lesson.count_correct(outputs, part.targets)
    learner.optimizer.step()
    return total, correct


def learn_hardest(
    proxy: Learner, batch: Batch, count: int, rate: float, weight: float = 1.0
) -> Tensor:
    """Take a proxy's step on the images with the highest loss; return their places, `[count]`.

    Args:
        proxy: the small network and its optimizer.
        batch: to choose from.
        count: how many images to choose.
        rate: part of the peak learning rate.
        weight: as in `learn`.
    """
    logits = _outputs(proxy, batch.images)
    losses = classification.losses(logits, batch.targets, proxy.recipe.label_smoothing)
    hardest = losses.detach().topk(min(count, len(batch)), sorted=False).indices
    set_learning_rate(proxy.optimizer, rate)
    proxy.optimizer.zero_grad(set_to_none=True)
    (losses[hardest].mean() * weight).backward()
    proxy.optimizer.step()
    return hardest


@torch.no_grad()
def _answers(teacher: Teacher, learner: Learner, images: Tensor) -> Tensor:
    """Return a teacher's probabilities, `[N,classes]`, in the arithmetic of the run."""
    bfloat16 = learner.recipe.precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        answers: Tensor = teacher(images)
    return answers


def _outputs(learner: Learner, images: Tensor) -> Any:
    """Return the network's float32 outputs; it computes as the recipe's precision says."""
    bfloat16 = learner.recipe.precision == "bfloat16"
    with (
        torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16),
        fast_weight_gradients(images.device, bfloat16=bfloat16),
    ):
        outputs = learner.averaging(images)
    if isinstance(outputs, tuple):
        return tuple(each.float() for each in outputs)
    return outputs.float()


def _selected(recipe: Recipe, candidates: int) -> int:
    """Return the number of images to learn from among the candidates."""
    return min(recipe.batch_size, math.ceil(candidates * recipe.selected - 1e-9))


def _means(totals: Tensor) -> tuple[float, float]:
    """Return an image's mean loss and accuracy from the epoch's sums so far."""
    loss, correct, images = totals.tolist()
    return loss / images, correct / images


def _read_lineage(recipe: Recipe, source: Source, last: Checkpoint | None) -> dict[str, Trained]:
    """Read the trained networks that the rest of the run needs: `start` and `teacher`.

    Raises:
        RecipeError: one of them does not fit the run.
        RunError: one of them has changed since the run began.
    """
    needed = [("start", recipe.start)] if last is None or recipe.start_part > 0 else []
    lineage = {}
    for field, folder in (*needed, ("teacher", recipe.teacher)):
        if not folder:
            continue
        with _named(field, folder):
            trained = read_trained(Path(folder))
            trained.check_unseen(recipe, source)
            if field == "start":
                check_start(recipe, trained, source.classes)
            else:
                _check_teacher(recipe, trained, source.classes)
        if last is not None and last.state.lineage.get(field, trained.sha256) != trained.sha256:
            raise RunError(f"{last.path}: {field} is {folder!r}, whose weights have changed since")
        lineage[field] = trained
    return lineage


@contextmanager
def _named(field: str, folder: str) -> Iterator[None]:
    """Say of which of a recipe's networks an error is."""
    try:
        yield
    except (RecipeError, RunError) as exc:
        raise RecipeError(f"{field} is {folder!r}: {exc}") from exc


def _prepare(
    recipe: Recipe,
    source: Source,
    device: torch.device,
    workers: Workers,
    teacher: Trained | None = None,
) -> Run:
    """Load the lessons, and build the networks."""
    if recipe.batch_size < workers.count:
        raise RecipeError(
            f"batch_size is {recipe.batch_size}; {workers.count} processes need at least "
            f"{workers.count}"
        )
    lessons = load_lessons(recipe, source, device)
    if len(lessons) < workers.count:
        raise DataError(
            f"{source.place}: {len(lessons)} images to learn from; {workers.count} processes need "
            f"at least {workers.count}"
        )
    first, mean, deviation = lessons.some_images(), lessons.mean, lessons.deviation
    with _named("teacher", recipe.teacher):
        taught_by = Teacher(teacher, first, mean, deviation) if teacher is not None else None
    torch.manual_seed(recipe.seed)
    learner = _new_learner(recipe, recipe.architecture, lessons.outputs, first, workers)
    proxy = None
    if recipe.proxy:
        alone = recipe.replace(averaged=0.0)  # a proxy is for the run alone
        proxy = _new_learner(alone, recipe.proxy, lessons.outputs, first, workers)
    return Run(
        recipe=recipe,
        learner=learner,
        proxy=proxy,
        lessons=lessons,
        device=device,
        workers=workers,
        teacher=taught_by,
    )


def _begin(run: Run, start: Trained, source: Source, reporter: Reporter) -> None:
    """Give the network the weights that the recipe starts from."""
    images = run.lessons.some_images()
    with _named("start", run.recipe.start):
        anew = begin_with(
            start, run.learner.network, images, run.recipe.architecture, source.classes
        )
    if anew:
        other = start.architecture != run.recipe.architecture
        why = f"is a {start.architecture}" if other else f"has other classes than {source.name}"
        reporter.told(f"{printable(run.recipe.start)} {why}; new layers: {anew}")


def _average_with_start(run: Run, start: dict[str, Tensor], epoch: Epoch) -> None:
    """Average the weights with the start's; every process measures by the same images."""
    lessons = run.lessons
    size = min(AVERAGING_IMAGES, len(lessons))
    drafts = (draft for draft in lessons.drafts(epoch, size) if len(draft) == size)
    images = (lessons.prepare(draft).images for draft in islice(drafts, AVERAGING_BATCHES))
    average_with_start(run.learner.network, start, run.recipe.start_part, images)


def _new_learner(
    recipe: Recipe, architecture: str, outputs: int, images: Tensor, workers: Workers
) -> Learner:
    """Build a network and its optimizer on the device of the images, which are normalised."""
    network = find_architecture(architecture).build(outputs, recipe.dropout).to(images.device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialize_from(network, images)
    averaging = workers.average_gradients_of(network)
    average = deepcopy(network).requires_grad_(requires_grad=False) if recipe.averaged else None
    return Learner(recipe, network, averaging, make_optimizer(recipe, network), average)


def _make_directory(run_dir: Path) -> None:
    """Raise before an epoch is spent if the run cannot be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=run_dir):
            pass
    except OSError as exc:
        raise RunError(f"{run_dir}: cannot be written: {exc}") from exc


def check_finite(network: nn.Module, epoch: int) -> None:
    """Raise Diverged unless all weights are finite: no loss shows the effect of the last step."""
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise Diverged(f"{name} holds values that are not finite after epoch {epoch}")


def _check_teacher(recipe: Recipe, trained: Trained, classes: tuple[str, ...]) -> None:
    if trained.classes != classes:
        raise RecipeError("it has other classes")
    check_takes_images(trained.architecture, recipe.crop)


def _new_state(run: Run, source: Source, lineage: Mapping[str, Trained]) -> RunState:
    return RunState(
        recipe=run.recipe,
        data_name=source.name,
        data_sha256=source.sha256,
        data_place=str(source.place.absolute()),
        classes=source.classes,
        mean=run.lessons.mean,
        deviation=run.lessons.deviation,
        hardware=_hardware(run),
        libraries={"python": platform.python_version(), "torch": torch.__version__},
        lineage={name: trained.sha256 for name, trained in lineage.items()},
    )


def _check_resumable(
    last: Checkpoint, recipe: Recipe, source: Source, run_dir: Path, *, resume: bool
) -> None:
    if not resume:
        raise RunError(
            f"{run_dir}: holds a run already; go on with --resume or choose another --out"
        )
    if last.state.recipe != recipe:
        _check_other_epochs(last, recipe)
    if last.state.data_sha256 != source.sha256:
        raise RunError(
            f"{last.path}: was trained on data with sha256 {last.state.data_sha256}; "
            f"{source.place} has {source.sha256}"
        )


def _check_other_epochs(last: Checkpoint, recipe: Recipe) -> None:
    """Raise unless only the number of epochs differs, and the finished ones do not depend on it.

    The schedule and the crops of the first epochs do; and after the last epoch, a mean with the
    start's weights.
    """
    old, new = last.state.recipe.model_dump(), recipe.model_dump()
    differing = [name for name in old if old[name] != new[name]]
    if differing != ["epochs"]:
        told = ", ".join(f"{name} {old[name]} (now {new[name]})" for name in differing)
        raise RunError(f"{last.path}: is of another recipe: {told}")
    if recipe.epochs < last.state.epoch:
        raise RunError(
            f"{last.path}: has {last.state.epoch} epochs; epochs {recipe.epochs} are fewer"
        )
    causes = {
        f"schedule {recipe.schedule}": recipe.schedule != "constant",
        "cropped images": recipe.cropped > 0,
        f"start_part {recipe.start_part}": recipe.start_part > 0
        and last.state.epoch == old["epochs"],
    }
    if cause := next((cause for cause, is_one in causes.items() if is_one), None):
        raise RunError(
            f"{last.path}: is of a run of {old['epochs']} epochs, and with {cause} each epoch "
            f"depends on their number; start anew, without --resume, with --epochs {recipe.epochs} "
            f"--out {last.path.parent}-{recipe.epochs}-epochs"
        )


def _hardware(run: Run) -> str:
    name = describe_device(run.device)
    return name if run.workers.count == 1 else f"{run.workers.count} × {name}"
