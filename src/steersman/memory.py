"""How libraries say that memory ran out."""

import torch

__all__ = ["is_out_of_memory"]

SAID = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory", "Cannot allocate memory")
"""What CUDA, MPS, cuDNN, cuBLAS, the CPU's allocator and the system say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory ran out, whichever library raised it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID)
