"""How much memory something takes at its worst moment, above what was taken before."""

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_memory"]


def peak_memory(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Returns the most bytes that were allocated at once while something was done, above those before.

    On a CPU, torch's profiler tells of all that its allocator gives and takes back, which takes time of its own.

    Args:
        call: What is done.
        device: Where it allocates.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler says on standard error that it begins, and ends
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    assert profiled.profiler and profiled.profiler.kineto_results
    events: list[Any] = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
