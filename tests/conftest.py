"""What the tests share: a mixture of which everything is known, its exact classifier, and draws."""

import math

import jaxtyping
import pytest
import torch

from steersman.mixture import Mixture

torch.set_num_threads(1)


def spread(first, second, angle):
    """A covariance with these variances along axes turned by an angle."""
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([first, second], dtype=torch.float64)) @ turn.T


@pytest.fixture(scope="session")
def mixture():
    """Three overlapping classes in the plane, within [-1, 1] but for the tails."""
    return Mixture(
        weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        means=torch.tensor([[-0.4, -0.2], [0.4, -0.2], [0.0, 0.4]], dtype=torch.float64),
        covariances=torch.stack([spread(0.06, 0.03, 0.4), spread(0.05, 0.03, -0.6), spread(0.06, 0.04, 1.0)]),
    )


@pytest.fixture(scope="session")
def posterior(mixture):
    """The exact noise-aware classifier; its logits are normalised log-probabilities."""

    def logits(image, level=None):
        return mixture.log_posterior(image, level)

    return logits


@pytest.fixture
def draw():
    """Reproducible standard normal draws in float64: ``draw(4, 2, 1, 1)``."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the checks of types at run time, as for a user: what reaches our own messages."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
