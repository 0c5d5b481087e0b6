"""What a call costs in time and memory, and an allocator that costs less.

torch is imported where it is used, since the command line starts with `keep_freed`.
"""

import ctypes
import gc
import os
import time
from collections.abc import Callable
from typing import Any

__all__ = ["keep_freed", "peak_memory", "timed"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SETTINGS = {"GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


def timed(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Returns the seconds of a call, with all that the device does for it, and its processor seconds."""
    import torch

    waits = {"cuda": lambda: torch.cuda.synchronize(device), "mps": torch.mps.synchronize}
    synchronize = waits.get(torch.device(device).type, lambda: None)
    synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    call()
    synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def peak_memory(call: Callable[[], object], device: str = "cpu") -> int:
    """Returns the most bytes that a call has allocated at once; on a CPU as torch's profiler traces them."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else the profiler reports its start and end on standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    assert profiled.profiler and profiled.profiler.kineto_results
    events: list[Any] = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def keep_freed() -> bool:
    """Makes glibc keep the memory of freed tensors for the next ones, and returns whether it does.

    By default, glibc returns large pieces of memory to the system when they are freed, and each sampling step has them
    mapped and zeroed again, page by page: a tenth of its time on a CPU. With this, the process keeps the most memory
    that it ever had. As that concerns the whole process, the command line calls it and the library does not. Without
    glibc, or with settings of its own in the environment, nothing is changed.
    """
    if SETTINGS & os.environ.keys():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # no glibc: Windows, macOS, musl
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_MAX, 0))
