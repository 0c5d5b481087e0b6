"""Published methods: each written out from its paper in a few lines, and the recipe's run beside it, on the same noise.

The denoiser is the mixture's exact one, the classifier its own at a small noise; everything in float64.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from steersman.recipes import load_recipe
from steersman.sampling import sample
from steersman.schedule import VP

F64 = torch.float64
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}
"""Float64's, through a walk of a few steps."""

STEPS, BATCH, TARGET = 5, 4, 2


def gradient(function, x):
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def norm(x):
    return x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


class Problem:
    """What every method is made of: ``x0_hat``, ``log p(y | x0)``, levels and noise."""

    def __init__(self, mixture, walk):
        self.mixture, self.clean = mixture, mixture.schedule.at_time(120.0)
        self.levels = mixture.schedule.levels(walk["steps"], walk["spacing"])
        generator = torch.Generator().manual_seed(3)
        self.noise = [torch.randn(BATCH, 2, 1, 1, generator=generator, dtype=F64) for _ in range(80)]

    def classifier(self, image, level=None):
        return self.mixture.log_posterior(image, self.clean)

    def log_p(self, image):
        return self.classifier(image).log_softmax(1)[:, TARGET]

    def x0_hat(self, x_t, level):
        return self.mixture(x_t, level).x0_hat

    def of_x_t(self, level, clip=False, log_p=None):
        """``log p(y | x0_hat(x_t))`` as a function of ``x_t``."""
        return lambda x_t: (log_p or self.log_p)(self.x0_hat(x_t, level).clamp(*((-1, 1) if clip else (-9e9, 9e9))))

    def walked(self, step, times=1):
        """The walk of a method: ``step(x_t, level, next, z)``, each done so many times with noise in between."""
        noise = iter(self.noise)
        x = next(noise)
        for level, then in pairwise(self.levels):
            a = level.alpha**2 / then.alpha**2
            for repeat in range(times):
                x_s = step(x, level, then, next(noise) if then.sigma > 0 else torch.zeros_like(x))
                x = a.sqrt() * x_s + (1 - a).sqrt() * next(noise) if repeat + 1 < times else x_s
        return x

    def schedule(self, level, then):
        """``a_t`` over its mean of the walk: TFG's strength that increases."""
        shares = [now.alpha**2 / to.alpha**2 for now, to in pairwise(self.levels)]
        return level.alpha**2 / then.alpha**2 / (sum(shares) / len(shares))


def eps_of(x_t, x0, level):
    return (x_t - level.alpha * x0) / level.sigma


def ddim(x0, eps, level, then, z, eta=1.0):
    """Song et al. (2021), eq. 12 and 16."""
    a = level.alpha**2 / then.alpha**2
    deviation = eta * (then.sigma**2 / level.sigma**2 * (1 - a)).sqrt()
    return then.alpha * x0 + (then.sigma**2 - deviation**2).sqrt() * eps + deviation * z


def ddpm(x_t, x0, level, then, z):
    """Ho et al. (2020), eq. 6 and 7."""
    a = level.alpha**2 / then.alpha**2
    mean = then.alpha * (1 - a) / level.sigma**2 * x0 + a.sqrt() * then.sigma**2 / level.sigma**2 * x_t
    return mean + (then.sigma**2 / level.sigma**2 * (1 - a)).sqrt() * z


def universal(problem, scale, backward, m, guided):
    """Bansal et al. (2023), eq. 3, 6, 7 and 9."""

    def step(x_t, level, then, z):
        x0 = problem.x0_hat(x_t, level)
        eps = eps_of(x_t, x0, level) - scale * level.sigma * gradient(problem.of_x_t(level), x_t)
        begin = (x_t - level.sigma * eps) / level.alpha if guided else x0
        moved = begin
        for _ in range(m):
            moved = moved + backward * gradient(problem.log_p, moved)
        eps = eps - level.alpha / level.sigma * (moved - begin)
        return ddim((x_t - level.sigma * eps) / level.alpha, eps, level, then, z)

    return step


def dps(problem, scale, loss):
    """Chung et al. (2023), Algorithm 1, with ``-log p`` for the squared residual."""

    def step(x_t, level, then, z):
        x0 = problem.x0_hat(x_t, level)
        return ddpm(x_t, x0, level, then, z) - scale * gradient(lambda x: loss(-problem.of_x_t(level)(x)), x_t)

    return step


def tfg(problem, rho, mu, radius, copies, n):
    """Ye et al. (2024), Algorithm 1."""

    def step(x_t, level, then, z):
        seed = torch.Generator().manual_seed(round(1000 * float(level.time)))
        noise = radius * level.sigma * torch.randn(copies, 2, 1, 1, generator=seed).to(F64)

        def smooth(image):
            return torch.stack([problem.log_p(image + each).exp() for each in noise]).mean(0).log()

        weight, a = problem.schedule(level, then), level.alpha**2 / then.alpha**2
        x0 = problem.x0_hat(x_t, level).clamp(-1, 1)
        moved = x0
        for _ in range(n):
            moved = moved + mu * weight * gradient(smooth, moved)
        through = rho * weight * gradient(problem.of_x_t(level, clip=True, log_p=smooth), x_t)
        plain = ddim(x0, eps_of(x_t, x0, level), level, then, z)
        return plain + through / a.sqrt() + then.alpha * (moved - x0)

    return step


def lgd(problem, scale, copies):
    """Song et al. (2023), LGD-MC: the score of ``log (1/n) sum_k exp(-loss(x0_hat + sigma z_k))``."""

    def step(x_t, level, then, z):
        seed = torch.Generator().manual_seed(round(1000 * float(level.time)))
        noise = level.sigma * torch.randn(copies, 2, 1, 1, generator=seed).to(F64)

        def smooth(image):
            return torch.stack([problem.log_p(image + each).exp() for each in noise]).mean(0).log()

        eps = eps_of(x_t, problem.x0_hat(x_t, level), level)
        eps = eps - scale * level.sigma * gradient(problem.of_x_t(level, log_p=smooth), x_t)
        return ddim((x_t - level.sigma * eps) / level.alpha, eps, level, then, z)

    return step


def mpgd(problem, scale, eta, clip):
    """He et al. (2024), Algorithm 1: ``x0_hat`` is moved, the noise prediction is not."""

    def step(x_t, level, then, z):
        x0_hat = problem.x0_hat(x_t, level)
        x0 = x0_hat.clamp(-1, 1) if clip else x0_hat
        return ddim(x0 + scale * gradient(problem.log_p, x0), eps_of(x_t, x0_hat, level), level, then, z, eta)

    return step


def freedom(problem, scale):
    """Yu et al. (2023), Algorithm 1 with the released step size; the posterior's coefficient of ``x0_hat`` is c."""

    def step(x_t, level, then, z):
        x0 = problem.x0_hat(x_t, level)
        a, n = level.alpha**2 / then.alpha**2, 2**0.5
        c = then.alpha * (1 - a) / level.sigma**2
        g = gradient(problem.of_x_t(level), x_t)
        size = scale * c * norm(eps_of(x_t, x0, level)) / n * level.sigma / level.alpha / (norm(g) / n)
        return ddpm(x_t, x0, level, then, z) + size * g

    return step


def in_tfgs_code(problem, scale):
    """FreeDoM as Ye et al. (2024) have it: ``x_s + rho_t g``."""

    def step(x_t, level, then, z):
        x0 = problem.x0_hat(x_t, level)
        g = gradient(problem.of_x_t(level), x_t)
        return ddim(x0, eps_of(x_t, x0, level), level, then, z) + scale * problem.schedule(level, then) * g

    return step


def polyak(problem, scale):
    """Shen et al. (2024): a step of ``eta |eps| / |g|^2``."""

    def step(x_t, level, then, z):
        x0 = problem.x0_hat(x_t, level)
        g = gradient(problem.of_x_t(level), x_t)
        return ddpm(x_t, x0, level, then, z) + scale * norm(eps_of(x_t, x0, level)) / norm(g) ** 2 * g

    return step


def dsg(problem, rate):
    """Yang et al. (2024): the noise mixed with the gradient's direction, back on the sphere of radius r."""

    def step(x_t, level, then, z):
        x0 = problem.x0_hat(x_t, level)
        mean = ddpm(x_t, x0, level, then, 0 * z)
        if not then.sigma > 0:
            return mean
        variance = then.sigma**2 / level.sigma**2 * (1 - level.alpha**2 / then.alpha**2)
        r, g = (2 * variance).sqrt(), gradient(problem.of_x_t(level), x_t)
        mixed = variance.sqrt() * z + rate * (r * g / norm(g) - variance.sqrt() * z)
        return mean + r * mixed / norm(mixed)

    return step


def adam_moments(problem, scale, beta1, beta2):
    """Belardi et al. (2026): DPS with Adam's corrected moments of the gradient in place of it."""
    m, v, n = 0.0, 0.0, 0

    def step(x_t, level, then, z):
        nonlocal m, v, n
        x0 = problem.x0_hat(x_t, level)
        g, n = gradient(problem.of_x_t(level), x_t), n + 1
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        used = m / (1 - beta1**n) / ((v / (1 - beta2**n)).sqrt() + 1e-8)
        return ddpm(x_t, x0, level, then, z) + scale * used * then.alpha / level.alpha

    return step


METHODS = {
    "universal": (["scale=0.3", "recurrence=2"], lambda it: universal(it, 0.3, 0.1, 5, guided=False), 2),
    "universal/sequential": (["scale=0.3", "recurrence=2"], lambda it: universal(it, 0.3, 0.1, 5, guided=True), 2),
    "universal/forward": (["scale=0.3", "recurrence=1"], lambda it: universal(it, 0.3, 0.0, 0, guided=False), 1),
    "dps": (["scale=0.4"], lambda it: dps(it, 0.4, lambda loss: loss.sqrt()), 1),
    "dps/squared": (["scale=0.1"], lambda it: dps(it, 0.1, lambda loss: loss), 1),
    "dps/tfg-code": (["scale=0.3"], lambda it: dps(it, 0.3, lambda loss: loss.log()), 1),
    "tfg": ([], lambda it: tfg(it, 1.0, 0.25, 0.001, 1, 4), 1),
    "tfg/imagenet": (["scale=0.2", "smoothing.copies=3"], lambda it: tfg(it, 0.2, 0.5, 0.1, 3, 4), 1),
    "tfg/recurrent": (["scale=0.2", "extra_guides.0.scale=0.1"], lambda it: tfg(it, 0.2, 0.1, 0.001, 1, 4), 4),
    "lgd": (["scale=0.5"], lambda it: lgd(it, 0.5, 10), 1),
    "mpgd": (["scale=0.1"], lambda it: mpgd(it, 0.1, eta=0.0, clip=False), 1),
    "mpgd/tfg-code": (["scale=0.1"], lambda it: mpgd(it, 0.1, eta=1.0, clip=True), 1),
    "freedom": (["scale=0.2", "recurrence=2"], lambda it: freedom(it, 0.2), 2),
    "freedom/tfg-code": (["scale=0.2"], lambda it: in_tfgs_code(it, 0.2), 1),
    "polyak": (["scale=0.02", "recurrence=2", "smoothing=none"], lambda it: polyak(it, 0.02), 2),
    "dsg": (["scale=0.3"], lambda it: dsg(it, 0.3), 1),
    "adam-moments": ([], lambda it: adam_moments(it, 0.034, 0.0, 0.817), 1),
    "adam-moments/imagenet": (["scale=0.05"], lambda it: adam_moments(it, 0.05, 0.254, 0.726), 1),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_is_the_method(name, mixture):
    changes, method, times = METHODS[name]
    recipe = load_recipe(name, [f"sampling.steps={STEPS}", *changes])
    mixture = replace(mixture, schedule=VP.linear())
    problem = Problem(mixture, recipe.sampling())
    given = {"seeds": range(BATCH), "noise": iter(problem.noise), "dtype": F64, **recipe.sampling()}
    found = sample(mixture, recipe.sampler(), guides=recipe.bind_prepared(problem.classifier), target=TARGET, **given)
    plain = sample(mixture, recipe.sampler(), **given)
    torch.testing.assert_close(found, problem.walked(method(problem), times), **ROUNDING)
    assert float((found - plain).abs().max()) > 0.01
