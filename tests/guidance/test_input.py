import pytest
import torch

from steersman.denoise import Prediction
from steersman.errors import InputError
from steersman.guidance import Denoised, Lookahead, Noisy, Rescaled
from steersman.schedule import VP

LEVEL = VP.cosine().at_time(900.0)


def test_noisy_is_the_sample_itself(mixture, draw):
    x_t = draw(2, 3, 4, 4)
    assert Noisy()(x_t, None, LEVEL, mixture) is x_t and not Noisy.needs_denoiser


def test_denoised_is_clipped_or_not(mixture, draw):
    x_t, x0_hat = draw(2, 3, 4, 4), 2 * draw(2, 3, 4, 4)
    assert torch.equal(Denoised()(x_t, Prediction(x0_hat), LEVEL, mixture), x0_hat.clamp(-1, 1))
    assert Denoised(clip=False)(x_t, Prediction(x0_hat), LEVEL, mixture) is x0_hat
    assert Denoised.needs_denoiser


def test_the_clip_is_differentiated(mixture, draw):
    x0_hat = (2 * draw(2, 3, 4, 4)).requires_grad_()
    (g,) = torch.autograd.grad(Denoised()(x0_hat, Prediction(x0_hat), LEVEL, mixture).sum(), x0_hat)
    assert torch.equal(g, (x0_hat.abs() <= 1).double())


def test_rescaled_brings_each_loud_image_to_rms_one_and_leaves_the_others(mixture, draw):
    """EluCD, Algorithm 2: ``z = x / max(1, rms(x))``."""
    x_t = draw(3, 3, 8, 8) * torch.tensor([0.1, 3.0, 40.0]).reshape(3, 1, 1, 1)
    z = Rescaled()(x_t, None, LEVEL, mixture)
    assert torch.equal(z[0], x_t[0])
    loud = x_t[1:] / (x_t[1:] ** 2).sum((1, 2, 3), keepdim=True).div(3 * 8 * 8).sqrt()
    torch.testing.assert_close(z[1:], loud, rtol=1e-14, atol=0)  # float64's rounding
    assert not Rescaled.needs_denoiser


def test_ahead_is_the_prediction_after_a_deterministic_step(mixture, draw):
    """DDIM written out: ``x_s = alpha_s x0_hat + sigma_s eps``, with ``eps = (x_t - alpha_t x0_hat) / sigma_t``."""
    x_t, s = draw(3, *mixture.shape), mixture.schedule.at_ratio(0.5)
    x0_hat = mixture(x_t, LEVEL).x0_hat
    x_s = s.alpha * x0_hat + s.sigma * (x_t - LEVEL.alpha * x0_hat) / LEVEL.sigma
    input = Lookahead(until=0.5, clip=False)(x_t, Prediction(x0_hat), LEVEL, mixture)
    torch.testing.assert_close(input, mixture(x_s, s).x0_hat, rtol=1e-12, atol=1e-12)


def test_far_enough_ahead_lies_an_image_of_the_mixture(mixture, draw):
    """The denoised image at high noise is nearly the mean of all; where the deterministic path ends is one of them."""
    x_t = LEVEL.alpha * mixture.sample(512, torch.Generator().manual_seed(1)) + LEVEL.sigma * draw(512, *mixture.shape)
    prediction = mixture(x_t, LEVEL)

    def spread(input):
        return input(x_t, prediction, LEVEL, mixture).std(0).norm()

    images = mixture.sample(4096, torch.Generator().manual_seed(2)).std(0).norm()
    assert spread(Denoised(clip=False)) < 0.5 * images
    # three deviations of the standard deviation of 512 draws, 1 / sqrt(2 · 512) each
    torch.testing.assert_close(spread(Lookahead(evaluations=50, until=0.01, clip=False)), images, rtol=0.1, atol=0)


def test_nothing_is_ahead_of_a_level_that_is_clean_enough(mixture, draw):
    x_t, ratio_min = draw(2, *mixture.shape), mixture.schedule.at_ratio(0.3)
    prediction = mixture(x_t, ratio_min)
    assert Lookahead(until=0.3, clip=False)(x_t, prediction, ratio_min, mixture) is prediction.x0_hat
    assert (Lookahead(until=0.4)(x_t, prediction, ratio_min, mixture) == prediction.x0_hat.clamp(-1, 1)).all()


@pytest.mark.parametrize("wrong", [{"evaluations": 0}, {"until": 0.0}])
def test_ahead_refuses_what_leads_nowhere(wrong):
    with pytest.raises(InputError):
        Lookahead(**wrong)
