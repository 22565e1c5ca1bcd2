"""The device that computes: its name, and the arithmetic in which it is faster."""

import ctypes
import os
import platform
from pathlib import Path
from typing import Literal

import torch

from app.machine import usable_cpus
from training.errors import RecipeError
from training.kernels.weight_gradients import has_amx
from training.recipes import Arithmetic

# From glibc's malloc.h: all threads share one heap, which holds everything and never shrinks.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEEP = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))

CPUINFO = Path("/proc/cpuinfo")

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def choose_device(name: DeviceName, index: int = 0) -> torch.device:
    """Return the device of this name.

    Args:
        name: `auto` is CUDA where there is a GPU, and the processor otherwise; `mps` is the GPU of
            an Apple computer.
        index: of the GPU on this machine.

    Raises:
        RecipeError: a GPU is asked for, and torch sees none or none of this index.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device is cuda, but torch sees no CUDA device")
    if name == "cuda" and index >= torch.cuda.device_count():
        raise RecipeError(
            f"process {index} of this machine has no GPU: there are {torch.cuda.device_count()}"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("device is mps, but torch sees no GPU of Apple's")
    if name == "mps" and index > 0:
        raise RecipeError(f"process {index} of this machine has no GPU: device mps is one GPU")
    return torch.device(f"cuda:{index}" if name == "cuda" else name)


def use_allowed_processors() -> None:
    """Make torch start no more threads than there are processors for this process.

    torch knows the scheduler's processors, but no quota; threads over a quota are all stopped for
    the rest of a period as soon as it is spent. `OMP_NUM_THREADS` has its own way.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))


def resolve_precision(
    precision: Arithmetic, device: torch.device
) -> Literal["float32", "bfloat16"]:
    """Return the arithmetic that `auto` stands for on a device; others stand for themselves."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and _processor_is_faster_in_bfloat16()
    return "bfloat16" if fast else "float32"


def _processor_is_faster_in_bfloat16() -> bool:
    """Return whether the processor has AMX, or is AMD's with AVX-512 for bfloat16.

    With AVX-512 alone, two cores of an Intel Emerald Rapids (its AMX hidden from the virtual
    machine) compute a 3×3 convolution of 256 channels at 185 GFLOP/s in bfloat16 and at 344 in
    float32; two of an AMD Zen 4 at 430 to 500 in bfloat16.
    """
    avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # private: not in every torch
    return has_amx() or bool(avx512 and about_processor("vendor_id") == "AuthenticAMD")


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees, for the tensors of the next step.

    By default, glibc returns the pages of a large tensor when it is freed, and the next tensor of
    the same size causes a page fault for each: a fifth of a step of the exercise's CNN. Other C
    libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in _KEEP:
        mallopt(option, value)


def describe_device(device: torch.device) -> str:
    """Return the GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{name_processor()}, its GPU"
    threads = torch.get_num_threads()
    return f"{name_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def name_processor() -> str:
    """Return the processor's name."""
    return about_processor("model name") or platform.processor() or platform.machine()


def about_processor(field: str) -> str:
    """Return a field of the first processor in `/proc/cpuinfo`, or an empty string."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == field), "")
