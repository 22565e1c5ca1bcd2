"""What computes: the device, what it is called, and in which precision it is faster."""

import ctypes
import platform
from pathlib import Path
from typing import Literal

import torch

from training.errors import RecipeError
from training.recipes import Arithmetic

# From glibc's malloc.h: all threads share one heap, which never shrinks, and nothing lies outside.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEEP = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))

CPUINFO = Path("/proc/cpuinfo")

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_device(name: DeviceName, index: int = 0) -> torch.device:
    """Return the device of this name.

    Args:
        name: `auto` is CUDA where there is a GPU.
        index: which of a machine's GPUs.

    Raises:
        RecipeError: CUDA is asked for and torch sees no GPU, or none of this index.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device is cuda, but torch sees no CUDA device")
    if name == "cuda" and index >= torch.cuda.device_count():
        raise RecipeError(
            f"process {index} of this machine has no GPU: there are {torch.cuda.device_count()}"
        )
    return torch.device(f"cuda:{index}" if name == "cuda" else name)


def resolve_precision(
    precision: Arithmetic, device: torch.device
) -> Literal["float32", "bfloat16"]:
    """Return what `auto` means on a device; anything else is what it is."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = _processor_is_faster_in_bfloat16()
    return "bfloat16" if fast else "float32"


def _processor_is_faster_in_bfloat16() -> bool:
    """Whether there is AMX, or AVX-512 for bfloat16 on a processor of AMD.

    With AVX-512 alone, two cores of an Intel Emerald Rapids (its AMX hidden from the virtual
    machine) compute a 3×3 convolution of 256 channels at 185 GFLOP/s in bfloat16 and at 344 in
    float32; two of an AMD Zen 4 at 430 to 500 in bfloat16.
    """
    avx512 = _probe("_is_avx512_bf16_supported")
    return has_amx() or (avx512 and about_processor("vendor_id") == "AuthenticAMD")


def has_amx() -> bool:
    """Whether the processor has units for products of bfloat16 matrices (Intel AMX)."""
    return _probe("_is_amx_tile_supported")


def _probe(name: str) -> bool:
    """Ask torch about the processor; a version of torch without that private question: no."""
    found: bool = getattr(torch.cpu, name, bool)()
    return found


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, for the next step's tensors.

    Else glibc gives a large tensor's pages back when it is freed, and the next step's tensor of the
    same size gets them anew, one page fault after the other: a fifth of a step of the exercise's
    CNN. Another C library is left as it is.
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
    threads = torch.get_num_threads()
    return f"{name_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def name_processor() -> str:
    """Return what the processor is called."""
    return about_processor("model name") or platform.processor() or platform.machine()


def about_processor(field: str) -> str:
    """Return a field of the first processor in `/proc/cpuinfo`; empty if it is not there."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == field), "")
