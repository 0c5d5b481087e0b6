"""Networks that are always asked about as many images at once.

How a sum of floats is rounded depends on the shape of the whole batch, and strong guidance amplifies rounding: a step's
gradient is normalised, and turns with the last digit of the image that it is taken at. So that an image is the same
whatever its batch, a network sees blocks of one fixed size, the last one filled up.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["block_size", "in_blocks", "without_filling"]

ON_A_CPU = 4  # images, where more at a time are no faster

_block = threading.local()


def block_size(device: str, batch_size: int) -> int:
    """Returns how many images networks see at a time on a device, for batches of a size."""
    return ON_A_CPU if device == "cpu" else batch_size


def in_blocks(network: Callable[..., Tensor], size: int | None, *inputs: Tensor) -> Tensor:
    """Returns the network's outputs for a batch, computed ``size`` images at a time.

    Args:
        network: Maps tensors that all lead with the batch to one that does.
        size: How many images it sees at a time, always; None for the whole batch at once.
        inputs: The tensors.
    """
    if size is None:
        return network(*inputs)
    count = len(inputs[0])
    missing = -count % size
    if missing:
        inputs = tuple(torch.cat([each, each[-1:].expand(missing, *each.shape[1:])]) for each in inputs)
    outputs = []
    for place, block in enumerate(zip(*(each.split(size) for each in inputs), strict=True)):
        _block.share = min(count - place * size, size) / size
        try:
            outputs.append(network(*block))
        finally:
            _block.share = 1.0
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[:count]


def without_filling(rows: int) -> int:
    """Returns how many rows of an input are not there to fill up a block; asked inside a network, as it runs."""
    return round(rows * getattr(_block, "share", 1.0))
