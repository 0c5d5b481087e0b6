from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from steersman.errors import InputError
from steersman.guidance import reverse_variance
from steersman.sampling import DDIM, DDPM, sample
from steersman.schedule import VP

F64 = torch.float64


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_walk_is_the_formula_step_by_step(recording, draw, eta):
    """Clipped, so that ``eps_hat`` is the one that belongs to the clipped image."""
    draws, reports = [2 * draw(4, 2, 1, 1) for _ in range(6)], []
    settings = {"steps": 6, "dtype": F64, "callbacks": [reports.append]}
    sample(recording, DDIM(eta=eta), seeds=range(4), noise=iter(draws), **settings)
    for index, report in enumerate(reports):
        (x_t, level), next = recording.asked[index], report.step.next
        x0 = recording.predicted[index].clamp(-1, 1)
        eps = (x_t - level.alpha * x0) / level.sigma
        variance = eta**2 * reverse_variance(level, next)
        expected = next.alpha * x0 + (next.sigma**2 - variance).sqrt() * eps
        if eta and index < 5:
            expected = expected + variance.sqrt() * draws[index + 1]
        torch.testing.assert_close(report.x, expected, rtol=1e-13, atol=1e-13)  # float64's rounding


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_walk_is_that_of_diffusers(mixture, eta):
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(20)
    start = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    theirs, draws = start, torch.Generator().manual_seed(2)
    for t in scheduler.timesteps:
        level = mixture.schedule.at_time(t)
        eps = (theirs - level.alpha * mixture(theirs, level).x0_hat) / level.sigma
        settings = {"eta": eta, "use_clipped_model_output": True, "generator": draws}
        theirs = scheduler.step(eps, int(t), theirs, **settings).prev_sample
    draws.manual_seed(2)
    noise = [start, *(torch.randn(4, 2, 1, 1, generator=draws, dtype=F64) for _ in range(19))]
    ours = sample(mixture, DDIM(eta=eta), seeds=range(4), noise=iter(noise), steps=20, spacing="leading", dtype=F64)
    # alpha_bar is float32 there: each level's 1 - alpha_bar is rounded by 2^-24 at least; 4e-6 is seen
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("clip", [True, False])
def test_eta_one_is_ddpm_draw_by_draw(mixture, clip):
    settings = {"seeds": range(8), "steps": 15, "clip": clip, "dtype": F64}
    # float64's rounding, divided by the first level's alpha of 5e-5
    torch.testing.assert_close(
        sample(mixture, DDIM(eta=1.0), **settings), sample(mixture, DDPM(), **settings), rtol=0, atol=1e-10
    )


def test_eta_zero_draws_the_start_alone(mixture, draw):
    start = draw(3, 2, 1, 1)
    settings = {"seeds": range(3), "steps": 5, "dtype": F64}
    once, again = (sample(mixture, DDIM(), noise=[start], **settings) for _ in range(2))
    assert torch.equal(once, again)


def gaussian_ode(mixture, j, x, level):
    """Where the probability-flow ODE takes x, for a Gaussian: along each axis it keeps the number of deviations."""
    values, axes = torch.linalg.eigh(mixture.covariances[j])
    away = (x[:, :, 0, 0] - level.alpha * mixture.means[j]) @ axes
    scaled = away * (values / (level.alpha**2 * values + level.sigma**2)).sqrt()
    return (mixture.means[j] + scaled @ axes.T)[..., None, None]


def test_eta_zero_follows_the_ode_to_first_order(mixture, draw):
    """On one class the ODE is solved in closed form; each doubling of the steps halves the error."""
    # 10,000 times, so that the last of them, at which every walk ends alike, is 1e-6 from the clean image in variance
    fine, start = replace(mixture, schedule=VP.linear(10_000, 1e-6, 2e-3)), draw(50, 2, 1, 1)
    exact = gaussian_ode(fine, 2, start, fine.schedule.levels(1)[0])
    errors = []
    for steps in (20, 40, 80, 160):
        label = {"label": torch.full((50,), 2)}
        settings = {"seeds": range(50), "steps": steps, "clip": False, "dtype": F64, "condition": label}
        errors.append(float((sample(fine, DDIM(), noise=[start], **settings) - exact).square().mean().sqrt()))
    ratios = [ratio_max / ratio_min for ratio_max, ratio_min in zip(errors, errors[1:], strict=False)]
    # order 1 is a factor of 2, up to the second-order term, which halves as well
    assert all(1.8 < ratio < 2.6 for ratio in ratios) and 1.9 < ratios[-1] < 2.1, (errors, ratios)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_refuses_eta(eta):
    with pytest.raises(InputError, match=f"eta must be (between 0 and 1|a finite number), got {eta}"):
        DDIM(eta=eta)
