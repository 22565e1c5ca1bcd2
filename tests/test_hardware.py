"""What training asks of the machine."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from training.hardware import keep_freed_memory

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
