import pytest
import torch
from diffusers import DDPMScheduler

from steersman.errors import InputError
from steersman.guidance import (
    ClassProbability,
    Denoised,
    Guide,
    Mean,
    Sample,
    posterior_mean,
    reverse_variance,
)
from steersman.sampling import DDPM, sample

F64 = torch.float64


@pytest.mark.parametrize("fixed", ["small", "large"])
@pytest.mark.parametrize("clip", [True, False])
def test_a_walk_is_the_formula_step_by_step(recording, draw, fixed, clip):
    draws, reports = [2 * draw(4, 2, 1, 1) for _ in range(6)], []
    settings = {"steps": 6, "clip": clip, "dtype": F64, "callbacks": [reports.append]}
    x = sample(recording, DDPM(fixed=fixed), seeds=range(4), noise=draws, **settings)
    assert torch.equal(recording.asked[0][0], draws[0])
    clipped = [x0.clamp(-1, 1) if clip else x0 for x0 in recording.predicted]
    assert bool(any((x0.abs() > 1).any() for x0 in recording.predicted))
    for index, report in enumerate(reports):
        (x_t, level), next = recording.asked[index], report.step.next
        expected = posterior_mean(x_t, clipped[index], level, next)
        if index < 5:
            expected = expected + reverse_variance(level, next, fixed=fixed).sqrt() * draws[index + 1]
        torch.testing.assert_close(report.x, expected, rtol=1e-14, atol=1e-14)  # float64's rounding
        assert torch.equal(report.x0, clipped[index])
    assert torch.equal(x, reports[-1].x)
    torch.testing.assert_close(x, clipped[-1], rtol=1e-14, atol=1e-14)  # no noise enters the image


@pytest.mark.parametrize("fixed", ["small", "large"])
def test_a_walk_is_that_of_diffusers(mixture, fixed):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type=f"fixed_{fixed}", clip_sample=False)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(4, 2, 1, 1, generator=generator, dtype=F64)
    theirs, draws = start, torch.Generator().manual_seed(2)
    for t in scheduler.timesteps:
        level = mixture.schedule.at_time(t)
        eps = (theirs - level.alpha * mixture(theirs, level).x0_hat) / level.sigma
        theirs = scheduler.step(eps, int(t), theirs, generator=draws).prev_sample
    draws.manual_seed(2)
    noise = [start, *(torch.randn(4, 2, 1, 1, generator=draws, dtype=F64) for _ in range(19))]
    ours = sample(
        mixture, DDPM(fixed=fixed), seeds=range(4), noise=noise, steps=20, spacing="leading", clip=False, dtype=F64
    )
    # alpha_bar is float32 there: each level's 1 - alpha_bar is rounded by 2^-24 at least; 4e-6 is seen
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_clipped_draws_and_moves_nothing_more_without_guides(mixture, draw):
    draws = [draw(4, *mixture.shape) for _ in range(6)]
    small, clipped = (
        sample(mixture, DDPM(fixed=fixed), seeds=range(4), steps=6, noise=draws, dtype=F64)
        for fixed in ("small", "clipped")
    )
    assert torch.equal(small, clipped)


@pytest.mark.parametrize("injection", [Mean(), Sample()], ids=repr)
@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
def test_clipped_guides_the_last_step_by_the_variance_of_the_one_before(mixture, posterior, wrt, injection):
    guide = Guide(
        objective=ClassProbability(classifier=posterior), wrt=wrt, input=Denoised(clip=False), injection=injection
    )
    reports, walk = [], {"target": 1, "seeds": range(4), "steps": 6, "dtype": F64}
    sample(mixture, DDPM(fixed="clipped"), guides=[guide], callbacks=[reports.append], **walk)
    (update,), before = reports[-1].updates, reports[-2].step
    expected = reverse_variance(before.level, before.next) * update.gradient
    assert expected.abs().min() > 0
    torch.testing.assert_close(update.value, expected, rtol=1e-12, atol=0)  # float64's rounding


def test_refuses_a_variance(unchecked):
    with pytest.raises(InputError, match="unknown variance 'larg'; did you mean 'large'"):
        DDPM(fixed="larg")
