import pytest
import torch

from steersman.classifiers import RAW, Classifier, build_network
from steersman.errors import InputError

JUDGES = {"resnet10_narrow": 128, "densenet_narrow": 122}


@pytest.mark.parametrize("architecture", ("mobilenet_v3_small", *JUDGES))
def test_maps_images_to_logits(architecture):
    network = build_network(architecture, 4).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
    assert build_network(architecture, 1).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1)


@pytest.mark.parametrize(("architecture", "features"), JUDGES.items())
def test_judges_are_small_and_have_few_features(architecture, features):
    network = build_network(architecture, 4)
    assert sum(p.numel() for p in network.parameters()) < 1_200_000
    judge = Classifier(network, preprocess=RAW, names="abcd")
    assert judge.features(torch.zeros(2, 3, 64, 64)).shape == (2, features)


def test_refuses_what_it_cannot_build():
    with pytest.raises(InputError, match="did you mean 'resnet10_narrow'"):
        build_network("resnet10", 4)
    with pytest.raises(InputError, match="at least 1"):
        build_network("resnet10_narrow", 0)
