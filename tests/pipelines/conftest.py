"""Guides of pipelines, and a classifier that tells apart by colours."""

import pytest
import torch
from torch import nn

from steersman.guidance import ClassProbability, Constant, Denoised, Guide, Rms
from steersman.models.classifiers import Classifier
from steersman.models.classifiers.preprocess import RAW
from steersman.schedule import CLEAN

NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def classifier():
    """Tells apart by the mean colours of sixteen places."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(NAMES)))
    with torch.no_grad():
        network[2].weight *= 10
    return Classifier(network, preprocess=RAW, names=NAMES)


@pytest.fixture(scope="module")
def guide(classifier):
    """A guide of updates that are all as long: ``guide(wrt="x_t")``."""

    def build(**settings):
        objective = ClassProbability(classifier=classifier)
        input = Denoised(clip=False)
        plain = {"objective": objective, "input": input, "stabilizer": Rms(), "weight": Constant(), "scale": 0.5}
        return Guide(**{**plain, **settings})

    return build


@pytest.fixture(scope="module")
def likelihood(classifier):
    def of(images, target):
        if images.ndim == 5:
            return torch.stack([of(frames, target) for frames in images.unbind(1)]).mean(0)
        target = torch.as_tensor(target).expand(len(images))
        return ClassProbability(classifier=classifier)(images, target, CLEAN)

    return of
