"""Softplus smoothing of the architectures that people have, on random weights."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from steersman.errors import InputError
from steersman.models.classifiers import RAW, Classifier
from steersman.models.zoo import build_network

COUNTS = {
    "torchvision:resnet18": 9,  # the first, and one module a block, used twice
    "torchvision:vgg11": 10,
    "torchvision:densenet121": 121,  # one a convolution but the first, and the last is a call
    "torchvision:squeezenet1_1": 26,
    "torchvision:mobilenet_v2": 35,
    "torchvision:mobilenet_v3_small": 42,
    "torchvision:regnet_y_400mf": 65,  # four a block of 16 with squeeze and excitation, and the first
    "torchvision:googlenet": 57,  # calls, one a convolution
    "torchvision:inception_v3": 94,
    "timm:resnet10t": 11,
    "timm:mobilenetv3_small_050": 42,
    "timm:regnetx_002": 40,
    "own:densenet_narrow": 35,  # of timm's blocks, whose normalisations hold the activations
}


def vgg11():
    with torch.device("meta"):
        network = models.vgg11(num_classes=5, init_weights=False)
        network.classifier[0], network.classifier[3], network.classifier[6] = (
            nn.Linear(a, b) for a, b in ((25088, 32), (32, 32), (32, 5))
        )
    return network.to_empty(device="cpu")


def built(name):
    library, _, name = name.partition(":")
    if name == "vgg11":
        network = vgg11()
    elif library == "own":
        network = build_network(name, 5)
    elif library == "timm":
        network = timm.create_model(name, num_classes=5)
    else:
        lean = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network = models.get_model(name, weights=None, num_classes=5, **lean)
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():  # of a size that keeps that of the signal
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight, generator=generator)
        else:
            nn.init.uniform_(weight, 0.5, 1.0, generator=generator)
    return network.eval().double()


@pytest.mark.few(7)
@pytest.mark.parametrize("name", COUNTS)
def test_every_relu_is_replaced_and_the_sharpest_is_the_trained_network(name):
    network = built(name)
    classifier = Classifier(network, preprocess=RAW, names="abcde")
    side = 80 if name.endswith("inception_v3") else 64
    image = 2 * torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    plain, scale = classifier(image), classifier(image).abs().max()
    sharp, soft = classifier.smooth(1e8), classifier.smooth(3.0)
    assert sharp.smoothed == soft.smoothed == COUNTS[name]
    assert (sharp(image) - plain).abs().max() < 1e-4 * scale
    assert (soft(image) - plain).abs().max() > 1e-3 * scale
    (g,) = torch.autograd.grad(soft(image.requires_grad_())[:, 0].sum(), image)
    assert g.isfinite().all() and (g != 0).any()


@pytest.mark.parametrize(
    ("name", "has"),
    [("convnext_tiny", "GELU"), ("efficientnet_b0", "SiLU, Sigmoid"), ("swin_t", "GELU"), ("vit_b_16", "GELU")],
)
def test_a_network_without_a_relu_says_what_it_has(name, has):
    with torch.device("meta"):
        network = models.get_model(name, weights=None)
    with pytest.raises(InputError, match=f"must have a ReLU for softplus 3 to replace, has only {has}$"):
        Classifier(network, preprocess=RAW, names=map(str, range(1000))).smooth(3.0)


class Untraceable(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.activation, self.head = activation, nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.activation(x if x.sum() > 0 else -x).mean((2, 3)))


def test_what_cannot_be_traced_is_run_to_see_whether_it_has_a_relu():
    wanted = {"preprocess": RAW, "names": "ab"}
    assert Classifier(Untraceable(torch.relu), **wanted).smooth(3.0).smoothed == 0
    with pytest.raises(InputError, match="Untraceable must have a ReLU for softplus 3 to replace, has none"):
        Classifier(Untraceable(torch.tanh), **wanted).smooth(3.0)
