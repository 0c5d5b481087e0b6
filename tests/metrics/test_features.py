"""What a classifier sees, and how various a set is by it."""

import pytest
import torch

from steersman.errors import InputError
from steersman.lab.metrics import classifier_features, spread
from steersman.models.classifiers import RAW, Classifier


def test_spread():
    triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert spread(triangle) == pytest.approx(((9 + 16 + 25) / 3) ** 0.5)
    assert spread(torch.ones(7, 3)) == 0
    many = torch.randn(2500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert spread(many) == pytest.approx(torch.pdist(many).square().mean().sqrt().item(), rel=1e-12)


def test_features_do_not_depend_on_the_batch():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    judge = Classifier(network, preprocess=RAW, names="abc")
    images = torch.rand(7, 3, 2, 2) * 2 - 1
    expected = network[:3](images)
    assert expected.shape == (7, 5)
    torch.testing.assert_close(classifier_features(judge, images, batch_size=3), expected)


def test_refusals():
    with pytest.raises(InputError, match="got 1"):
        spread(torch.zeros(1, 3))
