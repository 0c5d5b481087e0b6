"""What two sets share, by nearest neighbours: quality and variety apart.

A set stands for all points that lie within ``r_k(x)`` of one of its x, the distance to the k-th nearest other of it:

    precision   share of samples that lie in the reference                                      (k = 3)
    recall      share of the reference that lies in the samples                                 (k = 3)
    density     (1 / k n) sum_j #{i : |y_j - x_i| <= r_k(x_i)}, y_j the samples, x_i the reference   (k = 5)
    coverage    share of the reference's x_i with a sample within r_k(x_i)                        (k = 5)

Density is 1 and coverage ``1 - (1/2)^k`` in expectation for two large sets of the same law and size.

Sources: Kynkäänniemi et al. 2019 (the first two, by torch-fidelity), Naeem et al. 2020 (the others).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["COVERED", "INSIDE", "Shares", "density_coverage", "precision_recall", "recall", "within_reach"]

INSIDE, COVERED = 3, 5
"""The k of precision and recall, and that of density and coverage, as their papers have them."""

ROWS = 1024  # at a time


class Shares(NamedTuple):
    """Two figures, the first of the samples, the second of the reference."""

    first: float
    second: float


def precision_recall(samples: Float[Tensor, "A D"], reference: Float[Tensor, "B D"], k: int = INSIDE) -> Shares:
    """Returns precision and recall of samples, of which both sets have more than k."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(
        samples.cpu().double(),
        reference.cpu().double(),
        prc_neighborhood=k,
        prc_batch_size=ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return Shares(found["precision"], found["recall"])


def recall(samples: Float[Tensor, "A D"], reference: Float[Tensor, "B D"], k: int = INSIDE) -> float:
    """Returns recall alone, which needs no distance within the reference: for samples of which there are many sets."""
    return within_reach(reference, samples, k).any(1).double().mean().item()


def within_reach(
    samples: Float[Tensor, "A D"], reference: Float[Tensor, "B D"], k: int = COVERED
) -> Bool[Tensor, "A B"]:
    """Returns which samples lie within r_k of which points of the reference, more than k of them."""
    samples, reference = samples.cpu().double(), reference.cpu().double()
    radius = torch.cat([torch.cdist(rows, reference).kthvalue(k + 1).values for rows in reference.split(ROWS)])
    return torch.cat([torch.cdist(rows, reference) <= radius for rows in samples.split(ROWS)])


def density_coverage(samples: Float[Tensor, "A D"], reference: Float[Tensor, "B D"], k: int = COVERED) -> Shares:
    """Returns density and coverage of samples, of which the reference has more than k."""
    near = within_reach(samples, reference, k)
    return Shares(near.double().sum(1).mean().item() / k, near.any(0).double().mean().item())
