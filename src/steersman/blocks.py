"""Networks that are always asked about as many images at once.

How a sum of floats is rounded depends on the shape of the whole batch, and strong guidance amplifies rounding: a step's
gradient is normalised, and turns with the last digit of the image that it is taken at. So that an image is the same
whatever its batch, a network sees blocks of one fixed size, the last one filled up.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["block_size", "in_blocks"]

ON_A_CPU = 4  # images, where more at a time are no faster


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
    outputs = [network(*block) for block in zip(*(each.split(size) for each in inputs), strict=True)]
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[:count]
