import pytest
import torch

from steersman.errors import InputError
from steersman.models.classifiers import RAW, Classifier
from steersman.models.zoo import build_network
from steersman.models.zoo.networks import ARCHITECTURES

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


SMALL = {"lenet": 128, "resnet9": 256, "plainnet": 192, "wide_resnet16": 160}


@pytest.mark.parametrize(("architecture", "features"), SMALL.items())
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_networks_for_small_images_take_colour_and_grey(architecture, features, channels, side):
    network = build_network(architecture, 10, channels)
    assert sum(p.numel() for p in network.parameters()) < 2_000_000
    classifier = Classifier(network, preprocess=RAW, names="abcdefghij")
    images = torch.zeros(2, channels, side, side)
    assert classifier(images).shape == (2, 10)
    assert classifier.features(images).shape == (2, features)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_network_takes_any_number_of_channels(architecture):
    assert build_network(architecture, 2, 4).eval()(torch.zeros(1, 4, 64, 64)).shape == (1, 2)


def test_guides_of_small_images_can_be_smoothed():
    for architecture in ("lenet", "resnet9", "wide_resnet16"):
        guide = Classifier(build_network(architecture, 10), preprocess=RAW, names="abcdefghij")
        assert guide.smooth(4.0).smoothed > 0


def test_refuses_what_it_cannot_build():
    with pytest.raises(InputError, match="did you mean .*'resnet10_narrow'"):
        build_network("resnet10", 4)
    with pytest.raises(InputError, match="at least 1"):
        build_network("resnet10_narrow", 0)
    with pytest.raises(InputError, match="channels must be at least 1"):
        build_network("lenet", 10, 0)
