"""Rows of a batch: taken from whatever holds one, and sent to where the batch is."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["send", "take"]


def send(rows: Tensor, device: torch.device | str) -> Tensor:
    """Returns a tensor of the host on a device, without waiting for what the device is doing."""
    if torch.device(device).type == "cuda" and rows.device.type == "cpu":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


def take(held: Any, rows: Int[Tensor, " N"]) -> Any:  # noqa: ANN401
    """Returns the same with those rows of every tensor in it, in that order and as often as they are named.

    Args:
        held: Tensors, (named) tuples or lists of such, or anything else; what has no rows stays as it is, numbers and
            tensors without dimensions among it.
        rows: Their numbers.
    """
    if isinstance(held, Tensor):
        return held[rows] if held.ndim else held
    if isinstance(held, tuple | list):
        parts = [take(part, rows) for part in held]
        return type(held)(*parts) if hasattr(held, "_fields") else type(held)(parts)
    return held
