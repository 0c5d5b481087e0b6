"""What the C library does with memory that a network's step has freed, and that the next step wants again."""

import ctypes
import os

__all__ = ["keep_freed"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SETTINGS = {"GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


def keep_freed() -> bool:
    """Has glibc keep the memory of freed tensors for the next ones; returns whether it does.

    As it comes, glibc gives the system back what is freed in large pieces, and every step of a walk has it mapped and
    zeroed anew, page for page: a tenth of the time of a step on a CPU. The process then holds on to the most that it
    ever took. It concerns all of the process, so the command line asks for it and the library does not. Where there is
    no glibc, or where the environment has settings of its own for it, nothing is changed.
    """
    if SETTINGS & os.environ.keys():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # no glibc: Windows, macOS, musl
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_MAX, 0))
