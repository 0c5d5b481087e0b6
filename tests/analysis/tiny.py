"""A denoiser and classifiers small enough to measure in an instant."""

import torch
from torch import nn

from steersman.batching import broadcast
from steersman.denoise import Prediction
from steersman.lab.data.sportballs import CLASSES
from steersman.models.classifiers import Classifier
from steersman.models.classifiers.preprocess import RAW
from steersman.schedule import VP

__all__ = ["Tiny", "network"]


class Tiny:
    """A denoiser of 8 by 8 pixels that shrinks, and knows the balls by a tint."""

    schedule, shape, classes, block, latent = VP.linear(20), (3, 8, 8), CLASSES, None, False

    def __call__(self, x_t, level, label=None, cfg_scale=1.0):
        tint = 0.0 if label is None else 0.1 * label[:, None, None, None].to(x_t)
        return Prediction(broadcast(level.alpha, x_t) * x_t + tint)

    def decode(self, x0):
        return x0


def network(seed=0):
    """Returns a classifier of balls, with a ReLU."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)
    return Classifier(nn.Sequential(*layers), preprocess=RAW, names=CLASSES)
