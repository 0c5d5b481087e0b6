import torch

from steersman.denoise import Prediction
from steersman.guidance import Denoised, Noisy, Rescaled


def test_noisy_is_the_sample_itself(draw):
    x_t = draw(2, 3, 4, 4)
    assert Noisy()(x_t, None) is x_t and not Noisy.needs_denoiser


def test_denoised_is_clipped_or_not(draw):
    x_t, x0_hat = draw(2, 3, 4, 4), 2 * draw(2, 3, 4, 4)
    assert torch.equal(Denoised()(x_t, Prediction(x0_hat)), x0_hat.clamp(-1, 1))
    assert Denoised(clip=False)(x_t, Prediction(x0_hat)) is x0_hat
    assert Denoised.needs_denoiser


def test_the_clip_is_differentiated(draw):
    x0_hat = (2 * draw(2, 3, 4, 4)).requires_grad_()
    (g,) = torch.autograd.grad(Denoised()(x0_hat, Prediction(x0_hat)).sum(), x0_hat)
    assert torch.equal(g, (x0_hat.abs() <= 1).double())


def test_rescaled_brings_each_loud_image_to_rms_one_and_leaves_the_others(draw):
    """EluCD, Algorithm 2: ``z = x / max(1, rms(x))``."""
    x_t = draw(3, 3, 8, 8) * torch.tensor([0.1, 3.0, 40.0]).reshape(3, 1, 1, 1)
    z = Rescaled()(x_t, None)
    assert torch.equal(z[0], x_t[0])
    loud = x_t[1:] / (x_t[1:] ** 2).sum((1, 2, 3), keepdim=True).div(3 * 8 * 8).sqrt()
    torch.testing.assert_close(z[1:], loud, rtol=1e-14, atol=0)  # float64's rounding
    assert not Rescaled.needs_denoiser
