"""What a classifier sees, and how various a set is by it."""

import pytest
import torch

from steersman.errors import InputError
from steersman.lab.metrics import classifier_features, mean_pairwise_distance
from steersman.models.classifiers import RAW, Classifier


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
    torch.testing.assert_close(classifier_features(judge, images, batch_size=3), expected)


def test_refusals():
    with pytest.raises(InputError, match="got 1"):
        mean_pairwise_distance(torch.zeros(1, 3))
