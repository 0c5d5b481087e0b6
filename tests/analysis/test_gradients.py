"""A guided walk's gradients: which they are, and that the conditional one fades."""

import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import ClassProbability, Denoised, Guide
from steersman.lab.analysis.gradients import GRADIENT, IMAGE, NORM, guided_gradients
from steersman.sampling import DDPM, Recurrence
from steersman.schedule import CLEAN


def guide(mixture, marginal, scale=1.0):
    clean = ClassProbability(classifier=lambda image, _: mixture.log_posterior(image, CLEAN), marginal=marginal)
    return Guide(objective=clean, scale=scale, input=Denoised(clip=False))


def walk(mixture, guides, at=(0, 4), **settings):
    settings = {"steps": 8, "clip": False, "dtype": torch.float64} | settings
    return guided_gradients(mixture, DDPM(), guides, [1, 2, 1], [0, 1, 2], at=at, **settings)


def test_norms_are_of_the_gradient_on_the_image_that_is_shown(mixture):
    found = walk(mixture, [guide(mixture, 0.5)])
    assert found[NORM,].shape == (3, 8) and found[IMAGE,].shape == found[GRADIENT,].shape == (3, 2, 2, 1, 1)
    for place, step in enumerate((0, 4)):
        image = found[IMAGE,][:, place].double()
        p = mixture.log_posterior(image, CLEAN)
        pulls, _ = mixture._residuals(image, CLEAN)
        # of f_y - log sum_i exp(f_i / 2), f the log posterior: minus the joint pull, and the marginal's by half
        mean, half = ((p * scale).softmax(1)[..., None] for scale in (1, 0.5))
        own = (mean * pulls).sum(1) - pulls[torch.arange(3), torch.tensor([1, 2, 1])]
        others = 0.5 * ((mean - half) * pulls).sum(1)
        expected = own - others
        torch.testing.assert_close(found[GRADIENT,][:, place, :, 0, 0].double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[NORM,][:, step], expected.norm(dim=1), rtol=1e-4, atol=1e-4)


def test_recurrence_counts_a_step_once(mixture):
    found = walk(mixture, [guide(mixture, 1.0)], recurrence=Recurrence(times=2))
    assert found[NORM,].shape == (3, 8) and found[IMAGE,].shape[1] == 2


def test_refusals(mixture):
    with pytest.raises(InputError, match="guides must have at least 1 guide"):
        walk(mixture, [])
    with pytest.raises(InputError, match="no gradient at any step"):
        walk(mixture, [guide(mixture, 1.0, scale=0.0)])
