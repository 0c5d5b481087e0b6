"""What a classifier sees in a set of images, and how various the set is by it.

mean pairwise distance      2 / (n (n - 1)) sum_{i<j} |phi_i - phi_j|
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.errors import InputError
from steersman.memory import halving
from steersman.models.classifiers.base import Classifier
from steersman.precision import ieee

__all__ = ["classifier_features", "device_of", "mean_pairwise_distance"]


def device_of(network: nn.Module) -> torch.device:
    """Returns where a network's weights lie, the CPU for one without any."""
    return next((weight.device for weight in network.parameters()), torch.device("cpu"))


@torch.no_grad()
@ieee()
def classifier_features(
    classifier: Classifier, images: Float[Tensor, "B C H W"], batch_size: int = 64
) -> Float[Tensor, "B D"]:
    """Returns what the classifier's last layer sees of each image, on the CPU.

    Args:
        classifier: Not the one that guided, where the images are guided.
        images: In [-1, 1].
        batch_size: How many go through the network at once.
    """
    device = device_of(classifier)

    def found(size: int) -> Float[Tensor, "B D"]:
        return torch.cat([classifier.features(batch.to(device)).cpu() for batch in images.split(size)])

    return halving(found, min(batch_size, len(images)))[0]


def mean_pairwise_distance(features: Float[Tensor, "B D"]) -> float:
    """Returns the mean Euclidean distance over all pairs of different rows.

    Args:
        features: One row an image, at least two.

    Raises:
        InputError: There are fewer than two rows.
    """
    if len(features) < 2:
        raise InputError(f"features must have at least 2 rows, got {len(features)}")
    features = features.cpu().double()
    count = len(features)
    exact = "donot_use_mm_for_euclid_dist"  # the product formula loses half the digits of small distances
    total = sum(torch.cdist(rows, features, compute_mode=exact).sum() for rows in features.split(1024))
    return float(total) / (count * (count - 1))
