"""How far two sets' features are apart, as Gaussians (Heusel et al. 2017: FID, with Inception's features).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),    C = R^T R

With roots R of the covariances, ``tr (C_a C_b)^(1/2)`` is the sum of the singular values of ``R_a R_b^T``. So no square
root of a product of nearly singular matrices is taken, whose rounding torch-fidelity's distance has: 1e-5 for 300
images and 512 features, where the distance of a set from itself is below 0. Of images, the root comes from a QR
decomposition of the centred features over ``sqrt(n - 1)``; of a saved covariance ``V diag(l) V^T`` it is
``diag(l)^(1/2) V^T``.

A sample's distance is biased upwards, the more the fewer the images: compare equal counts only.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import InputError

__all__ = ["Moments", "frechet", "frechet_distance", "moments", "moments_of_covariance"]


class Moments(NamedTuple):
    """A set's mean and a root of its covariance, in float64.

    Attributes:
        mean: ``mu``.
        root: ``R``, with ``C = R^T R``.
    """

    mean: Float[Tensor, " D"]
    root: Float[Tensor, "R D"]


def moments(features: Float[Tensor, "B D"]) -> Moments:
    """Returns the moments of a set, one row an image.

    Raises:
        InputError: There are fewer than two rows.
    """
    if len(features) < 2:
        raise InputError(f"features must have at least 2 rows, got {len(features)}")
    features = features.cpu().double()
    mean = features.mean(0)
    return Moments(mean, torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5)


def moments_of_covariance(mean: Float[Tensor, " D"], covariance: Float[Tensor, "D D"]) -> Moments:
    """Returns the moments of a set of which mean and covariance are known; eigenvalues below 0 count as 0."""
    values, vectors = torch.linalg.eigh(covariance.cpu().double())
    return Moments(mean.cpu().double(), values.clamp(min=0).sqrt()[:, None] * vectors.T)


def frechet(a: Moments, b: Moments) -> float:
    """Returns the Fréchet distance of two sets; the unit is that of the features, squared."""
    cross = torch.linalg.svdvals(a.root @ b.root.T).sum()
    spread = a.root.square().sum() + b.root.square().sum() - 2 * cross
    return float((a.mean - b.mean).square().sum() + spread.clamp(min=0))


def frechet_distance(features_a: Float[Tensor, "A D1"], features_b: Float[Tensor, "B D2"]) -> float:
    """Returns the Fréchet distance of two sets, computed in float64; the unit is that of the features, squared.

    Args:
        features_a: One row an image, at least two.
        features_b: Of the same width.

    Raises:
        InputError: A set has fewer than two rows, or their widths differ.
    """
    if features_a.shape[1] != features_b.shape[1]:
        raise InputError(
            "features must be two sets of the same network, got sets with "
            f"{features_a.shape[1]} and {features_b.shape[1]} columns"
        )
    return frechet(moments(features_a), moments(features_b))
