"""How two sets of features differ, and how much one set varies.

**Fréchet distance** (Heusel et al. 2017; FID with Inception's features): with means mu and covariances ``C = R^T R``,

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),    tr (C_a C_b)^(1/2) = sum of singular values of R_a R_b^T.

So no root of a product of nearly singular matrices is taken, which costs torch-fidelity 1e-5 at 300 images and 512
features. The distance of a sample is biased upwards, more so for fewer images: compare equal counts only.

**Kernel distance** (Bińkowski et al. 2018; KID), ``k(x, y) = (x·y / D + 1)^3``, of all pairs instead of random subsets:

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j).

**Neighbours**: with ``r_k(y)`` the distance of y to its k-th nearest neighbour in its own set,

    precision    share of samples within r_3 of a reference image           (Kynkäänniemi et al. 2019)
    recall       share of reference images within r_3 of a sample
    density      (1 / k n) sum_j #{i : |x_j - y_i| <= r_5(y_i)}             (Naeem et al. 2020)
    coverage     share of reference images with a sample within r_5

**Spread** of a set, the root mean square distance of two of its images: ``|x_i - x_j|^2`` has the mean ``2 tr C``.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steersman.errors import InputError

__all__ = [
    "COVERED",
    "INSIDE",
    "Moments",
    "across",
    "frechet",
    "frechet_distance",
    "inside",
    "kid",
    "moments",
    "moments_of_covariance",
    "spread",
    "within",
    "within_reach",
]

INSIDE, COVERED = 3, 5  # k of precision and recall, and of density and coverage, as in their papers
ROWS = 1024  # rows that are compared at a time


class Moments(NamedTuple):
    """The mean of a set of features and a root R of its covariance, ``C = R^T R``, in float64."""

    mean: Float[Tensor, " D"]
    root: Float[Tensor, "R D"]


def moments(features: Float[Tensor, "B D"]) -> Moments:
    """Returns the moments of features, one row for each image."""
    features = _at_least_two(features)
    mean = features.mean(0)
    return Moments(mean, torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5)


def moments_of_covariance(mean: Float[Tensor, " D"], covariance: Float[Tensor, "D D"]) -> Moments:
    """Returns the moments of a set with a known mean and covariance; negative eigenvalues count as 0."""
    values, vectors = torch.linalg.eigh(covariance.cpu().double())
    return Moments(mean.cpu().double(), values.clamp(min=0).sqrt()[:, None] * vectors.T)


def frechet(a: Moments, b: Moments) -> float:
    """Returns the Fréchet distance of two sets, in squared units of the features."""
    cross = torch.linalg.svdvals(a.root @ b.root.T).sum()
    spread = a.root.square().sum() + b.root.square().sum() - 2 * cross
    return float((a.mean - b.mean).square().sum() + spread.clamp(min=0))


def frechet_distance(features_a: Float[Tensor, "A D1"], features_b: Float[Tensor, "B D2"]) -> float:
    """Returns the Fréchet distance of two sets of features, computed in float64."""
    if features_a.shape[1] != features_b.shape[1]:
        raise InputError(
            "features must be two sets of the same network, got sets with "
            f"{features_a.shape[1]} and {features_b.shape[1]} columns"
        )
    return frechet(moments(features_a), moments(features_b))


def kid(x: Float[Tensor, "A D"], y: Float[Tensor, "B D"]) -> float:
    """Returns the kernel distance of two sets of at least two rows each; unbiased, so it may be below 0."""
    x, y = x.cpu().double(), y.cpu().double()
    return within(x) + within(y) - 2 * across(x, y).mean().item()


def within(x: Float[Tensor, "A D"]) -> float:
    """Returns ``mean_{i != j} k(x_i, x_j)``."""
    total = sum(_kernel(rows, x).sum() for rows in x.split(ROWS)) - (x.square().mean(1) + 1).pow(3).sum()
    return float(total) / (len(x) * (len(x) - 1))


def across(x: Float[Tensor, "A D"], y: Float[Tensor, "B D"]) -> Float[Tensor, " A"]:
    """Returns ``mean_j k(x_i, y_j)`` of each row i."""
    return torch.cat([_kernel(rows, y).mean(1) for rows in x.split(ROWS)])


def _kernel(x: Float[Tensor, "A D"], y: Float[Tensor, "B D"]) -> Float[Tensor, "A B"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def within_reach(points: Float[Tensor, "A D"], centres: Float[Tensor, "B D"], k: int) -> Bool[Tensor, "A B"]:
    """Returns which points are within ``r_k`` of which centres, of which there are more than k."""
    points, centres = points.cpu().double(), centres.cpu().double()
    radius = torch.cat([torch.cdist(rows, centres).kthvalue(k + 1).values for rows in centres.split(ROWS)])
    return torch.cat([torch.cdist(rows, centres) <= radius for rows in points.split(ROWS)])


def inside(points: Float[Tensor, "A D"], centres: Float[Tensor, "B D"]) -> Bool[Tensor, " A"]:
    """Returns which points are within ``r_3`` of any centre: precision for samples, recall for the reference."""
    return within_reach(points, centres, INSIDE).any(1)


def spread(features: Float[Tensor, "B D"]) -> float:
    """Returns the root mean square distance over all pairs of different rows, of which there are at least two."""
    return math.sqrt(2 * float(_at_least_two(features).var(0).sum()))


def _at_least_two(features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    if len(features) < 2:
        raise InputError(f"features must have at least 2 rows, got {len(features)}")
    return features.cpu().double()
