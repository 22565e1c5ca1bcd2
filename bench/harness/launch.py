"""Run a program that ends with its parent: `python -I -S launch.py PARENT PROGRAM ARGUMENT…`.

The kernel sends SIGTERM to the program when the thread that started it ends, even by SIGKILL. The
setting survives `exec`, so the program keeps this process's id, and signals reach it directly.
`subprocess` could make the same call in `preexec_fn`, which is unsafe in a process with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Ask the kernel for the signal, then become the program.

    Raises:
        OSError: the kernel refused, or the program cannot be run.
    """
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(parent):
        sys.exit("the parent ended before the program was started")
    os.execvp(command[0], command)  # noqa: S606 -- a shell would be one process too many


if __name__ == "__main__":
    main()
