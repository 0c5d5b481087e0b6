"""Distances of sets whose moments, and so distances, are known exactly."""

import math

import pytest
import torch

from steersman.classifiers import RAW, Classifier
from steersman.errors import InputError
from steersman.metrics import features, frechet_distance, mean_pairwise_distance


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


def test_mean_pairwise_distance():
    triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert mean_pairwise_distance(triangle) == pytest.approx((3 + 4 + 5) / 3)
    assert mean_pairwise_distance(torch.ones(7, 3)) == 0
    many = torch.randn(2500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert mean_pairwise_distance(many) == pytest.approx(torch.pdist(many).mean().item(), rel=1e-12)


def test_features_do_not_depend_on_the_batch():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    judge = Classifier(network, preprocess=RAW, names="abc")
    images = torch.rand(7, 3, 2, 2) * 2 - 1
    expected = network[:3](images)
    assert expected.shape == (7, 5)
    torch.testing.assert_close(features(judge, images, batch_size=3), expected)


def test_refusals():
    with pytest.raises(InputError, match="1 rows"):
        mean_pairwise_distance(torch.zeros(1, 3))
    with pytest.raises(InputError, match="1 rows"):
        frechet_distance(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="3 and 4 wide"):
        frechet_distance(torch.zeros(2, 3), torch.zeros(2, 4))
