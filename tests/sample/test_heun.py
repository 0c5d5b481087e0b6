import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from diffusers import HeunDiscreteScheduler

from steersman.errors import InputError
from steersman.guidance import ClassProbability, Constant, Denoised, Guide, Interval, NoisePrediction, Noisy, Variance
from steersman.sampling import Heun, sample
from steersman.schedule import EDM, VP

F64 = torch.float64


def algorithm_2(denoise, z, ts, draws, churn, ratio_min, ratio_max, noise):
    """EDM's Algorithm 2 as it is printed, in its own symbols; a draw only where gamma is above 0."""
    draws = iter(draws)
    for t, t_next in pairwise(ts):
        gamma = min(churn / (len(ts) - 1), math.sqrt(2) - 1) if ratio_min <= t <= ratio_max else 0
        t_hat = t + gamma * t
        z_hat = z + math.sqrt(t_hat**2 - t**2) * noise * next(draws) if gamma else z
        d = (z_hat - denoise(z_hat, t_hat)) / t_hat
        z = z_hat + (t_next - t_hat) * d
        if t_next:
            d_next = (z - denoise(z, t_next)) / t_next
            z = z_hat + (t_next - t_hat) * (d + d_next) / 2
    return z


@pytest.mark.parametrize("schedule", [EDM(), VP.cosine()], ids=["EDM", "VP"])
@pytest.mark.parametrize("steps", [1, 2, 8, 18])
@pytest.mark.parametrize("churn", [(0.0, 0.0, math.inf, 1.0), (4.0, 0.05, 50.0, 1.003), (40.0, 0.0, 50.0, 1.007)])
def test_a_walk_is_edms_algorithm(mixture, draw, schedule, steps, churn):
    mixture, draws = replace(mixture, schedule=schedule), [draw(4, 2, 1, 1) for _ in range(1 + steps)]
    levels = schedule.levels(steps, "karras")

    def denoise(z, t):
        level = schedule.at_ratio(t)
        return mixture(level.alpha * z, level).x0_hat

    ts = [float(level.sigma / level.alpha) for level in levels]
    expected = algorithm_2(denoise, schedule.start(levels[0]) * draws[0] / levels[0].alpha, ts, draws[1:], *churn)
    sampler = Heun(**dict(zip(("churn", "ratio_min", "ratio_max", "noise"), churn, strict=True)))
    settings = {"seeds": range(4), "steps": steps, "spacing": "karras", "clip": False, "dtype": F64}
    # float64's rounding, divided by the first level's alpha of 5e-5; two steps from there end at 1e4
    torch.testing.assert_close(
        sample(mixture, sampler, noise=iter(draws), **settings), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("steps", [5, 20])
def test_a_walk_is_that_of_diffusers(mixture, start, steps):
    mixture = replace(mixture, schedule=VP.linear())
    scheduler = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    theirs = start / mixture.schedule.levels(1)[0].alpha
    for t in scheduler.timesteps:
        level = mixture.schedule.at_time(t)
        x_t = level.alpha * theirs
        eps = (x_t - level.alpha * mixture(x_t, level).x0_hat) / level.sigma
        theirs = scheduler.step(eps, t, theirs).prev_sample
    settings = {"seeds": range(20), "steps": steps, "spacing": "trailing", "clip": False, "dtype": F64}
    ours = sample(mixture, Heun(), noise=[start], **settings)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)  # its levels are float32; 5e-7 is seen


def test_no_noise_beyond_what_the_schedule_knows(mixture, draw):
    """A variance-preserving walk starts from the noisiest level that there is: churn stays there."""
    start, other = draw(4, 2, 1, 1), draw(4, 2, 1, 1)
    settings = {"seeds": range(4), "steps": 1, "dtype": F64}
    churned = sample(mixture, Heun(churn=1.0), noise=[start, other], **settings)
    assert torch.equal(churned, sample(mixture, Heun(), noise=[start], **settings))


@pytest.mark.few(3)
def test_its_order_is_two(order, solution):
    assert order(Heun(), solution) == pytest.approx(2, abs=0.2)


@pytest.fixture
def objective(posterior):
    return ClassProbability(classifier=posterior)


@pytest.fixture
def guide(objective):
    return Guide(objective=objective, input=Noisy(), weight=Constant(), injection=NoisePrediction())


@pytest.mark.long
def test_guided_it_nears_the_conditional_law_at_its_order(order, conditional_solution, guide):
    """The exact classifier at scale 1: each sample goes where the class's own ODE takes it."""
    assert order(Heun(), conditional_solution, guides=[guide], target=2) == pytest.approx(2, abs=0.2)


class Asked:
    """What Heun asks, with another answer at the second stage."""

    def __init__(self, predict, fault):
        self.predict, self.fault, self.schedule = predict, fault, predict.schedule

    def __call__(self, x_t, level, stage=0):
        if stage:
            return self.fault(self, x_t, level)
        self.x_t, self.level, self.estimate = x_t, level, self.predict(x_t, level)
        return self.estimate


@dataclass(frozen=True, kw_only=True)
class Faulty(Heun):
    fault: Callable

    def step(self, x_t, step, predict, draw, state):
        return super().step(x_t, step, Asked(predict, self.fault), draw, state)


def times(factor):
    def fault(asked, x_t, level):
        second = asked.predict(x_t, level, stage=1)
        return second._replace(eps=asked.estimate.eps + factor * (second.eps - asked.estimate.eps))

    return fault


FAULTS = {
    "Euler": lambda asked, x_t, level: asked.estimate,
    "half the correction": times(0.5),
    "twice the correction": times(2.0),
    "against the correction": times(-1.0),
    "told the first level": lambda asked, x_t, level: asked.predict(x_t, asked.level, stage=1),
    "asked of the first sample": lambda asked, x_t, level: asked.predict(asked.x_t, level, stage=1),
}


@pytest.mark.parametrize("uneven", [EDM()], ids=["EDM"], indirect=True)
def test_no_fault_is_no_fault(order, solution):
    assert order(Faulty(fault=times(1.0)), solution) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("uneven", [EDM()], ids=["EDM"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_second_stage_is_of_first_order(order, solution, fault):
    assert order(Faulty(fault=FAULTS[fault]), solution) < 1.5


def root(matrix):
    values, axes = torch.linalg.eigh(matrix)
    return axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.T


def law(mixture, level):
    """The first two moments of class 2 at a level."""
    covariance = level.alpha**2 * mixture.covariances[2] + level.sigma**2 * torch.eye(2, dtype=F64)
    return level.alpha * mixture.means[2], covariance


def distance(mixture, sampler, steps):
    """How far a churned walk of class 2 ends from its law: the Wasserstein-2 distance of Gaussians, without sampling.

    The denoiser of one class is affine, so the walk is an affine map of its draws: it is applied to a basis of them.
    """
    levels = mixture.schedule.levels(steps)
    mean, covariance = law(mixture, levels[0])
    count = 2 + 2 * steps
    draws = torch.zeros(1 + steps, 1 + count, 2, 1, 1, dtype=F64)
    draws[0, :, :, 0, 0] = mean
    draws[0, 1:3, :, 0, 0] += root(covariance)
    draws[0] /= mixture.schedule.start(levels[0])
    for index in range(2 * steps):
        draws[1 + index // 2, 3 + index, index % 2] = 1
    condition = {"label": torch.full((1 + count,), 2)}
    settings = {"seeds": range(1 + count), "steps": steps, "clip": False, "dtype": F64, "condition": condition}
    x = sample(mixture, sampler, noise=iter(draws), **settings)[:, :, 0, 0]
    ended = (x[1:] - x[0]).T @ (x[1:] - x[0])
    mean, exact = law(mixture, levels[-1])
    cross = root(root(exact) @ ended @ root(exact))
    return float(((x[0] - mean).square().sum() + torch.trace(exact + ended - 2 * cross)).sqrt())


def weak_order(mixture, sampler):
    return math.log2(distance(mixture, sampler, 30) / distance(mixture, sampler, 60))


@pytest.mark.parametrize("churn", [2.0, 5.0])
def test_churn_keeps_the_law_to_second_order(uneven, churn):
    assert weak_order(uneven, Heun(churn=churn)) == pytest.approx(2, abs=0.2)


def churned_statistics(mixture, sampler):
    """How far a walk's class probabilities and first two moments are from the mixture's, in standard errors.

    40 steps of 2,000 samples, from exact ones at the first level.
    """
    count, steps, generator = 2000, 40, torch.Generator().manual_seed(0)
    ratio_max, ratio_min = mixture.schedule.levels(2)[::2]
    x0 = mixture.sample(count, generator)
    draws = [torch.randn(count, 2, 1, 1, generator=generator, dtype=F64) for _ in range(1 + steps)]
    draws[0] = (ratio_max.alpha * x0 + ratio_max.sigma * draws[0]) / mixture.schedule.start(ratio_max)
    x = sample(mixture, sampler, seeds=range(count), steps=steps, clip=False, noise=iter(draws), dtype=F64)
    means, weights = ratio_min.alpha * mixture.means, mixture.weights
    second = ratio_min.alpha**2 * mixture.covariances + ratio_min.sigma**2 * torch.eye(2, dtype=F64)
    second = torch.einsum("k,kij->ij", weights, second + means[:, :, None] * means[:, None])
    exact = torch.cat([weights, weights @ means, second.flatten()[[0, 1, 3]]])
    values = x[:, :, 0, 0]
    products = values[:, [0, 0, 1]] * values[:, [0, 1, 1]]
    found = torch.cat([mixture.log_posterior(x, ratio_min).exp(), values, products], 1)
    return (found.mean(0) - exact) / found.std(0) * math.sqrt(count)


@dataclass(frozen=True, kw_only=True)
class WrongNoise(Heun):
    """Churn with its noise wrong by a factor that depends on gamma."""

    factor: Callable[[float], float]

    def step(self, x_t, step, predict, draw, state):
        gamma = self.churn / step.count
        return super().step(x_t, step, predict, lambda: self.factor(gamma) * draw(), state)


CHURNS = {
    "S_noise": Heun(churn=5.0, noise=1.05),
    "t_hat - t": WrongNoise(churn=5.0, factor=lambda gamma: gamma / math.sqrt(2 * gamma + gamma**2)),
    "sqrt(gamma)": WrongNoise(churn=5.0, factor=lambda gamma: 1 / math.sqrt(2 + gamma)),
    "none": WrongNoise(churn=5.0, factor=lambda gamma: 0.0),
}


@pytest.mark.parametrize("uneven", [EDM()], ids=["EDM"], indirect=True)
@pytest.mark.parametrize("name", CHURNS)
def test_wrong_churn_does_not_keep_it(uneven, name):
    assert weak_order(uneven, CHURNS[name]) < 0.5


@pytest.mark.parametrize("uneven", [EDM()], ids=["EDM"], indirect=True)
def test_churn_keeps_the_law_of_a_mixture(uneven):
    """As far as chance goes, 4 standard errors of 8 statistics; the wrong churn is 30 away."""
    assert churned_statistics(uneven, Heun(churn=5.0)).abs().max() < 4
    assert churned_statistics(uneven, CHURNS["sqrt(gamma)"]).abs().max() > 20


def test_guided_with_churn_it_is_the_conditional_walk(uneven, guide, draw):
    """Draw by draw, so that its law is the class's to second order, as above."""
    draws = [draw(20, 2, 1, 1) for _ in range(21)]
    settings = {"seeds": range(20), "steps": 20, "clip": False, "dtype": F64, "noise": draws}
    guided = sample(uneven, Heun(churn=5.0), guides=[guide], target=2, **settings)
    conditional = sample(uneven, Heun(churn=5.0), condition={"label": torch.full((20,), 2)}, **settings)
    torch.testing.assert_close(guided, conditional, rtol=0, atol=1e-10)  # float64's rounding


class Seen(Variance):
    """The variance, and the steps at which it was asked."""

    def __init__(self):
        object.__setattr__(self, "steps", [])

    def __call__(self, step, x_t, prediction, g):
        self.steps.append(step)
        return super().__call__(step, x_t, prediction, g)


def test_both_stages_are_weighed_by_the_variance_of_the_step(mixture, objective):
    seen, settings = Seen(), {"steps": 4, "dtype": F64, "target": 0}
    guide = Guide(objective=objective, input=Noisy(), weight=seen, injection=NoisePrediction())
    sample(mixture, Heun(), guides=[guide], **settings)
    levels = mixture.schedule.levels(4)
    assert [(step.index, step.stage) for step in seen.steps] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [step.level for step in seen.steps] == [levels[i] for i in (0, 1, 1, 2, 2, 3)]
    for first, second in zip(seen.steps[::2], seen.steps[1::2], strict=True):
        assert torch.equal(first.variance, second.variance)
        assert torch.equal(first.peak, second.peak)


def test_an_interval_may_begin_between_the_stages(mixture, objective):
    """The gradient goes through the denoiser at the second stage alone."""
    levels = mixture.schedule.levels(4)
    at = float(levels[2].sigma / levels[2].alpha)
    weight = Interval(ratio_min=at * 0.9, ratio_max=at * 1.1)
    input = Denoised(clip=False)
    guide = Guide(objective=objective, input=input, wrt="x_t", weight=weight, injection=NoisePrediction())
    settings = {"steps": 4, "dtype": F64, "clip": False}
    guided = sample(mixture, Heun(), guides=[guide], target=0, **settings)
    assert guided.isfinite().all() and not torch.equal(guided, sample(mixture, Heun(), **settings))


def test_an_image_depends_on_its_seed_and_target_alone(mixture, guide):
    seeds, targets = [11, 3, 8], [2, 0, 1]
    settings = {"guides": [guide], "steps": 8, "dtype": F64}
    together = sample(mixture, Heun(churn=2.0), seeds=seeds, target=targets, **settings)
    for row, (seed, target) in enumerate(zip(seeds, targets, strict=True)):
        alone = sample(mixture, Heun(churn=2.0), seeds=[seed], target=target, **settings)
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-10)  # rounding, as above


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"churn": -1.0}, "sampler.churn must be at least 0, got -1.0"),
        ({"churn": math.nan}, "Heun.churn must be a finite number, got nan"),
        (
            {"ratio_min": 2.0, "ratio_max": 1.0},
            "sampler.ratio_min and sampler.ratio_max must satisfy 0 <= ratio_min <= ratio_max, got 2.0 and 1.0",
        ),
        ({"noise": 0.0}, "sampler.noise must be above 0 and finite, got 0.0"),
    ],
)
def test_refuses_its_settings(settings, message):
    with pytest.raises(InputError, match=message):
        Heun(**settings)
