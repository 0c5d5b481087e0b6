"""The recipe nrcg, in all its variants, against the paper's Algorithm 1 written down step by step (eq. 1, 5, 7, 8)."""

import pytest
import torch
from torch import nn

from steersman.denoise import Prediction, to_x0
from steersman.recipes import load_recipe, recipe_names
from steersman.sampling import sample
from steersman.schedule import VP

F64 = torch.float64
STEPS, COUNT, TARGET = 8, 3, [1, 0, 1]
VARIANTS = [name for name in recipe_names() if name.split("/")[0] == "nrcg"]


class Denoiser:
    """A small network that predicts the noise."""

    shape, classes = (2, 5, 5), ()
    schedule = VP.linear(STEPS, 1e-3, 0.3)

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 2, 3, padding=1)).to(F64)

    def eps(self, x_t, time):
        told = torch.full_like(x_t[:, :1], float(time) / STEPS)
        return self.network(torch.cat([x_t, told], 1))

    def __call__(self, x_t, level, **condition):
        return Prediction(to_x0("epsilon", x_t, self.eps(x_t, level.time), level))

    def decode(self, x0):
        return x0


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser()


@pytest.fixture(scope="module")
def classifiers():
    """Networks of one logit and of three, by their count."""
    torch.manual_seed(1)
    return {
        count: nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(54, count)).to(F64)
        for count in (1, 3)
    }


def log_likelihood(logits, binary):
    if not binary:
        return logits[torch.arange(COUNT), TARGET].sum()
    p = logits[:, 0].sigmoid()
    return sum((p[k] if TARGET[k] else 1 - p[k]).log() for k in range(COUNT))


def stabilised(gradients, kind, beta):
    """What is used of the last of the gradients, from all of them at once: sums of powers, states that start at 0."""
    n = len(gradients)

    def average(values, beta):
        return sum((1 - beta) * beta ** (n - 1 - k) * value for k, value in enumerate(values))

    match kind:
        case "none":
            return gradients[-1]
        case "ema":
            return average(gradients, beta)
        case "adam":
            return average(gradients, 0.9) / (average([g**2 for g in gradients], 0.999) ** 0.5 + 1e-4)


def algorithm_1(denoiser, classifier, draws, *, binary, denoised, kind, beta, scale):
    betas = torch.linspace(1e-3, 0.3, STEPS, dtype=F64)
    alpha_bar = [float((1 - betas[: t + 1]).prod()) for t in range(STEPS)]
    gradients, draws = [], iter(draws)
    x = next(draws)
    for t in reversed(range(STEPS)):
        beta_t, here, there = float(betas[t]), alpha_bar[t], alpha_bar[t - 1] if t else 1.0
        x = x.detach().requires_grad_()
        x0 = ((x - (1 - here) ** 0.5 * denoiser.eps(x, t)) / here**0.5).clamp(-1, 1)
        (g,) = torch.autograd.grad(log_likelihood(classifier(x0 if denoised else x), binary), x)
        gradients.append(g)
        x, x0 = x.detach(), x0.detach()
        mean = (there**0.5 * beta_t * x0 + (1 - beta_t) ** 0.5 * (1 - there) * x) / (1 - here)
        variance = (1 - there) / (1 - here) * beta_t
        x = mean + scale * variance * stabilised(gradients, kind, beta)
        if t:
            x = x + variance**0.5 * next(draws)
    return x


EXPECTED = {  # what the paper says of each: binary or not, the view, the stabiliser, the scale
    "nrcg": (False, True, "ema", 0.99, 15),
    "nrcg/none": (False, False, "none", 0, 15),
    "nrcg/denoised": (False, True, "none", 0, 15),
    "nrcg/ema90": (False, True, "ema", 0.9, 15),
    "nrcg/ema99": (False, True, "ema", 0.99, 15),
    "nrcg/adam": (False, True, "adam", 0, 15),
    "nrcg/robust": (False, False, "none", 0, 15),
    "nrcg/celeba": (True, True, "ema", 0.99, 150),
    "nrcg/celebahq": (True, True, "ema", 0.99, 10),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_algorithm_1(name, denoiser, classifiers, draw):
    binary, denoised, kind, beta, scale = EXPECTED[name]
    draws = [draw(COUNT, *denoiser.shape) for _ in range(STEPS)]
    classifier = classifiers[1 if binary else 3]
    wanted = algorithm_1(
        denoiser, classifier, draws, binary=binary, denoised=denoised, kind=kind, beta=beta, scale=scale
    )
    recipe = load_recipe(name, [f"sampling.steps={STEPS}"])
    found = sample(
        denoiser,
        recipe.sampler(),
        guides=recipe.bind_prepared(lambda image, level=None: classifier(image)),
        target=TARGET,
        seeds=range(COUNT),
        noise=draws,
        dtype=F64,
        **recipe.sampling(),
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    unguided = sample(
        denoiser, recipe.sampler(), seeds=range(COUNT), noise=draws, dtype=F64, **{**recipe.sampling(), "steps": STEPS}
    )
    assert (found - unguided).abs().amax((1, 2, 3)).min() > 1e-3
