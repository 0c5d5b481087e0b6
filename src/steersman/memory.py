"""How libraries say that memory ran out, and smaller batches where it does."""

from collections.abc import Callable
from typing import TypeVar

import torch

from steersman.errors import notice

__all__ = ["halving", "is_out_of_memory"]

SAID = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory", "Cannot allocate memory")
"""What CUDA, MPS, cuDNN, cuBLAS, the CPU's allocator and the system say."""

Made = TypeVar("Made")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory ran out, whichever library raised it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID)


def halving(work: Callable[[int], Made], size: int, tell: Callable[[str], object] = notice) -> tuple[Made, int]:
    """Returns what is made of images so many at a time, and that number, which is halved until the memory holds them.

    Args:
        work: Makes it, so many at a time.
        size: How many at a time at first; the error is raised where the memory does not hold one.
        tell: Is told when fewer are taken.
    """
    first = size
    while True:
        try:
            made = work(size)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        else:
            if size < first:
                tell(f"the device's memory does not hold {first} images at a time: {size} are taken from now on")
            return made, size
        size //= 2  # after the error has gone, and with it what was computed
