"""The kernel distance, by hand and by torch-fidelity."""

import pytest
import torch

from steersman.lab.metrics import distances
from steersman.lab.metrics.distances import kid


def test_by_hand():
    x, y = torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]])
    # x1.x2 = 0; y1.y2 = 0, and 0 with the third; x1.y = 2, 2, 0; x2.y = 2, -2, 0; each over D = 2
    across = (8 + 8 + 1 + 8 + 0 + 1) / 6
    assert kid(x, y) == pytest.approx(1 + 1 - 2 * across)


def test_agrees_with_torch_fidelity_on_all_images(draw, monkeypatch):
    from torch_fidelity.metric_kid import kid_features_to_metric

    monkeypatch.setattr(distances, "ROWS", 8)
    x, y = draw(30, 5), draw(30, 5) + 0.5
    theirs = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=30, verbose=False)
    assert kid(x, y) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)


@pytest.mark.long
def test_is_unbiased(draw):
    """Of the same law it is 0 in expectation, however few the images."""
    found = torch.tensor([kid(draw(4, 3), draw(6, 3)) for _ in range(2000)])
    assert abs(found.mean()) < 3 * found.std() / 2000**0.5  # three standard errors
