"""Small sets of images, and an extractor whose features are the images' own means."""

import numpy as np
import pytest
import torch

from steersman.lab.metrics.features import Extractor


@pytest.fixture
def pixels():
    """Random images: ``pixels(5)``; the brighter, the larger the second argument."""

    def draw(count, bright=0, seed=0, side=8):
        noise = np.random.default_rng([seed, count]).integers(0, 200, (count, side, side, 3))
        return (noise + bright).astype(np.uint8)

    return draw


@pytest.fixture
def quarters():
    """Twelve features: the mean of each colour in each quarter of the image."""
    return Extractor(name="quarters", embed=lambda images: torch.nn.functional.avg_pool2d(images, 4).flatten(1))
