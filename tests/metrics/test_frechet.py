"""Distances of sets whose moments, and so distances, are known exactly."""

import math

import numpy as np
import pytest
import torch

from steersman.errors import InputError
from steersman.lab.metrics import frechet_distance
from steersman.lab.metrics.distances import frechet, moments, moments_of_covariance


def with_moments(mean: list[float], covariance: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """A sample whose mean and covariance are the given ones to rounding, not in expectation."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()).T, x, upper=True, left=False)
    return white @ torch.linalg.cholesky(covariance).T + torch.tensor(mean, dtype=torch.float64)


def test_frechet_distance_of_gaussians_along_the_same_axes():
    """Commuting covariances: |mu_a - mu_b|^2 + sum (sqrt(l_a) - sqrt(l_b))^2."""
    a = with_moments([1, 0, 2], torch.tensor([4.0, 1.0, 9.0], dtype=torch.float64).diag(), 50, 0)
    b = with_moments([0, 0, 0], torch.tensor([1.0, 1.0, 0.25], dtype=torch.float64).diag(), 70, 1)
    assert frechet_distance(a, b) == pytest.approx(5 + (2 - 1) ** 2 + 0 + (3 - 0.5) ** 2, rel=1e-12)


def test_frechet_distance_of_gaussians_along_different_axes():
    """Two by two: tr (A B)^(1/2) = sqrt(tr AB + 2 sqrt(det AB))."""
    first = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -0.8], [-0.8, 3.0]], dtype=torch.float64)
    both = first @ second
    cross = math.sqrt(both.trace() + 2 * math.sqrt(torch.linalg.det(both)))
    expected = 0.25 + (first.trace() + second.trace()).item() - 2 * cross
    a, b = with_moments([0.5, 0], first, 40, 0), with_moments([0, 0], second, 30, 1)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_fewer_images_than_features():
    """Degenerate covariances: a set is at 0 from itself, and a moved one at the square of the way."""
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    # float64 sums of a few dozen numbers of order 1
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x.double(), x.double() + 0.5) == pytest.approx(20 / 4, rel=1e-12)
    line = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    a, b = line * torch.tensor([[1.0, 0.0]]), line * torch.tensor([[0.0, 2.0]])
    # lines at a right angle: the cross term is 0
    assert frechet_distance(a, b) == pytest.approx(line.var().item() * (1 + 4), rel=1e-12)


def test_agrees_with_torch_fidelity_where_both_are_exact(draw):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = draw(90, 7) @ draw(7, 7), draw(60, 7) + 0.3
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    assert frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


@pytest.mark.parametrize("count", [40, 5], ids=["regular", "fewer images than features"])
def test_of_a_covariance_as_of_the_images(count, draw):
    a, b = draw(count, 8), 2 * draw(30, 8) + 1
    known = moments_of_covariance(b.mean(0), torch.from_numpy(np.cov(b.T.numpy())))
    # the roots of eigenvalues that are 0 to rounding are of 1e-8
    assert frechet(moments(a), known) == pytest.approx(frechet_distance(a, b), rel=1e-7)
    known = moments_of_covariance(a.mean(0), a.T.cov())
    assert frechet(known, moments(b)) == pytest.approx(frechet_distance(a, b), rel=1e-7)


def test_refusals():
    with pytest.raises(InputError, match="features must have at least 2 rows, got 1"):
        frechet_distance(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="same network, got sets with 3 and 4 columns"):
        frechet_distance(torch.zeros(2, 3), torch.zeros(2, 4))
