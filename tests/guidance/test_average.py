"""Averages against closed forms: a linear and a quadratic log-likelihood, of which the averages are known."""

import math

import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import Augmented, MonteCarlo
from steersman.schedule import VP

LEVEL = VP.cosine().at_time(500.0)
TARGET = torch.tensor([0, 1])


def total(image, target, level):
    """A log-likelihood that no turn of a small spot in the middle changes."""
    return image.sum((1, 2, 3)) * (1 + target)


def spot():
    image = torch.zeros(2, 3, 33, 33, dtype=torch.float64)
    image[:, :, 14:19, 14:19] = 1
    return image


def test_turns_and_shifts_keep_the_sum_of_a_spot():
    """Bilinear sampling keeps a spot's sum up to the grid's error, some per cent of 25 pixels a channel."""
    averaged = Augmented(objective=total, copies=8, zoom=0.0, shift=0.1, turn=180.0)(spot(), TARGET, LEVEL)
    torch.testing.assert_close(averaged, total(spot(), TARGET, LEVEL), rtol=0.05, atol=0)


def test_a_zoom_scales_the_area():
    """A copy of size 1/s shows a spot of area 1/s^2, and the sizes are those drawn for this level."""
    averaged = Augmented(objective=total, copies=2, zoom=0.5, shift=0.0, turn=0.0)(spot(), TARGET, LEVEL)
    generator = torch.Generator().manual_seed(round(1000 * 500.0))
    size = 1.5 ** float(torch.rand(1, 4, generator=generator, dtype=torch.float64)[0, 0] * 2 - 1)
    expected = total(spot(), TARGET, LEVEL) * (1 + size**-2) / 2
    torch.testing.assert_close(averaged, expected, rtol=0.1, atol=0)


def test_one_copy_is_the_image_itself():
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (Augmented(objective=total, copies=1)(image, TARGET, LEVEL) == total(image, TARGET, LEVEL)).all()
    assert (MonteCarlo(objective=total, copies=3, radius=0.0)(image, TARGET, LEVEL)).allclose(
        total(image, TARGET, LEVEL)
    )


def test_montecarlo_is_the_log_of_the_mean_likelihood():
    """For log p = a x, E exp(a (x + r sigma z)) = exp(a x + (a r sigma)^2 / 2); the error is that of 4096 draws."""
    image = torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64)
    averaged = MonteCarlo(objective=total, copies=4096, radius=0.5)(image, TARGET, LEVEL)
    slope = 1.0 + TARGET
    spread = slope * 0.5 * LEVEL.sigma
    expected = slope * 0.3 + spread**2 / 2
    error = ((spread**2).exp() - 1).sqrt() / math.sqrt(4096)
    assert ((averaged - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("average", [Augmented, MonteCarlo])
def test_an_image_does_not_depend_on_its_neighbours(average):
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = average(objective=total)(image, TARGET, LEVEL)
    alone = average(objective=total)(image[1:], TARGET[1:], LEVEL)
    torch.testing.assert_close(both[1:], alone)


def test_settings_out_of_range_are_refused():
    for wrong in ({"copies": 0}, {"zoom": 1.0}, {"shift": 2.0}, {"turn": 200.0}):
        with pytest.raises(InputError):
            Augmented(objective=total, **wrong)
    with pytest.raises(InputError):
        MonteCarlo(objective=total, radius=-1.0)
