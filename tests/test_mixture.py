import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from steersman.errors import InputError
from steersman.mixture import Mixture
from steersman.schedule import VP, Level

F64 = torch.float64
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}
"""Float64's, through a solve of condition at most 4 and a logarithm of order 10: about 1e-13 is seen."""


def level(alpha, sigma):
    return Level(*(torch.as_tensor(value, dtype=F64) for value in (alpha, sigma, 0.0)))


LEVELS = {
    "VP, noisy": VP.cosine().at_time(900.0),
    "VP, half": VP.cosine().at_time(500.0),
    "VP, clean": VP.cosine().at_time(10.0),
    "EDM": level(1.0, 0.7),
    "flow": level(0.6, 0.4),
    "one each": level([1.0, 0.9, 0.6, 0.3, 0.1], [0.5, 0.1, 0.8, 0.7, 1.0]),
}
at_every_level = pytest.mark.parametrize("at", LEVELS.values(), ids=LEVELS)


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def shaped(value):
    return value.reshape(-1, 1, 1, 1)


@at_every_level
def test_log_joint_is_the_density_of_the_noised_component(mixture, draw, at):
    x_t = draw(5, 2, 1, 1)
    eye = torch.eye(2, dtype=F64)
    for row in range(5):
        alpha, sigma = (value[row] if value.ndim else value for value in at[:2])
        noised = MultivariateNormal(alpha * mixture.means, alpha**2 * mixture.covariances + sigma**2 * eye)
        expected = mixture.weights.log() + noised.log_prob(x_t[row, :, 0, 0]) + math.log(2 * math.pi)
        torch.testing.assert_close(mixture.log_joint(x_t, at)[row], expected, **ROUNDING)


@at_every_level
@pytest.mark.parametrize("j", range(3))
def test_directions_are_the_gradients(mixture, draw, at, j):
    """EluCD, Prop. 4.2."""
    x_t = draw(5, 2, 1, 1)
    joint = gradient(lambda x: mixture.log_joint(x, at)[:, j], x_t)
    torch.testing.assert_close(mixture.joint_direction(x_t, at, j), joint, **ROUNDING)
    posterior = gradient(lambda x: mixture.log_posterior(x, at)[:, j], x_t)
    torch.testing.assert_close(mixture.conditional_direction(x_t, at, j), posterior, **ROUNDING)


def test_with_identity_covariances_the_directions_are_differences_of_means(mixture, draw):
    unit = Mixture(weights=mixture.weights, means=mixture.means, covariances=torch.eye(2, dtype=F64).expand(3, 2, 2))
    x, clean = draw(5, 2, 1, 1), level(1.0, 0.0)
    share = unit.log_posterior(x, clean).exp()
    joint = unit.means[1] - x[:, :, 0, 0]
    conditional = unit.means[1] - share @ unit.means
    torch.testing.assert_close(unit.joint_direction(x, clean, 1)[:, :, 0, 0], joint, **ROUNDING)
    torch.testing.assert_close(unit.conditional_direction(x, clean, 1)[:, :, 0, 0], conditional, **ROUNDING)


@at_every_level
def test_x0_hat_is_tweedies(mixture, draw, at):
    """``x0_hat = (x_t + sigma^2 grad log p(x_t)) / alpha``."""
    x_t = draw(5, 2, 1, 1)
    score = gradient(lambda x: mixture.log_joint(x, at).logsumexp(1), x_t)
    expected = (x_t + shaped(at.sigma) ** 2 * score) / shaped(at.alpha)
    torch.testing.assert_close(mixture(x_t, at).x0_hat, expected, **ROUNDING)


@at_every_level
@pytest.mark.parametrize("j", range(3))
def test_the_classifiers_gradient_turns_one_denoiser_into_the_other(mixture, draw, at, j):
    """``x0_hat(x_t, y) = x0_hat(x_t) + (sigma^2 / alpha) grad log p(y | x_t)``."""
    x_t = draw(5, 2, 1, 1)
    conditional = mixture(x_t, at, label=torch.full((5,), j)).x0_hat
    update = shaped(at.sigma) ** 2 / shaped(at.alpha) * gradient(lambda x: mixture.log_posterior(x, at)[:, j], x_t)
    torch.testing.assert_close(conditional, mixture(x_t, at).x0_hat + update, **ROUNDING)


def test_labels_may_differ_from_image_to_image(mixture, draw):
    x_t, at = draw(3, 2, 1, 1), LEVELS["EDM"]
    together = mixture(x_t, at, label=torch.tensor([2, 0, 1])).x0_hat
    for row, j in enumerate([2, 0, 1]):
        alone = mixture(x_t[row : row + 1], at, label=torch.tensor([j])).x0_hat
        torch.testing.assert_close(together[row : row + 1], alone, **ROUNDING)


def test_x0_hat_and_posterior_are_bayes_by_quadrature():
    """In one dimension, without Tweedie: ``x0_hat = int x0 p(x0) N(x_t; alpha x0, sigma^2) dx0 / p(x_t)``."""
    line = Mixture(
        weights=torch.tensor([0.7, 0.3], dtype=F64),
        means=torch.tensor([[-0.5], [0.6]], dtype=F64),
        covariances=torch.tensor([[[0.04]], [[0.09]]], dtype=F64),
    )
    x0, at = torch.linspace(-5, 5, 20001, dtype=F64), level(0.8, 0.5)
    of_class = (
        line.weights
        * torch.distributions.Normal(line.means[:, 0], line.covariances[:, 0, 0].sqrt()).log_prob(x0[:, None]).exp()
    )
    for x_t in (-1.0, 0.1, 2.0):
        weight = (of_class * torch.exp(-((x_t - at.alpha * x0[:, None]) ** 2) / (2 * at.sigma**2))).sum(0)
        mean = (x0[:, None] * of_class * torch.exp(-((x_t - at.alpha * x0[:, None]) ** 2) / (2 * at.sigma**2))).sum()
        point = torch.full((1, 1, 1, 1), x_t, dtype=F64)
        # the trapezoid rule is exact to rounding for densities that vanish at both ends
        torch.testing.assert_close(line(point, at).x0_hat[0, 0, 0, 0], mean / weight.sum(), **ROUNDING)
        torch.testing.assert_close(line.log_posterior(point, at).exp()[0], weight / weight.sum(), **ROUNDING)


@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_samples_have_the_exact_moments(mixture, label):
    n = 20_000
    x = mixture.sample(n, torch.Generator().manual_seed(0), label=label)
    assert x.shape == (n, 2, 1, 1)
    x = x[:, :, 0, 0]
    weights = mixture.weights if label is None else torch.eye(3, dtype=F64)[label]
    mean = weights @ mixture.means
    second = torch.einsum("k,kde->de", weights, mixture.covariances) + torch.einsum(
        "k,kd,ke->de", weights, mixture.means, mixture.means
    )
    # five standard errors; the products' are taken from the samples themselves
    products = x[:, :, None] * x[:, None, :]
    assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / n**0.5).all()
    assert ((products.mean(0) - second).abs() < 5 * products.std(0) / n**0.5).all()


def test_is_a_denoiser(mixture):
    assert mixture.shape == (2, 1, 1)
    assert mixture.classes == ("0", "1", "2")
    x = torch.zeros(1, 2, 1, 1)
    assert mixture.decode(x) is x
    assert mixture(x, LEVELS["EDM"]).x0_hat.dtype == torch.float32


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [1.0, 0.0]])
def test_refuses_weights(weights):
    with pytest.raises(InputError, match="weights must be above 0 and sum to 1, got"):
        Mixture(
            weights=torch.tensor(weights, dtype=F64),
            means=torch.zeros(2, 1, dtype=F64),
            covariances=torch.ones(2, 1, 1, dtype=F64),
        )
