import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from steersman.sampling import sample
from steersman.schedule import EDM, VP, Flow

F64 = torch.float64


class Recording:
    """The mixture, and what it was asked."""

    def __init__(self, mixture):
        self.mixture, self.schedule, self.shape, self.classes = mixture, mixture.schedule, mixture.shape, ()
        self.decode, self.asked, self.predicted = mixture.decode, [], []

    def __call__(self, x_t, level, **condition):
        prediction = self.mixture(x_t, level, **condition)
        self.asked.append((x_t.detach().clone(), level))
        self.predicted.append(prediction.x0_hat.detach().clone())
        return prediction


@pytest.fixture
def recording(mixture):
    return Recording(mixture)


class Uneven:
    """From ``sigma / alpha`` of 10 to 0.02 and no further, by steps in its logarithm that are long and short in turn.

    It ends above zero, where an error is still the solver's own, and no step is as long as the one before it.
    """

    def __init__(self, schedule):
        self.schedule = schedule

    def at_time(self, time):
        return self.schedule.at_time(time)

    def at_ratio(self, ratio):
        return self.schedule.at_ratio(ratio)

    def start(self, level):
        return float(level.sigma)

    def levels(self, steps, spacing="linspace", ratio_min=0.0, ratio_max=math.inf):
        places = torch.arange(steps + 1)
        shares = (places + 0.25 * (places % 2)).double() / steps
        return tuple(self.at_ratio(10.0 * 0.002**share) for share in shares)


@pytest.fixture(scope="module", params=[EDM(), VP.cosine(), Flow()], ids=["EDM", "VP", "flow"])
def uneven(request, mixture):
    return replace(mixture, schedule=Uneven(request.param))


@pytest.fixture(scope="module")
def start():
    return torch.randn(20, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.fixture(scope="module")
def solution(uneven, start):
    """The probability-flow ODE ``dz / d log t = z - x0_hat`` in ``z = x / alpha`` and ``t = sigma / alpha``.

    Solved by 200 steps of the classical Runge-Kutta method; 400 of them differ by less than 3e-8.
    """
    ratio_max, ratio_min = uneven.schedule.levels(2)[::2]

    def slope(z, log_t):
        level = uneven.schedule.at_ratio(log_t.exp())
        return z - uneven(level.alpha * z, level).x0_hat

    z, places = ratio_max.sigma * start / ratio_max.alpha, torch.linspace(math.log(10.0), math.log(0.02), 201).double()
    for here, there in pairwise(places):
        h = there - here
        first = slope(z, here)
        second = slope(z + h / 2 * first, here + h / 2)
        third = slope(z + h / 2 * second, here + h / 2)
        z = z + h / 6 * (first + 2 * second + 2 * third + slope(z + h * third, there))
    return ratio_min.alpha * z


@pytest.fixture(scope="module")
def order(uneven, start):
    """The order at which a sampler nears a solution of the ODE: the slope of its error from 40 to 80 steps."""

    def measure(sampler, solution, **settings):
        errors = []
        for steps in (40, 80):
            x = sample(uneven, sampler, seeds=range(20), steps=steps, noise=[start], clip=False, dtype=F64, **settings)
            errors.append(float((x - solution).square().mean().sqrt()))
        return math.log2(errors[0] / errors[1])

    return measure


@pytest.fixture(scope="module")
def conditional_solution(uneven, start):
    """The same ODE of class 2 alone, in closed form: along each axis it keeps the number of deviations."""
    ratio_max, ratio_min = uneven.schedule.levels(2)[::2]
    values, axes = torch.linalg.eigh(uneven.covariances[2])
    away = (ratio_max.sigma * start[:, :, 0, 0] - ratio_max.alpha * uneven.means[2]) @ axes
    scaled = (
        away
        * (
            (ratio_min.alpha**2 * values + ratio_min.sigma**2) / (ratio_max.alpha**2 * values + ratio_max.sigma**2)
        ).sqrt()
    )
    return (ratio_min.alpha * uneven.means[2] + scaled @ axes.T)[..., None, None]
