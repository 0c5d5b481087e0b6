"""The recipe flow: Euler's steps of a guided velocity, in flow matching's own terms."""

from dataclasses import replace
from itertools import pairwise

import diffusers
import pytest
import torch

from steersman.lab.train.denoiser import unet
from steersman.models.denoisers import load_denoiser
from steersman.recipes import load_recipe
from steersman.sampling import DDIM, sample
from steersman.schedule import Flow

F64 = torch.float64
TARGET, STEPS = 2, 12
EXACT = {"rtol": 1e-11, "atol": 1e-11}
"""Float64's rounding, over the first level's alpha of 1e-3."""


@pytest.fixture
def flowing(mixture):
    return replace(mixture, schedule=Flow(shift=2.0))


def velocity(mixture, x_t, level, **condition):
    """``v = eps - x0``, of ``x_t = (1 - sigma) x0 + sigma eps``."""
    x0 = mixture(x_t, level, **condition).x0_hat
    return (x_t - (1 - level.sigma) * x0) / level.sigma - x0


def euler(mixture, x, update=lambda x_t, level: 0):
    for level, next in pairwise(mixture.schedule.levels(STEPS)):
        x = x + (next.sigma - level.sigma) * (velocity(mixture, x, level) + update(x, level))
    return x


def walk(denoiser, recipe, classifier, start, target=TARGET):
    settings = {**recipe.sampling(), "seeds": range(len(start)), "dtype": F64}
    return sample(
        denoiser, recipe.sampler(), guides=recipe.bind_prepared(classifier), target=target, noise=[start], **settings
    )


def test_ddim_on_flow_is_euler_along_the_velocity(flowing, draw):
    start = draw(6, 2, 1, 1)
    x = sample(flowing, DDIM(), seeds=range(6), steps=STEPS, clip=False, noise=[start], dtype=F64)
    torch.testing.assert_close(x, euler(flowing, flowing.schedule.levels(STEPS)[0].sigma * start), **EXACT)


@pytest.mark.parametrize("wrt", ["x_t", "x0_hat"])
def test_the_velocity_is_guided(wrt, flowing, posterior, draw):
    clean = flowing.schedule.at_time(50.0)

    def classifier(image, level=None):
        return posterior(image, clean)

    def update(x_t, level):
        if level.sigma / level.alpha > 11.5:
            return 0
        with torch.enable_grad():
            leaf = x_t.clone().requires_grad_()
            x0 = flowing(leaf, level).x0_hat
            seen = leaf if wrt == "x_t" else x0
            (g,) = torch.autograd.grad(classifier(x0).log_softmax(1)[:, TARGET].sum(), seen)
        return -level.sigma / level.alpha * 0.7 * g

    recipe = load_recipe("flow" if wrt == "x_t" else "flow/direct", [f"sampling.steps={STEPS}", "scale=0.7"])
    start = draw(6, 2, 1, 1)
    first = flowing.schedule.levels(STEPS)[0].sigma * start
    x, expected = walk(flowing, recipe, classifier, start), euler(flowing, first, update)
    torch.testing.assert_close(x, expected, **EXACT)
    assert (x - euler(flowing, first)).abs().max() > 0.1


def test_at_scale_one_it_is_the_model_of_the_class(flowing, posterior, draw):
    """With the exact noise-aware classifier, ``x0_hat + (sigma^2 / alpha) g`` is the conditional denoised image."""
    changes = ["input=noisy", "weight=constant", f"sampling.steps={STEPS}"]
    x = walk(flowing, load_recipe("flow", changes), posterior, start := draw(6, 2, 1, 1))
    condition = {"label": torch.full((6,), TARGET)}
    settings = {"seeds": range(6), "steps": STEPS, "clip": False, "noise": [start], "dtype": F64}
    expected = sample(flowing, DDIM(), condition=condition, **settings)
    torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)  # sigma^2 / alpha is 1e3 at first


def test_a_folder_of_a_flow_matching_pipeline_walks_as_its_own_scheduler(tmp_path, draw):
    torch.manual_seed(0)
    network = unet(8, 0, widths=(8, 16)).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    network.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    denoiser = load_denoiser(str(tmp_path))
    assert denoiser.schedule == Flow(shift=3.0)
    assert denoiser.parameterization == "flow_prediction"
    start = draw(2, 3, 8, 8).float()
    settings = {"seeds": range(2), "steps": 6, "clip": False, "noise": [start]}
    named = load_recipe("flow", ["sampler={kind: diffusers, scheduler: FlowMatchEulerDiscrete}"]).sampler()
    scheduler.set_timesteps(6)
    z = start
    with torch.no_grad():
        for time in scheduler.timesteps:
            z = scheduler.step(network(z, time).sample, time, z).prev_sample
    assert (sample(denoiser, named, **settings) - z).abs().max() < 1e-5  # float32
    # our own walk begins at sigma / alpha of 1000 rather than infinity
    assert (sample(denoiser, DDIM(), **settings) - z).abs().max() < 1e-2
    assert (sample(denoiser, DDIM(), **settings) - start).abs().max() > 0.3
