import pytest

from steersman.guidance import Step, reverse_variance
from steersman.schedule import VP


@pytest.fixture
def linear(weights):
    """A linear classifier of the weights that a file's own fixture draws."""
    return lambda image, level=None: image.flatten(1) @ weights.T


@pytest.fixture
def image(draw):
    return draw(4, 3, 2, 2).requires_grad_()


@pytest.fixture
def step():
    """A step of a walk: ``step(index=3, count=10)``; its variance is the largest so far but for the first step."""

    def build(index=0, count=10, *, stage=0, schedule=None):
        levels = (schedule or VP.cosine()).levels(count)
        variance = reverse_variance(levels[index], levels[index + 1])
        return Step(index, count, 0, stage, levels[index], levels[index + 1], variance, variance)

    return build
