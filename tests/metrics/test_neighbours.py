"""Sets on a line, of which it is known what they share."""

import pytest
import torch

from steersman.lab.metrics import distances
from steersman.lab.metrics.distances import COVERED, inside, within_reach

REFERENCE = torch.arange(10.0)[:, None]
SAMPLES = torch.arange(8.5, 14)[:, None]


def precision_recall(samples, reference):
    return inside(samples, reference).double().mean().item(), inside(reference, samples).double().mean().item()


def density_coverage(samples, reference, k=COVERED):
    near = within_reach(samples, reference, k).double()
    return near.sum(1).mean().item() / k, near.amax(0).mean().item()


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Blocks smaller than the sets."""
    monkeypatch.setattr(distances, "ROWS", 4)


def test_precision_and_recall_of_a_known_overlap():
    """With k = 3 the radius is 2, and 3 at both ends: the reference reaches to 12, the samples from 5.5 on."""
    assert precision_recall(SAMPLES, REFERENCE) == pytest.approx((4 / 6, 4 / 10))
    assert precision_recall(REFERENCE, SAMPLES) == pytest.approx((4 / 10, 4 / 6))
    assert precision_recall(REFERENCE + 100, REFERENCE) == (0, 0)
    assert precision_recall(REFERENCE, REFERENCE) == (1, 1)


def test_density_and_coverage_of_a_known_overlap():
    """With k = 2 the radius is 1, and 2 at both ends: 8.5 lies within two, 9.5 and 10.5 each in that of 9 alone."""
    assert density_coverage(SAMPLES, REFERENCE, k=2) == pytest.approx((4 / (2 * 6), 2 / 10))
    assert density_coverage(REFERENCE + 100, REFERENCE) == (0, 0)


def test_density_and_coverage_of_the_same_law(draw):
    """In expectation 1, and 1 less the chance that a point's k nearest of all others are of its own set."""
    m, n, k = 60, 40, 5
    found = torch.tensor([density_coverage(draw(n, 2), draw(m, 2), k) for _ in range(200)])
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (m - i) / (m + n - i)
    away = (found.mean(0) - torch.tensor([1, 1 - missed])).abs()
    assert (away < 4 * found.std(0) / 200**0.5).all()  # four standard errors


def test_agrees_with_torch_fidelity(draw):
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    x, y = draw(50, 3), draw(40, 3) + 0.5
    assert precision_recall(x, y) == pytest.approx(calculate_precision_recall_full(x, y, 3))


def test_recall_is_that_of_the_reference_among_the_samples():
    assert precision_recall(SAMPLES, REFERENCE)[1] == pytest.approx(4 / 10)
    assert precision_recall(REFERENCE, SAMPLES)[1] == pytest.approx(4 / 6)
    assert precision_recall(REFERENCE + 100, REFERENCE)[1] == 0
