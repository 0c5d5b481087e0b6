"""The kernel distance of two sets (Bińkowski et al. 2018: KID, with Inception's features), unbiased.

    k(x, y) = (x·y / D + 1)^3,
    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j).

All pairs are taken: the mean of torch-fidelity's random subsets, without their chance. It may be slightly below 0.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["across", "kid", "within"]

ROWS = 1024  # at a time


def _kernel(x: Float[Tensor, "A D"], y: Float[Tensor, "B D"]) -> Float[Tensor, "A B"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def within(x: Float[Tensor, "A D"]) -> float:
    """Returns ``mean_{i != j} k(x_i, x_j)`` of at least two rows."""
    total = sum(_kernel(rows, x).sum() for rows in x.split(ROWS)) - (x.square().mean(1) + 1).pow(3).sum()
    return float(total) / (len(x) * (len(x) - 1))


def across(x: Float[Tensor, "A D"], y: Float[Tensor, "B D"]) -> Float[Tensor, " A"]:
    """Returns ``mean_j k(x_i, y_j)`` of each row."""
    return torch.cat([_kernel(rows, y).mean(1) for rows in x.split(ROWS)])


def kid(x: Float[Tensor, "A D"], y: Float[Tensor, "B D"]) -> float:
    """Returns the kernel distance of two sets of at least two rows each."""
    x, y = x.cpu().double(), y.cpu().double()
    return within(x) + within(y) - 2 * across(x, y).mean().item()
