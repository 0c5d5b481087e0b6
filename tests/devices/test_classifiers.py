"""Classifiers, features and decoders on an accelerator: the values of the CPU, without waiting."""

import copy

import pytest
import torch

from accelerator import awaits_nothing
from classifiers import test_adm_classifier, test_timm, test_torchvision, test_transformers
from steersman.lab.metrics.features import load_extractor
from steersman.models.classifiers import load_classifier
from steersman.models.denoisers import load_denoiser
from steersman.schedule import VP

LEVEL = VP.linear().at_time(300.0)
CLOSE = {"rtol": 1e-3, "atol": 1e-5}
"""Of a deep network's gradient in float32, some of whose operations the pretend device composes otherwise."""


def of_timm(folder):
    network = test_timm.built("resnet10t", num_classes=5)
    torch.save({"state_dict": network.state_dict()}, folder / "own.pth")
    return f"timm:resnet10t?checkpoint={folder}/own.pth&preprocess=imagenet", {"size": 64}


def of_torchvision(folder):
    torch.save(test_torchvision.built("resnet18").state_dict(), folder / "own.pth")
    return f"torchvision:resnet18?checkpoint={folder}/own.pth&preprocess=imagenet", {"size": 48, "softplus": 4.0}


def of_transformers(folder):
    import transformers

    test_transformers.vit().save_pretrained(folder)
    name, settings = test_transformers.PROCESSORS["vit"]
    getattr(transformers, name)(**settings).save_pretrained(folder)
    return f"hf:{folder}", {}


def of_adm(folder):
    return test_adm_classifier.made(folder, **test_adm_classifier.NETWORKS["legacy"])[1], {}


def of_imagenet(folder):
    return "imagenet:efficientnet-lite0", {"size": 48, "softplus": 4.0}


def of_zoo(folder):
    return "zoo:sportballs-judge", {"preprocess": "raw"}


SOURCES = [of_timm, of_torchvision, of_transformers, of_adm, of_imagenet, of_zoo]


@pytest.fixture
def images():
    return torch.rand(2, 3, 40, 36, generator=torch.Generator().manual_seed(0)) * 2 - 1


def gradient(classifier, images):
    images = images.detach().requires_grad_()
    logits = classifier(images, LEVEL)
    (g,) = torch.autograd.grad(logits[:, 1].sum(), images)
    return logits.detach(), g


@pytest.mark.few(2)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_every_source_of_classifiers(source, images, accelerator, tmp_path):
    spec, settings = source(tmp_path)
    classifier = load_classifier(spec, **settings)
    if source is of_adm:
        images = images[..., :32, :32]
    expected = gradient(classifier, images)
    features = classifier.features(images, LEVEL)
    classifier.to(accelerator.device)
    there = images.to(accelerator.device)
    gradient(classifier, there)
    with awaits_nothing(accelerator):
        found = gradient(classifier, there)
        seen = classifier.features(there, LEVEL)
    assert accelerator.doubles == []
    for ours, theirs in zip((*found, seen), (*expected, features), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, **CLOSE)


def test_a_clip(clip, images, accelerator):
    classifier = load_classifier(f"clip:{clip}")
    for text in ("a cat", "a dog"):
        classifier.resolve(text)
    expected = gradient(classifier, images)
    classifier.to(accelerator.device)
    there = images.to(accelerator.device)
    gradient(classifier, there)
    with awaits_nothing(accelerator):
        found = gradient(classifier, there)
    assert accelerator.doubles == []
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, **CLOSE)


def test_evaluations_features_are_computed_on_the_device(images, accelerator):
    expected = load_extractor("zoo:sportballs-judge").embed(images)
    found = load_extractor("zoo:sportballs-judge", device=accelerator.device).embed(images)
    assert found.device.type == "cpu" and accelerator.doubles == []
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_latents_decoder_with_blocks_computed_again_for_the_gradient(dit_folder, accelerator):
    """The way of latents with statistics of each channel, too."""
    denoiser = load_denoiser(str(dit_folder))
    denoiser.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5])
    there = copy.deepcopy(denoiser).to(accelerator.device)
    latents = torch.randn(2, *denoiser.shape, generator=torch.Generator().manual_seed(0))
    assert denoiser.vae.is_gradient_checkpointing

    def pulled(denoiser, latents):
        latents = latents.detach().requires_grad_()
        (g,) = torch.autograd.grad(denoiser.decode(latents).square().sum(), latents)
        return g

    at = latents.to(accelerator.device)
    pulled(there, at)
    with awaits_nothing(accelerator):
        found = pulled(there, at)
    assert accelerator.doubles == []
    torch.testing.assert_close(found.cpu(), pulled(denoiser, latents), **CLOSE)
    encoded = there.encode(torch.zeros(1, 3, 16, 16, device=accelerator.device))
    torch.testing.assert_close(encoded.cpu(), denoiser.encode(torch.zeros(1, 3, 16, 16)), **CLOSE)
