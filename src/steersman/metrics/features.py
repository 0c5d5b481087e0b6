"""Sets of images, compared by the features that a classifier sees in them.

    mean pairwise distance      2 / (n (n - 1)) sum_{i<j} |phi_i - phi_j|              how various one set is
    Fréchet distance            |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))    how far two sets are apart

The second (Heusel et al. 2017) is that of two Gaussians with the sets' means and covariances ``C = R^T R / (n - 1)``,
where ``Q R`` is the centred set. As ``tr (C_a C_b)^(1/2)`` is the sum of the singular values of
``R_a R_b^T / sqrt((n_a - 1) (n_b - 1))``, no square root of a nearly singular matrix is taken. A sample's distance is
biased upwards, the more the fewer the images: compare equal counts only.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.classifiers.base import Classifier
from steersman.errors import InputError

__all__ = ["features", "frechet_distance", "mean_pairwise_distance"]


@torch.no_grad()
def features(classifier: Classifier, images: Float[Tensor, "B C H W"], batch_size: int = 64) -> Float[Tensor, "B D"]:
    """Returns what the classifier's last layer sees of each image, on the CPU.

    Args:
        classifier: Not the one that guided, where the images are guided.
        images: In [-1, 1].
        batch_size: How many go through the network at once.
    """
    device = next(classifier.parameters()).device
    return torch.cat([classifier.features(batch.to(device)).cpu() for batch in images.split(batch_size)])


def mean_pairwise_distance(features: Float[Tensor, "B D"]) -> float:
    """Returns the mean Euclidean distance over all pairs of different rows.

    Args:
        features: One row an image, at least two.

    Raises:
        InputError: There are fewer than two rows.
    """
    features = _rows(features)
    count = len(features)
    exact = "donot_use_mm_for_euclid_dist"  # the product formula loses half the digits of small distances
    total = sum(torch.cdist(rows, features, compute_mode=exact).sum() for rows in features.split(1024))
    return float(total) / (count * (count - 1))


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
            f"features: {features_a.shape[1]} and {features_b.shape[1]} wide; allowed: two sets of the same network"
        )
    (mean_a, root_a), (mean_b, root_b) = _moments(features_a), _moments(features_b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * cross
    return float((mean_a - mean_b).square().sum() + spread.clamp(min=0))


def _moments(features: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "D"], Float[Tensor, "R D"]]:
    """Returns the mean, and a root of the covariance: ``C = root^T root``."""
    features = _rows(features)
    mean = features.mean(0)
    return mean, torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5


def _rows(features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    if len(features) < 2:
        raise InputError(f"features: {len(features)} rows given; allowed: 2 and more")
    return features.double()
