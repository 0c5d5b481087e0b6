"""Rows of a batch: taken from whatever holds one, and sent to where the batch is."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["each_tensor", "send", "take"]


def send(rows: Tensor, device: torch.device | str) -> Tensor:
    """Returns a tensor of the host on a device, without waiting for what the device is doing."""
    if torch.device(device).type == "cuda" and rows.device.type == "cpu":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


def take(held: Any, rows: Int[Tensor, " N"]) -> Any:  # noqa: ANN401
    """Returns the same with those rows of every tensor in it, in that order and as often as they are named.

    Args:
        held: Tensors, whatever `each_tensor` finds them in, or anything else; what has no rows stays as it is, numbers
            and tensors without dimensions among it.
        rows: Their numbers.
    """
    return each_tensor(held, lambda x: x[rows] if x.ndim else x)


def each_tensor(held: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """Returns the same with every tensor in it changed; it is held by (named) tuples, lists and dictionaries."""
    if isinstance(held, Tensor):
        return change(held)
    if isinstance(held, tuple | list):
        parts = [each_tensor(part, change) for part in held]
        return type(held)(*parts) if hasattr(held, "_fields") else type(held)(parts)
    if isinstance(held, dict):
        return {key: each_tensor(part, change) for key, part in held.items()}
    return held
