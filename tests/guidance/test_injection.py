import pytest
import torch

from steersman.denoise import output_for
from steersman.guidance import ClassProbability, Constant, DenoisedImage, Estimate, Guide, Mean, NoisePrediction, Noisy
from steersman.guidance.step import posterior_mean, transition
from steersman.sample import DDIM, DDPM, sample
from steersman.schedule import VP, Level

F64 = torch.float64
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
"""Float64's, enlarged at most by ``sigma / alpha`` (10) and by what is lost in ``beta`` (a hundredfold)."""

LEVELS = {
    "VP": VP.linear().at_time(400.0),
    "EDM": Level(*(torch.tensor(value, dtype=F64) for value in (1.0, 3.0, 0.0))),
    "flow": Level(*(torch.tensor(value, dtype=F64) for value in (0.3, 0.7, 0.0))),
}
at_every_level = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)


@pytest.fixture
def found(draw):
    return Estimate(draw(2, 3, 4, 4), draw(2, 3, 4, 4), torch.tensor(0.1, dtype=F64))


@pytest.fixture
def push(draw):
    return draw(2, 3, 4, 4)


@at_every_level
def test_noise_prediction_adds_the_push_to_the_score(found, push, level):
    """``score = -eps / sigma``; and ``x_t = alpha x0 + sigma eps`` still holds."""
    moved = NoisePrediction().estimate(found, push, level)
    torch.testing.assert_close(-moved.eps / level.sigma, -found.eps / level.sigma + push, **ROUNDING)
    before, after = (level.alpha * each.x0 + level.sigma * each.eps for each in (found, moved))
    torch.testing.assert_close(after, before, **ROUNDING)
    assert moved.variance is found.variance
    assert NoisePrediction().mean(found.x0, push) is found.x0


def test_noise_prediction_in_terms_of_flow(found, push):
    """``v <- v - (sigma / alpha) p``."""
    level = LEVELS["flow"]
    moved = NoisePrediction().estimate(found, push, level)
    v, v_moved = (output_for("flow_prediction", each.x0, each.eps, level) for each in (found, moved))
    torch.testing.assert_close(v_moved, v - level.sigma / level.alpha * push, **ROUNDING)


@pytest.mark.parametrize("times", [(500.0, 499.0), (900.0, 600.0)])
def test_a_push_of_the_score_moves_ddpms_mean_by_beta_over_root_a(found, push, times):
    level, next = (VP.linear().at_time(time) for time in times)
    moved = NoisePrediction().estimate(found, push, level)
    x_t = level.alpha * found.x0 + level.sigma * found.eps
    before, after = (posterior_mean(x_t, each.x0, level, next) for each in (found, moved))
    a = (level.alpha / next.alpha) ** 2
    torch.testing.assert_close(after - before, (1 - a) / a.sqrt() * push, **ROUNDING)


def test_mean_moves_the_mean_alone(found, push):
    assert Mean().estimate(found, push, LEVELS["VP"]) is found
    assert torch.equal(Mean().mean(found.x0, push), found.x0 + push)


def test_denoised_image_keeps_the_noise(found, push):
    """MPGD."""
    moved = DenoisedImage().estimate(found, push, LEVELS["VP"])
    assert torch.equal(moved.x0, found.x0 + push) and moved.eps is found.eps
    assert DenoisedImage().mean(found.x0, push) is found.x0


class Converted:
    """``sqrt(a_t) Sigma_t / beta_t``: the weight of a noise injection that equals the mean injection of ``Sigma_t``."""

    def active(self, step):
        return True

    def __call__(self, step, x_t, prediction, g):
        ratio, beta = transition(step.level, step.next)
        return ratio * step.variance / beta


@pytest.mark.parametrize("fixed", ["small", "large"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_on_ddpm_the_mean_injection_is_a_noise_injection(mixture, posterior, fixed, scale):
    """``mu <- mu + s Sigma_t g`` equals ``eps <- eps - (sqrt(a_t) Sigma_t / beta_t) sigma_t s g`` (methods.md)."""

    def walk(**choices):
        guide = Guide(objective=ClassProbability(classifier=posterior), scale=scale, view=Noisy(), **choices)
        settings = {"target": 2, "seeds": range(20), "steps": 25, "clip": False, "dtype": F64}
        return sample(mixture, DDPM(fixed=fixed), guides=[guide], **settings)

    by_mean, by_noise = walk(), walk(injection=NoisePrediction(), strength=Converted())
    # 25 steps, the first from alpha = 5e-5, where x0_hat is divided by alpha: 1e-16 / 5e-5 = 2e-12
    torch.testing.assert_close(by_mean, by_noise, rtol=0, atol=1e-10)
    assert (by_mean - walk(injection=NoisePrediction(), strength=Constant())).abs().max() > 1e-3


def test_on_ddim_a_pushed_image_reaches_the_sample_through_alpha(mixture):
    """One step: the image is pushed by p and the noise stays, so ``x_s`` moves by ``alpha_s p``."""
    after = {}

    def walk(scale):
        guide = Guide(
            objective=lambda image, target, level: image.sum((1, 2, 3)),
            scale=scale,
            strength=Constant(),
            injection=DenoisedImage(),
        )
        after[scale] = []
        settings = {"target": 0, "steps": 5, "clip": False, "dtype": F64, "callbacks": [after[scale].append]}
        sample(mixture, DDIM(), guides=[guide], **settings)
        return after[scale][0]

    still, pushed = walk(0.0), walk(0.25)
    torch.testing.assert_close(pushed.x - still.x, 0.25 * still.step.next.alpha.expand(1, 2, 1, 1), **ROUNDING)
    torch.testing.assert_close(pushed.x0 - still.x0, torch.full((1, 2, 1, 1), 0.25, dtype=F64), **ROUNDING)
