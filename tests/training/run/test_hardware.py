"""The processor, the memory and the arithmetic that training finds on a machine."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.errors import RecipeError
from training.run import hardware
from training.run.hardware import DeviceName, choose_device, describe_device, resolve_precision

FAULTS = """
import resource, sys
import torch
from training.run.hardware import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def step() -> None:
    tensors = [torch.ones(16 << 20) for _ in range(3)]  # of 64 MiB each
    del tensors

for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(argument: str) -> int:
    command = [sys.executable, "-c", FAULTS, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    assert _page_faults("keep") < 500
    assert _page_faults("give back") > 2000


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(name: DeviceName) -> None:
    assert choose_device(name, 1) == torch.device("cuda:1")
    with pytest.raises(RecipeError, match="process 2 of this machine has no GPU: there are 2"):
        choose_device(name, 2)


def test_without_a_gpu_the_processor_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 1) == torch.device("cpu")
    with pytest.raises(RecipeError, match="no CUDA device"):
        choose_device("cuda")


def test_the_gpu_of_an_apple_computer_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="device is mps, but torch sees no GPU of Apple's"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = choose_device("mps")
    assert device == torch.device("mps")
    assert resolve_precision("auto", device) == "float32"
    assert describe_device(device).endswith(", its GPU")
    with pytest.raises(RecipeError, match="process 1 of this machine has no GPU"):
        choose_device("mps", 1)


THREADS = """
import os, sys
import torch
from click.testing import CliRunner
from training.run import hardware

os.environ.pop("OMP_NUM_THREADS", None)
torch.set_num_threads(4)
hardware.usable_cpus = lambda: int(sys.argv[1])
from training.cli import main
assert CliRunner().invoke(main, ["evaluate", "nowhere"]).exit_code == 1
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(("allowed", "threads"), [("2", "2"), ("16", "4")])
def test_training_starts_no_more_threads_than_processors_are_allowed(
    allowed: str, threads: str
) -> None:
    command = [sys.executable, "-c", THREADS, allowed]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == threads


@pytest.mark.parametrize(
    ("vendor", "avx512", "amx", "expected"),
    [
        ("AuthenticAMD", True, False, "bfloat16"),
        ("GenuineIntel", True, False, "float32"),
        ("GenuineIntel", True, True, "bfloat16"),
        ("AuthenticAMD", False, False, "float32"),
        (None, True, False, "float32"),
        (None, True, True, "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_faster_in_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    vendor: str | None,
    expected: str,
    *,
    avx512: bool,
    amx: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    cpuinfo = tmp_path / "cpuinfo"
    if vendor:
        cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(hardware, "CPUINFO", cpuinfo)
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == expected
    assert resolve_precision("float32", cpu) == "float32"


def test_the_processor_is_called_what_linux_calls_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(hardware, "CPUINFO", cpuinfo)
    assert hardware.name_processor()
    cpuinfo.write_text("processor\t: 0\nmodel name\t: One of two\nmodel name\t: Other\n")
    assert hardware.name_processor() == "One of two"
    assert describe_device(torch.device("cpu")).startswith("One of two, ")
