import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steersman.errors import InputError
from steersman.models.classifiers import load_classifier
from steersman.models.zoo import build_network


@pytest.fixture
def zoo(monkeypatch):
    def load_network(name):
        return build_network(name, 4), {"classes": ["baseball", "basketball", "volleyball", "soccer ball"]}

    monkeypatch.setitem(sys.modules, "steersman.models.zoo", SimpleNamespace(load_network=load_network))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagnet:efficientnet-lite0", "did you mean 'imagenet'"),
        ("imagenet:efficientnet-lite", "did you mean 'efficientnet-lite0'"),
        ("imagenet", "imagenet:NAME"),
        ("imagenet:", "imagenet:NAME"),
        ("", "known: adm-classifier, clip, .*imagenet, module, .*zoo"),
    ],
)
def test_refuses_an_unknown_spec(spec, message):
    with pytest.raises(InputError, match=message):
        load_classifier(spec)


@pytest.mark.parametrize("settings", [{"dtype": torch.int64}, {"size": 0}, {"softplus": 0.0}])
def test_refuses_settings(zoo, settings):
    with pytest.raises(InputError):
        load_classifier("zoo:mobilenet_v3_small", **settings)


def test_zoo_delegates(zoo):
    classifier = load_classifier("zoo:mobilenet_v3_small", softplus=5.0, size=32, dtype=torch.float64)
    assert classifier.resolve("volleyball") == 2
    # 18 Hardswish beside 15 ReLU and 9 Hardsigmoid, most of them of squeeze and excitation
    assert classifier.smoothed == 42
    logits = classifier(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 4) and logits.dtype == torch.float64


def test_softplus_on_a_network_without_relu_is_refused(monkeypatch):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.GELU())
    zoo = SimpleNamespace(load_network=lambda name: (network, {"classes": ["a", "b"]}))
    monkeypatch.setitem(sys.modules, "steersman.models.zoo", zoo)
    with pytest.raises(InputError, match="Sequential must have a ReLU for softplus 5 to replace, has only GELU"):
        load_classifier("zoo:linear", softplus=5.0)
