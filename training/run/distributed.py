"""One run in several processes or on several machines, as torchrun starts them.

    torchrun --nproc-per-node=2 -m training.cli train speednet

Every process cuts the same global batches and learns from its share of each. Gradients are averaged
(DistributedDataParallel) by gloo between processors and by NCCL between GPUs. Batch normalisation
sees a process's own share. Only the first process writes; the others read the same run folder, so
machines must share it.
"""

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import RunError
from training.run.lessons import Rows

R = TypeVar("R", bound=Rows)

GONE = "another process of the run is gone or does not answer; go on with --resume"


@dataclass(frozen=True)
class Workers:
    """The processes of a run, and the rank of this one."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def share(self, batch: R) -> R:
        """Return this process's part of a global batch."""
        if self.count == 1:
            return batch
        return batch[torch.arange(self.rank, len(batch), self.count)]

    def weight(self, share: int, batch: int) -> float:
        """Return the weight of a share's mean: the weighted workers' average is the global mean."""
        return share * self.count / batch

    def largest_share(self, batch: int) -> int:
        """Return the number of images in the first process's share, the largest."""
        return -(-batch // self.count)

    def own(self, seed: int) -> int:
        """Return a seed that differs for every process and every seed of the run."""
        return seed * self.count + self.rank

    def average_gradients_of(self, network: nn.Module) -> nn.Module:
        """Return the network, wrapped if there are other processes."""
        return network if self.count == 1 else DistributedDataParallel(network)

    def sum(self, figures: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.count > 1:
            distributed.all_reduce(figures)
        return figures

    def check_same(self, facts: object) -> None:
        """Raise RunError unless all processes start from the same facts.

        Raises:
            RunError: a process reads another run folder, other data or another recipe.
        """
        if self.count == 1:
            return
        all_facts: list[object] = [None] * self.count
        distributed.all_gather_object(all_facts, facts)
        differing = [rank for rank, other in enumerate(all_facts) if other != all_facts[0]]
        if differing:
            raise RunError(
                f"processes {differing} do not start where process 0 does: "
                "all must share the run's folder, the recipe and the data"
            )

    def wait_for_all(self) -> None:
        """Return when every process has called this."""
        if self.count > 1:
            distributed.barrier()


def is_first_process() -> bool:
    """Return whether this is the first of torchrun's processes, which prints."""
    return os.environ.get("RANK", "0") == "0"


def local_index() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def join(device: torch.device) -> Iterator[Workers]:
    """Connect the processes that torchrun has started, if it has, for one run.

    Wrapped networks must be gone when the body ends: the last reference to the group of processes
    would be theirs, and giving it up waits for gloo's threads, which wait for the interpreter's
    lock (pytorch/pytorch#56297). An error's frames are cleared, so that they keep none.

    Raises:
        RunError: another process is gone or does not answer, or torchrun's variables are missing.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        yield Workers()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    before = signal.signal(signal.SIGTERM, _end_with_a_word)
    try:
        _meet("nccl" if device.type == "cuda" else "gloo")
        yield Workers(distributed.get_rank(), distributed.get_world_size())
    except BaseException as exc:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process ends, and says why first
        _clear_frames(exc)
        if not (isinstance(exc, RuntimeError) and _is_communication(exc)):
            raise
        raise RunError(f"{GONE} ({exc})") from exc
    else:
        signal.signal(signal.SIGTERM, before)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the functions that an error and its causes left were working on."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _meet(backend: str) -> None:
    try:
        distributed.init_process_group(backend)
    except ValueError as exc:
        raise RunError(f"RANK is set, as by torchrun, but another variable is not: {exc}") from exc


def _end_with_a_word(_signal: int, _frame: FrameType | None) -> None:
    """Raise RunError: torchrun terminates the other processes when one is gone."""
    raise RunError(GONE)


def _is_communication(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, distributed.DistError) or "gloo" in text or "nccl" in text
