"""Classifiers whose calibration error is known by how they were made."""

import pytest
import torch

from steersman.errors import InputError
from steersman.lab.metrics.classification import BINS, binned, confidence, correct


def reliability(logits, target, bins=BINS):
    return binned(confidence(logits.double(), target), correct(logits, target), bins)


def surely(*groups):
    """Logits and targets of two classes: of each group (confidence, how many, how many of them right)."""
    confidence = torch.cat([torch.full((count,), sure, dtype=torch.float64) for sure, count, _ in groups])
    target = torch.cat([(torch.arange(count) >= right).long() for _, count, right in groups])
    return torch.stack([confidence.log(), (1 - confidence).log()], 1), target


def test_calibrated_by_construction():
    assert reliability(*surely((0.6, 20, 12), (0.75, 40, 30), (0.9, 10, 9))).error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("side", [-1, 1], ids=["too sure", "too unsure"])
def test_miscalibrated_by_a_known_amount(side):
    groups = (0.6, 20, 12 + 2 * side), (0.75, 40, 30 - 4 * side), (0.85, 20, 17 + 2 * side)
    assert reliability(*surely(*groups)).error == pytest.approx(0.1)


def test_bins_weigh_by_their_images():
    assert reliability(*surely((0.6, 30, 18), (0.9, 10, 5))).error == pytest.approx(0.4 * 10 / 40)


def test_within_a_bin_errors_cancel_and_across_bins_they_do_not():
    groups = (0.61, 100, 51), (0.65, 100, 75)
    assert reliability(*surely(*groups), bins=15).error == pytest.approx(0, abs=1e-12)
    assert reliability(*surely(*groups), bins=100).error == pytest.approx(0.1)


def test_the_diagram():
    found = reliability(*surely((0.55, 4, 1), (0.95, 10, 9), (1.0, 10, 10)), bins=10)
    assert found.count.tolist() == [0, 0, 0, 0, 0, 4, 0, 0, 0, 20]
    torch.testing.assert_close(found.accuracy[[5, 9]], torch.tensor([0.25, 0.95], dtype=torch.float64))
    torch.testing.assert_close(found.confidence[[5, 9]], torch.tensor([0.55, 0.975], dtype=torch.float64))
    assert found.error == pytest.approx((4 * 0.3 + 20 * 0.025) / 24)


def test_errors_of_columns_are_those_of_their_diagrams(draw):
    sure, right = draw(40, 7).sigmoid(), draw(40, 7) > 0
    sure[:3, 2] = 0.2  # an edge
    each = [float(binned(sure[:, column], right[:, column], 5).error) for column in range(7)]
    assert binned(sure, right, 5).error.tolist() == pytest.approx(each, abs=1e-12)


def test_a_bin_holds_its_upper_edge():
    assert reliability(torch.zeros(3, 2), torch.tensor([0, 1, 1]), bins=2).count.tolist() == [3, 0]


def test_one_logit_is_the_log_odds_of_class_one(draw):
    logits, target = 3 * draw(50, 1), torch.arange(50) % 2
    both = reliability(torch.cat([torch.zeros_like(logits), logits], 1), target)
    assert reliability(logits, target).error == both.error > 0


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_agrees_with_torchmetrics(bins, draw):
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, target = 2 * draw(500, 4), torch.arange(500) % 4
    theirs = multiclass_calibration_error(logits.softmax(1), target, num_classes=4, n_bins=bins)
    assert reliability(logits, target, bins).error == pytest.approx(theirs.item(), rel=1e-6)  # theirs is of float32


def test_refusals():
    with pytest.raises(InputError, match="needs at least 1 image, got 0"):
        reliability(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="bins must be at least 1, got 0"):
        reliability(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), bins=0)
