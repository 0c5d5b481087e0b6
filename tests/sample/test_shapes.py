"""Samples of any shape: a vector, a series, an image of one channel, a video, on every axis of a guide.

Nothing in core knows what the dimensions of a sample mean, so that each shape is the same walk as the flat one.
"""

import pytest
import torch

from steersman.denoise import Prediction
from steersman.guidance import (
    Adam,
    Chain,
    ClassProbability,
    Clip,
    Constant,
    Denoised,
    DenoisedImage,
    Deviation,
    Ema,
    Guide,
    Lookahead,
    Mean,
    MonteCarlo,
    NoisePrediction,
    Noisy,
    Rescaled,
    Rms,
    Sample,
    Spherical,
    Variance,
)
from steersman.mixture import Mixture
from steersman.sampling import DDIM, DDPM, DPMpp, Heun, Particles, Recurrence, sample
from steersman.schedule import VP, broadcast

F64 = torch.float64
SHAPES = [(60,), (3, 20), (1, 6, 10), (3, 5, 2, 2)]
"""A vector, a series (C, L), an image of one channel, a video (C, T, H, W)."""


class Gaussian:
    """The exact denoiser of independent values of variance 0.25, around a mean of each."""

    schedule, classes = VP.cosine(), ()

    def __init__(self, shape):
        self.shape = shape
        self.mean = torch.linspace(-0.5, 0.5, 60, dtype=F64).reshape(shape)

    def __call__(self, x_t, level, **condition):
        alpha, sigma = broadcast(level.alpha, x_t), broadcast(level.sigma, x_t)
        gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        return Prediction(self.mean + gain * (x_t - alpha * self.mean))

    def decode(self, x0):
        return x0


def classifier(image, level=None):
    weights = torch.sin(torch.arange(180, dtype=F64)).reshape(3, 60).to(image.dtype)
    return (image.reshape(len(image), 1, 60) * weights).tanh().sum(2)


def guide(**choices):
    return Guide(objective=ClassProbability(classifier=classifier), scale=0.5, **choices)


CHOICES = {
    "mean": (DDPM(), guide(weight=Variance(), injection=Mean(), stabilizer=Ema(beta=0.9))),
    "noise": (DDIM(), guide(weight=Constant(), injection=NoisePrediction(), stabilizer=Rms())),
    "denoised": (DDIM(eta=0.5), guide(weight=Deviation(), injection=DenoisedImage(), ascents=2)),
    "sample": (Heun(), guide(weight=Deviation(), injection=Sample(), input=Rescaled(), wrt="x_t")),
    "spherical": (DDPM(), guide(injection=Spherical(), stabilizer=Chain((Clip(), Adam())))),
    "through": (DPMpp(), guide(wrt="x_t", weight=Constant(), injection=NoisePrediction(), input=Lookahead())),
    "noisy": (DDPM(), guide(input=Noisy(), weight=Variance())),
    "noisy copies": (
        DDPM(),
        Guide(objective=MonteCarlo(objective=ClassProbability(classifier=classifier)), input=Denoised(), wrt="x_t"),
    ),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("choice", CHOICES)
def test_a_sample_of_any_shape_is_the_same_walk(choice, shape):
    sampler, one = CHOICES[choice]
    settings = {"guides": [one], "target": [1, (0, 2)], "seeds": [4, 9], "steps": 5, "dtype": F64}
    settings["recurrence"] = Recurrence(times=2) if choice in ("mean", "noisy") else None
    settings["particles"] = Particles(count=3) if choice in ("mean", "denoised") else None
    found = sample(Gaussian(shape), sampler, **settings)
    flat = sample(Gaussian((60,)), sampler, **settings)
    plain = sample(Gaussian(shape), sampler, seeds=[4, 9], steps=5, dtype=F64)
    assert found.shape == (2, *shape)
    torch.testing.assert_close(found.flatten(1), flat, rtol=0, atol=1e-12)
    assert (found - plain).abs().max() > 1e-4


class Vectors:
    """A mixture of the plane with samples (B, 2)."""

    shape = (2,)

    def __init__(self, mixture):
        self.mixture, self.schedule, self.classes = mixture, mixture.schedule, mixture.classes

    def __call__(self, x_t, level, **condition):
        return Prediction(self.mixture(x_t[:, :, None, None], level, **condition).x0_hat[:, :, 0, 0])

    def decode(self, x0):
        return x0


@pytest.mark.parametrize("sampler", [DDPM(), DDIM()], ids=repr)
def test_a_mixture_in_the_plane_as_vectors(sampler, mixture):
    """Guided by the exact classifier to a class, the walk is that of its Gaussian (Prop. 4.2)."""
    exact = ClassProbability(classifier=lambda x, level: mixture.log_posterior(x[:, :, None, None], level))
    one = Guide(objective=exact, input=Noisy(), weight=Constant(), injection=NoisePrediction())
    settings = {"seeds": range(4), "steps": 15, "clip": False, "dtype": F64}
    found = sample(Vectors(mixture), sampler, guides=[one], target=2, **settings)
    alone = Mixture(weights=torch.ones(1, dtype=F64), means=mixture.means[2:], covariances=mixture.covariances[2:])
    # the first level has alpha = 5e-5, by which x0_hat is divided: 1e-16 / 5e-5 = 2e-12, through 15 steps
    torch.testing.assert_close(found, sample(Vectors(alone), sampler, **settings), rtol=0, atol=1e-9)
