"""How long something takes, with all that a device does of it."""

import time
from collections.abc import Callable

import torch

__all__ = ["timed"]


def timed(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Returns the seconds that something takes, with all that a device does of it, and the processor's."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    began, at = time.perf_counter(), time.process_time()
    call()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, time.process_time() - at
