from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler

from steersman.guidance.step import Step, posterior_mean, reverse_variance, transition
from steersman.models.denoisers import NetworkDenoiser
from steersman.sampling import DDPM, sample
from steersman.schedule import CLEAN, EDM, VP, Level

F64 = torch.float64


def level(alpha, sigma):
    return Level(*(torch.tensor(value, dtype=F64) for value in (alpha, sigma, 0.0)))


PAIRS = {
    "VP, neighbours": (VP.linear().at_time(500.0), VP.linear().at_time(499.0)),
    "VP, respaced": (VP.cosine().at_time(900.0), VP.cosine().at_time(700.0)),
    "EDM": (level(1.0, 3.0), level(1.0, 2.0)),
    "flow": (level(0.3, 0.7), level(0.6, 0.4)),
}
of_every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@of_every_pair
def test_the_posterior_is_bayes(pair, draw):
    """``N(x_s; alpha_s x_0, sigma_s^2) N(x_t; r x_s, beta)``: precisions add, and so do means weighed by them."""
    (level, next), x_t, x0 = pair, draw(3, 2, 4, 4), draw(3, 2, 4, 4)
    ratio = level.alpha / next.alpha
    beta = level.sigma**2 - ratio**2 * next.sigma**2
    precision = 1 / next.sigma**2 + ratio**2 / beta
    mean = (next.alpha * x0 / next.sigma**2 + ratio * x_t / beta) / precision
    rounding = {"rtol": 1e-12, "atol": 1e-12}  # float64's, through a difference that keeps four digits at worst
    torch.testing.assert_close(reverse_variance(level, next), 1 / precision, **rounding)
    torch.testing.assert_close(posterior_mean(x_t, x0, level, next), mean, **rounding)


@of_every_pair
def test_a_transition_leads_from_one_level_to_the_other(pair):
    """``x_t = r (alpha_s x_0 + sigma_s e) + sqrt(beta) e'`` has the signal and the noise of level t."""
    level, next = pair
    ratio, beta = transition(level, next)
    torch.testing.assert_close(ratio * next.alpha, level.alpha, rtol=1e-15, atol=0)
    torch.testing.assert_close(ratio**2 * next.sigma**2 + beta, level.sigma**2, rtol=1e-15, atol=0)


def test_between_neighbours_they_are_ho_et_als():
    """Eq. 6 and 7: ``beta_tilde_t = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t``."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    alpha_bar, t = (1 - betas).cumprod(0), 300
    pair = VP.from_betas(betas).at_time(float(t)), VP.from_betas(betas).at_time(float(t - 1))
    share = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    rounding = {"rtol": 1e-12, "atol": 0}  # beta is the difference of two numbers 150 times its size
    torch.testing.assert_close(reverse_variance(*pair), share * betas[t], **rounding)
    torch.testing.assert_close(reverse_variance(*pair, fixed="large"), betas[t], **rounding)
    ones, zeros = torch.ones(1, 1, 1, 1, dtype=F64), torch.zeros(1, 1, 1, 1, dtype=F64)
    of_x0 = alpha_bar[t - 1].sqrt() * betas[t] / (1 - alpha_bar[t])
    of_x_t = (1 - betas[t]).sqrt() * share
    torch.testing.assert_close(posterior_mean(zeros, ones, *pair)[0, 0, 0, 0], of_x0, **rounding)
    torch.testing.assert_close(posterior_mean(ones, zeros, *pair)[0, 0, 0, 0], of_x_t, **rounding)


@pytest.mark.parametrize("fixed", ["small", "large"])
def test_the_variance_follows_the_respacing_as_in_diffusers(fixed):
    scheduler = DDPMScheduler(variance_type=f"fixed_{fixed}")
    scheduler.set_timesteps(20)
    levels = VP.linear().levels(20, "leading")
    for level, next, t in zip(levels, levels[1:-1], scheduler.timesteps, strict=False):
        theirs = scheduler._get_variance(int(t)).double()
        # alpha_bar is float32 there: where 1 - alpha_bar is smallest, 1e-4, it is rounded by 2^-24 / 1e-4 = 6e-4
        torch.testing.assert_close(reverse_variance(level, next, fixed=fixed), theirs, rtol=1e-3, atol=0)


def test_a_learned_variance_lies_between_the_two_in_logarithm():
    pair = PAIRS["VP, respaced"]
    fraction = torch.tensor([0.0, 0.5, 1.0], dtype=F64).reshape(1, 3, 1, 1)
    small, large = reverse_variance(*pair), reverse_variance(*pair, fixed="large")
    expected = torch.stack([small, (small * large).sqrt(), large]).reshape(1, 3, 1, 1)
    for fixed in ("small", "large"):  # a learned variance goes before either
        found = reverse_variance(*pair, fraction, fixed)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)  # float64's rounding


def test_into_the_clean_image_the_small_variance_is_zero_and_the_large_one_the_noise():
    level = VP.linear().at_time(0.0)
    assert reverse_variance(level, CLEAN) == 0
    assert reverse_variance(level, CLEAN, torch.ones(1, 1, 1, 1)) == 0
    torch.testing.assert_close(reverse_variance(level, CLEAN, fixed="large"), level.sigma**2)


def test_clipped_into_the_clean_image_it_is_that_of_the_step_before_and_a_learned_one_begins_there():
    """``log Sigma = f log beta + (1 - f) log beta_tilde``, the latter of the step from the second to the first."""
    levels = VP.linear().levels(5)
    pair, floor = levels[-2:], reverse_variance(*levels[-3:-1])
    assert floor > 0 and reverse_variance(*pair, fixed="clipped", levels=levels) == floor
    fraction = torch.tensor([0.0, 0.5, 1.0], dtype=F64).reshape(1, 3, 1, 1)
    beta = pair[0].sigma ** 2
    expected = torch.stack([floor, (floor * beta).sqrt(), beta]).reshape(1, 3, 1, 1)
    found = reverse_variance(*pair, fraction, "clipped", levels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)  # float64's rounding, through logarithms


def test_clipped_is_small_at_every_other_step_and_in_a_walk_of_one():
    levels, fraction = VP.linear().levels(5), torch.full((1, 3, 1, 1), 0.3, dtype=F64)
    for pair in pairwise(levels[:-1]):
        assert reverse_variance(*pair, fixed="clipped", levels=levels) == reverse_variance(*pair)
        assert torch.equal(reverse_variance(*pair, fraction, "clipped", levels), reverse_variance(*pair, fraction))
    assert reverse_variance(*levels[-2:], fraction, "clipped", levels[-2:]) == 0


def test_a_step_counts_what_is_left():
    zero = torch.zeros((), dtype=F64)
    assert [Step(i, 4, 0, 0, CLEAN, CLEAN, zero, zero).left for i in range(4)] == [3, 2, 1, 0]


@pytest.mark.parametrize("fixed", ["small", "large", "clipped"])
@pytest.mark.parametrize("schedule", [VP.linear(), EDM()], ids=["VP", "EDM"])
def test_a_step_made_of_levels_is_the_one_that_sampling_makes(fixed, schedule):
    class Zero(torch.nn.Module):
        def forward(self, x_t, time):
            return torch.zeros_like(x_t)

    reports = []
    denoiser = NetworkDenoiser(Zero(), schedule=schedule, shape=(1, 2, 2))
    sample(denoiser, DDPM(fixed=fixed), steps=5, dtype=F64, callbacks=[reports.append])
    assert [Step.at(schedule.levels(5), index, fixed) for index in range(5)] == [report.step for report in reports]


@pytest.mark.parametrize("fixed", ["small", "clipped"])
def test_a_learned_variance_on_an_accelerator_is_that_of_the_cpu(fixed, draw, accelerator):
    levels = VP.linear().levels(4)
    fraction = draw(2, 3, 4, 4).sigmoid().float()
    found = [reverse_variance(*pair, accelerator.put(fraction), fixed, levels) for pair in pairwise(levels)]
    assert accelerator.waits == []
    for variance, pair in zip(found, pairwise(levels), strict=True):
        expected = reverse_variance(*pair, fraction, fixed, levels)
        assert variance.shape == expected.shape
        torch.testing.assert_close(variance.cpu(), expected, rtol=1e-6, atol=0)
