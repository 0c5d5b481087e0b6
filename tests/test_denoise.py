import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from steersman.denoise import check_condition, eps_from_x0, output_for, to_x0
from steersman.errors import InputError
from steersman.schedule import VP, Level

KINDS = ("epsilon", "sample", "v_prediction", "flow_prediction")


def level(alpha, sigma):
    return Level(*(torch.as_tensor(value, dtype=torch.float64) for value in (alpha, sigma, 0.0)))


LEVELS = {
    "VP, noisy": VP.linear().at_time(999.0),
    "VP, half": VP.linear().at_time(250.0),
    "VP, clean": VP.linear().at_time(0.0),
    "EDM, noisy": level(1.0, 80.0),
    "EDM, clean": level(1.0, 0.002),
    "flow, noisy": level(0.001, 0.999),
    "flow, clean": level(0.98, 0.02),
    "one each": level([1.0, 0.6, 0.3], [2.0, 0.8, 0.7]),
}


@pytest.fixture
def pair(draw):
    return draw(3, 2, 4, 4), draw(3, 2, 4, 4)


def shaped(value):
    return value.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_output_gives_back_the_image_and_the_noise(kind, name, pair):
    (x0, eps), at = pair, LEVELS[name]
    alpha, sigma = shaped(at.alpha), shaped(at.sigma)
    x_t = alpha * x0 + sigma * eps
    found = to_x0(kind, x_t, output_for(kind, x0, eps, at), at)
    # x_t is rounded by 2^-53 of itself, and the division by alpha (by sigma) enlarges that
    torch.testing.assert_close(found, x0, rtol=0, atol=2e-15 * float((1 + sigma / alpha).max()))
    torch.testing.assert_close(eps_from_x0(x_t, x0, at), eps, rtol=0, atol=4e-15 * float((1 + alpha / sigma).max()))


def test_v_is_the_velocity_along_the_circle(pair):
    """Salimans & Ho (2022), appendix D: ``v = d x_phi / d phi`` with ``alpha = cos phi``, ``sigma = sin phi``."""
    (x0, eps), phi = pair, torch.tensor(0.7, dtype=torch.float64)
    _, velocity = torch.func.jvp(lambda p: p.cos() * x0 + p.sin() * eps, (phi,), (torch.ones_like(phi),))
    v = output_for("v_prediction", x0, eps, level(math.cos(0.7), math.sin(0.7)))
    torch.testing.assert_close(v, velocity, rtol=0, atol=1e-14)  # float64's rounding


def test_flow_is_the_velocity_along_the_line(pair):
    """``u = d x_sigma / d sigma`` with ``alpha = 1 - sigma``."""
    (x0, eps), sigma = pair, torch.tensor(0.7, dtype=torch.float64)
    _, velocity = torch.func.jvp(lambda s: (1 - s) * x0 + s * eps, (sigma,), (torch.ones_like(sigma),))
    u = output_for("flow_prediction", x0, eps, level(0.3, 0.7))
    torch.testing.assert_close(u, velocity, rtol=0, atol=1e-14)  # float64's rounding


def test_flow_starts_from_pure_noise(pair):
    x0, eps = pair
    assert torch.equal(to_x0("flow_prediction", eps, eps - x0, level(0.0, 1.0)), eps - (eps - x0))


PURE_NOISE = level(0.0, 1.0)
CLEAN = [level(1.0, 0.0), level(0.5, 0.0)]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_pure_noise_tells_the_image_by_all_but_the_noise(kind, pair):
    x0, eps = pair
    found = to_x0(kind, eps, output_for(kind, x0, eps, PURE_NOISE), PURE_NOISE)
    torch.testing.assert_close(found, x0, rtol=0, atol=2e-15)  # float64's rounding
    assert torch.equal(eps_from_x0(eps, x0, PURE_NOISE), eps)


def test_of_pure_noise_the_noise_tells_no_image(pair):
    x0, eps = pair
    for at in (PURE_NOISE, level([1.0, 0.0, 0.5], [1.0, 1.0, 1.0])):
        with pytest.raises(InputError, match="epsilon cannot be evaluated at a level without signal .*=leading"):
            to_x0("epsilon", eps, eps, at)


@pytest.mark.parametrize("at", CLEAN, ids=["alpha=1", "alpha=1/2"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_the_sample_is_the_image(kind, at, pair):
    x0, eps = pair
    found = to_x0(kind, at.alpha * x0, output_for(kind, x0, eps, at), at)
    torch.testing.assert_close(found, x0, rtol=0, atol=2e-15)  # float64's rounding


def test_without_noise_there_is_none_to_tell_of(pair):
    x0, _ = pair
    for at in (CLEAN[0], level([1.0, 1.0, 1.0], [0.5, 0.0, 0.5])):
        with pytest.raises(InputError, match="level.sigma must be above 0, .*got"):
            eps_from_x0(x0, x0, at)


@pytest.mark.parametrize("name", LEVELS)
def test_each_output_turns_into_any_other_and_back(name, pair):
    """By way of ``x0`` and ``eps``: twelve ways."""
    (x0, eps), at = pair, LEVELS[name]
    x_t = shaped(at.alpha) * x0 + shaped(at.sigma) * eps
    alpha, sigma = shaped(at.alpha), shaped(at.sigma)
    for kind in KINDS:
        output = output_for(kind, x0, eps, at)
        there = to_x0(kind, x_t, output, at)
        for other in KINDS:
            turned = output_for(other, there, eps_from_x0(x_t, there, at), at)
            image = to_x0(other, x_t, turned, at)
            back = output_for(kind, image, eps_from_x0(x_t, image, at), at)
            # rounding, enlarged by both divisions and, in v, by alpha and sigma themselves
            size = 1e-14 * float(((1 + sigma / alpha) * (1 + alpha / sigma)).max() + (alpha + sigma).max())
            torch.testing.assert_close(back, output, rtol=0, atol=size)


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("time", [0, 500, 999])
def test_to_x0_is_that_of_diffusers(kind, time, pair):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    x_t, output = pair
    theirs = scheduler.step(output, time, x_t).pred_original_sample
    at = VP.from_diffusers(scheduler.config).at_time(float(time))
    # alpha_bar is float32 there: up to 1000 roundings of 2^-24, and at time 0, 1 - alpha_bar = 1e-4 is rounded by 6e-4
    # of itself, sigma = 0.01 by half of that
    torch.testing.assert_close(to_x0(kind, x_t, output, at), theirs, rtol=1e-4, atol=1e-4 * float(1 / at.alpha))


def test_flow_to_x0_is_that_of_diffusers(pair):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(1)  # one Euler step to sigma = 0 lands on the denoised image
    x_t, output = pair
    theirs = scheduler.step(output, scheduler.timesteps[0], x_t).prev_sample
    at = level(1 - float(scheduler.sigmas[0]), float(scheduler.sigmas[0]))
    torch.testing.assert_close(to_x0("flow_prediction", x_t, output, at), theirs, rtol=1e-6, atol=1e-6)  # float32 there


def test_refuses_a_parameterization(pair, unchecked):
    x0, eps = pair
    for call in (to_x0, output_for):
        with pytest.raises(InputError, match="unknown parameterization 'eps'; did you mean .*'epsilon'"):
            call("eps", x0, eps, LEVELS["VP, half"])


@pytest.mark.parametrize(
    ("told", "kind", "message"),
    [
        ({"lable": 1}, {}, "unknown condition 'lable'; did you mean 'label'"),
        ({"cfg_scale": 2.0}, {}, "cfg_scale must be 1 without a label, got 2.0"),
        ({"label": 0}, {"classes": ()}, "label must be left out, as the denoiser was trained without labels"),
        ({}, {"unconditional": False}, "no unconditional model, got none; known: cat, dog"),
        (
            {"label": 0, "cfg_scale": 2.0},
            {"unconditional": False},
            "cfg_scale must be 1, as .* no unconditional model, got 2.0",
        ),
    ],
)
def test_a_condition_that_cannot_be_followed_is_refused(told, kind, message):
    label, cfg_scale = told.pop("label", None), told.pop("cfg_scale", 1.0)
    with pytest.raises(InputError, match=message):
        check_condition(label, cfg_scale, told, **{"classes": ("cat", "dog"), "unconditional": True} | kind)
