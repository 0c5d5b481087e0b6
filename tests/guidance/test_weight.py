import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from steersman.denoise import Prediction, eps_from_x0
from steersman.errors import InputError
from steersman.guidance import (
    ClassProbability,
    Constant,
    Damped,
    Denoised,
    Deviation,
    Every,
    Guide,
    Interval,
    Linear,
    Mean,
    NoisePrediction,
    Noisy,
    Polyak,
    Product,
    Relative,
    Sample,
    Signal,
    Sine,
    Step,
    Taper,
    Transition,
    Variance,
)
from steersman.mixture import Mixture
from steersman.sampling import DDIM, DDPM, Heun, Recurrence, sample
from steersman.schedule import VP

F64 = torch.float64
SHAPE = (1, 2, 2)


class Learned:
    """Denoises to zero, and has learned a variance that is large at every other step, and in some pixels more."""

    schedule, shape, classes = VP.cosine(), SHAPE, ()
    pixels = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64).reshape(SHAPE)

    def __call__(self, x_t, level, **_):
        image = torch.arange(1, len(x_t) + 1, dtype=F64).reshape(-1, 1, 1, 1) / len(x_t)
        even = int(level.time) % 2 == 0
        return Prediction(torch.zeros_like(x_t), variance_fraction=image * self.pixels * (1.0 if even else 0.1))

    def decode(self, x0):
        return x0


class Fixed(Learned):
    def __call__(self, x_t, level, **_):
        return Prediction(torch.zeros_like(x_t))


def weights(weight, denoiser=None, sampler=None, steps=7, injection=None, **settings):
    """The weight at each step of a walk: the push of a gradient that is 1 everywhere."""
    reports = []
    guide = Guide(
        objective=lambda image, target, level: image.sum((1, 2, 3)),
        input=Noisy(),
        weight=weight,
        injection=injection or Mean(),
    )
    sample(
        denoiser or Fixed(),
        sampler or DDPM(),
        guides=[guide],
        target=0,
        seeds=range(3),
        steps=steps,
        dtype=F64,
        callbacks=[reports.append],
        **settings,
    )
    return [None if report.updates[0] is None else report.updates[0].value for report in reports]


def variances(steps=7, *, learned=False):
    """``Sigma_t`` of each pair of levels, written out from ``alpha_bar``."""
    levels, out = Fixed.schedule.levels(steps), []
    for level, next in zip(levels, levels[1:], strict=False):
        beta = 1 - level.alpha**2 / next.alpha**2
        variance = (1 - next.alpha**2) / (1 - level.alpha**2) * beta
        if learned and variance > 0:
            f = Learned()(torch.zeros(3, *SHAPE, dtype=F64), level).variance_fraction
            variance = beta**f * variance ** (1 - f)
        out.append(variance.expand(3, *SHAPE))
    return out


ROUNDING = {"rtol": 1e-11, "atol": 1e-14}
"""Float64's, through ``beta``, a difference that keeps twelve digits at worst here."""


def assert_all_close(found, expected):
    """Compares the weights of each step; where there was no push, its weight was zero."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.zeros_like(other) if one is None else one, other, **ROUNDING)


def test_a_damped_gradient_is_that_of_the_tilted_gaussian(draw):
    """``p(x) exp(s l(x))`` is Gaussian for ``l = -c |x - a|^2 / 2``; its score is the model's plus the update."""
    mean, a, s, c, deviation = 0.3, -0.5, 3.0, 1.4, 0.6
    gaussian = Mixture(
        weights=torch.ones(1, dtype=F64),
        means=torch.full((1, 2), mean, dtype=F64),
        covariances=deviation**2 * torch.eye(2, dtype=F64)[None],
    )
    guide = Guide(
        objective=lambda image, target, level: -c * (image - a).square().sum((1, 2, 3)) / 2,
        input=Denoised(clip=False),
        wrt="x_t",
        weight=Damped(curvature=s * c, deviation=deviation),
        scale=s,
    )
    precision = 1 / deviation**2 + s * c
    tilted = (mean / deviation**2 + s * c * a) / precision
    levels = gaussian.schedule.levels(6)
    for index in range(6):
        step = Step.at(levels, index)
        alpha, sigma = step.level.alpha, step.level.sigma
        x_t = draw(3, 2, 1, 1).requires_grad_()
        with torch.enable_grad():
            prediction = gaussian(x_t, step.level)
        g, _ = guide.gradient(x_t, prediction, step, None, gaussian)
        update = guide.scale * guide.weight(step, x_t, prediction, g) * g
        plain, exact = (
            (alpha * m - x_t) / (alpha**2 * v + sigma**2) for m, v in ((mean, deviation**2), (tilted, 1 / precision))
        )
        torch.testing.assert_close(plain + update, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("given", [{"curvature": -1.0}, {"deviation": 0.0}])
def test_refuses_a_damping_that_would_amplify(given):
    with pytest.raises(InputError, match="weight.curvature must be at least 0 and weight.deviation above 0, got "):
        Damped(**given)


@pytest.mark.parametrize("weight", [Variance(), Deviation(), Sine()])
def test_no_gradient_is_taken_where_there_is_no_variance(weight):
    *updates, last = weights(weight)
    assert last is None and None not in updates
    assert None not in weights(weight, sampler=DDPM(fixed="large"))


@pytest.mark.parametrize("learned", [False, True])
def test_variance(learned):
    assert_all_close(weights(Variance(), Learned() if learned else Fixed()), variances(learned=learned))


@pytest.mark.parametrize("learned", [False, True])
def test_deviation_is_its_root(learned):
    expected = [variance.sqrt() for variance in variances(learned=learned)]
    assert_all_close(weights(Deviation(), Learned() if learned else Fixed()), expected)


def test_variance_follows_the_samplers_choice():
    levels = Fixed.schedule.levels(7)
    betas = [
        1 - ratio_max.alpha**2 / ratio_min.alpha**2 for ratio_max, ratio_min in zip(levels, levels[1:], strict=False)
    ]
    found = weights(Variance(), sampler=DDPM(fixed="large"))
    assert_all_close(found, [beta.expand(3, *SHAPE) for beta in betas])


def test_variance_does_not_follow_how_much_noise_ddim_draws():
    assert_all_close(weights(Variance(), sampler=DDIM(eta=0.0)), variances())


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_sine_adds_a_share_of_the_largest_variance_so_far(gamma, learned):
    """EluCD eq. 5: ``w_t = Sigma_t + gamma sin(pi t / T) max_{u >= t} Sigma_u``, t = T-1 .. 0; each value its own."""
    all_of_them, expected = variances(learned=learned), []
    assert not learned or bool((all_of_them[2] < torch.stack(all_of_them[:2]).amax(0)).any())
    for index, variance in enumerate(all_of_them):
        t = 6 - index
        peak = torch.stack(all_of_them[: index + 1]).amax(0)
        expected.append(variance + gamma * math.sin(math.pi * t / 7) * peak)
    assert_all_close(weights(Sine(gamma=gamma), Learned() if learned else Fixed()), expected)


def test_sine_may_take_the_largest_variance_of_the_batchs_first_value():
    """EluCD's released code: one number for all images and values, where they differ."""
    learned, expected = variances(learned=True), []
    for index, variance in enumerate(learned):
        peak = max(float(each[0, 0, 0, 0]) for each in learned[: index + 1])
        expected.append(variance + 0.3 * math.sin(math.pi * (6 - index) / 7) * peak)
    assert_all_close(weights(Sine(peak="first"), Learned()), expected)
    for first, own in zip(weights(Sine(peak="first")), weights(Sine()), strict=True):  # one variance for all values
        assert (first is None and own is None) or torch.equal(first, own)


@pytest.mark.parametrize("weight", [Variance(), Sine(), Linear(), Every(k=2)], ids=repr)
def test_before_the_denoiser_is_asked_the_weights_are_the_same(weight):
    before, after = weights(weight, injection=Sample()), weights(weight)
    for one, other in zip(before, after, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_signal_is_its_growth_in_the_step():
    """``1 / sqrt(a_t)``, ``a_t = alpha_bar_t / alpha_bar_{t-1}``."""
    bars = [level.alpha**2 for level in Fixed.schedule.levels(7)]
    expected = [
        (ratio_max / ratio_min).rsqrt().expand(3, *SHAPE) for ratio_max, ratio_min in zip(bars, bars[1:], strict=False)
    ]
    assert_all_close(weights(Signal()), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_taper_is_a_falling_line_and_a_sine_in_units_of_the_sample(draw, step, gamma):
    """EluCD, Algorithm 2 (code), step 3 of 10: ``rms(x) ((10 + 1 - 3) / (10 + 1) + gamma sin(3 pi / 10))``."""
    x_t = draw(3, 3, 4, 4)
    rms = (x_t**2).sum((1, 2, 3), keepdim=True).div(48).sqrt()
    expected = rms * (8 / 11 + gamma * math.sin(3 * math.pi / 10))
    torch.testing.assert_close(Taper(gamma=gamma)(step(3), x_t, None, x_t), expected, **ROUNDING)
    assert torch.equal(
        Taper(gamma=gamma, floor=0.7)(step(3), x_t, None, x_t), Taper(gamma=gamma)(step(3), x_t, None, x_t)
    )
    higher = rms * (0.75 + gamma * math.sin(3 * math.pi / 10))
    torch.testing.assert_close(Taper(gamma=gamma, floor=0.75)(step(3), x_t, None, x_t), higher, **ROUNDING)


def lengths(x):
    return x.flatten(1).norm(dim=1)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e5])
def test_relative_pushes_by_the_length_of_the_exact_score(mixture, draw, step, size):
    """``|grad log p(x_t)|`` from the mixture's own density, however large the gradient is."""
    x_t, at, g = draw(4, 2, 1, 1), step(4), size * draw(4, 2, 1, 1)
    leaf = x_t.clone().requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_joint(leaf, at.level).logsumexp(1).sum(), leaf)
    update = Relative()(at, x_t, mixture(x_t, at.level), g) * g
    torch.testing.assert_close(lengths(update), lengths(score), **ROUNDING)
    torch.testing.assert_close(update / lengths(update)[:, None, None, None], g / lengths(g)[:, None, None, None])


@pytest.fixture
def linear(mixture):
    """The mixture with a schedule that keeps some signal, alpha > 0.006: no push of the image is beyond all measure."""
    return dataclasses.replace(mixture, schedule=VP.linear())


def test_relative_in_the_noise_injection_moves_the_noise_by_a_share_of_itself(linear, posterior):
    """``eps <- eps - s |eps| g / |g|``, at every step and for every image."""
    settings = {"input": Noisy(), "weight": Relative(), "injection": NoisePrediction()}
    guide = Guide(objective=ClassProbability(classifier=posterior), scale=0.2, **settings)
    generator, reports = torch.Generator().manual_seed(0), []
    draws = [torch.randn(4, 2, 1, 1, generator=generator, dtype=F64) for _ in range(8)]
    walk = {"target": 2, "seeds": range(4), "steps": 8, "clip": False, "noise": draws, "dtype": F64}
    sample(linear, DDPM(), guides=[guide], callbacks=[reports.append], **walk)
    for x_t, report in zip([draws[0], *(report.x for report in reports)], reports, strict=False):
        level = report.step.level
        plain, guided = (eps_from_x0(x_t, x0, level) for x0 in (linear(x_t, level).x0_hat, report.x0))
        torch.testing.assert_close(lengths(guided - plain), 0.2 * lengths(plain), **ROUNDING)


class FreeDoM:
    """FreeDoM's step as its code writes it, but for the mean over an image in place of the batch."""

    needs_denoiser = True

    def active(self, step):
        return True

    def __call__(self, step, x_t, prediction, g):
        bar, next_bar = step.level.alpha**2, step.next.alpha**2
        c_1 = next_bar.sqrt() * (1 - bar / next_bar) / (1 - bar)
        eps = (x_t - bar.sqrt() * prediction.x0_hat) / (1 - bar).sqrt()
        rms = [x.square().mean((1, 2, 3), keepdim=True).sqrt() for x in (eps, g)]
        return c_1 * rms[0] * (1 - bar).sqrt() / bar.sqrt() / rms[1]


@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
def test_relative_in_the_noise_injection_is_freedoms_step_on_ddpm(linear, posterior, wrt):
    def walk(**choices):
        guide = Guide(objective=ClassProbability(classifier=posterior), scale=0.2, wrt=wrt, **choices)
        settings = {"target": 2, "seeds": range(5), "steps": 20, "clip": False, "dtype": F64}
        return sample(linear, DDPM(), guides=[guide], **settings)

    ours = walk(weight=Relative(), injection=NoisePrediction())
    # 20 steps of float64, whose errors the guidance carries on
    torch.testing.assert_close(ours, walk(weight=FreeDoM()), rtol=0, atol=1e-10)
    assert (ours - walk(weight=Relative())).abs().max() > 1e-3


def test_polyaks_push_raises_a_linear_objective_by_the_length_of_the_noise(mixture, draw, step):
    """``p = s |eps| g / |g|^2``, so that ``g . p = s |eps|``; twice the gradient, half the push."""
    x_t, at, g = draw(4, 2, 1, 1), step(4), draw(4, 2, 1, 1)
    prediction = mixture(x_t, at.level)
    eps = (x_t - at.level.alpha * prediction.x0_hat) / at.level.sigma
    update = Polyak()(at, x_t, prediction, g) * g
    torch.testing.assert_close((g * update).sum((1, 2, 3)), lengths(eps), **ROUNDING)
    torch.testing.assert_close(lengths(update), lengths(eps) / lengths(g), **ROUNDING)
    torch.testing.assert_close(Polyak()(at, x_t, prediction, 2 * g) * 2 * g, update / 2, **ROUNDING)


OF_THE_SAMPLE = [Taper(), Relative(), Polyak(), Product([Relative(), Variance()])]


@pytest.mark.parametrize("weight", OF_THE_SAMPLE, ids=repr)
def test_an_image_is_weighed_by_itself(mixture, draw, step, weight):
    x_t, at, g = draw(4, 2, 1, 1), step(4), draw(4, 2, 1, 1)
    together = weight(at, x_t, mixture(x_t, at.level), g)
    for row in range(4):
        x = x_t[row : row + 1]
        alone = weight(at, x, mixture(x, at.level), g[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, **ROUNDING)


@pytest.mark.parametrize("weight", OF_THE_SAMPLE, ids=repr)
def test_a_zero_gradient_has_a_finite_weight(mixture, draw, step, weight):
    x_t, at = draw(4, 2, 1, 1), step(4)
    assert weight(at, x_t, mixture(x_t, at.level), torch.zeros_like(x_t)).isfinite().all()


def test_a_product_needs_the_denoiser_where_a_factor_does():
    assert Product([Variance(), Polyak()]).needs_denoiser and Relative().needs_denoiser
    assert not Product([Taper(), Every(), Interval()]).needs_denoiser


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (Constant(), [1, 1, 1, 1]),
        (Linear(), [1, 0.75, 0.5, 0.25]),
        (Linear(rising=True), [0.25, 0.5, 0.75, 1]),
        (Every(k=1), [1, 1, 1, 1]),
        (Every(k=2), [1, None, 1, None]),
        (Every(k=3), [1, None, None, 1]),
        (Product([Linear(), Every(k=2)]), [1, None, 0.5, None]),
        (Product([Linear(), Linear(rising=True)]), [0.25, 0.375, 0.375, 0.25]),
    ],
    ids=repr,
)
def test_weights_over_four_steps(weight, expected):
    for found, wanted in zip(weights(weight, steps=4), expected, strict=True):
        assert found is None if wanted is None else torch.allclose(found, torch.full_like(found, wanted), rtol=1e-15)


def test_interval_acts_on_the_noise_to_signal_ratio_both_ends_included():
    levels = Fixed.schedule.levels(7)[:-1]
    ratios = [float(level.sigma / level.alpha) for level in levels]
    found = weights(Interval(ratio_min=ratios[4], ratio_max=ratios[2]))
    assert [update is not None for update in found] == [False, False, True, True, True, False, False]
    assert torch.equal(found[3], torch.ones_like(found[3]))


def test_a_product_of_variance_and_interval_is_the_variance_inside():
    levels = Fixed.schedule.levels(7)
    inside = Interval(ratio_min=float(levels[3].sigma / levels[3].alpha))
    expected = [*variances()[:4], None, None, None]
    for found, weight in zip(weights(Product([Variance(), inside])), expected, strict=True):
        assert found is None if weight is None else torch.allclose(found, weight, **ROUNDING)


@pytest.mark.parametrize(
    "weight", [Every(k=3), Interval(ratio_min=0.5, ratio_max=2.0), Product([Variance(), Every(k=3)])]
)
def test_where_the_weight_is_zero_the_classifier_is_never_asked(mixture, weight):
    asked, reports = [], []

    def objective(image, target, level):
        asked.append(float(level.time))
        return mixture.log_posterior(image, level)[:, 0]

    settings = {"target": 0, "steps": 10, "callbacks": [reports.append], "clip": False, "dtype": F64}
    sample(mixture, DDPM(), guides=[Guide(objective=objective, weight=weight)], **settings)
    active = [float(r.step.level.time) for r in reports if r.updates[0] is not None]
    assert asked == active and 0 < len(asked) < 10


def test_every_counts_steps_not_repeats():
    found = weights(Every(k=2), steps=3, recurrence=Recurrence(times=2))
    assert [update is not None for update in found] == [True, True, False, False, True, True]


@pytest.mark.parametrize(
    ("weight", "settings", "message"),
    [
        (
            Interval,
            {"ratio_min": 2.0, "ratio_max": 1.0},
            "weight.ratio_min and weight.ratio_max must satisfy 0 <= ratio_min <= ratio_max, got 2.0 and 1.0",
        ),
        (
            Interval,
            {"ratio_min": -1.0},
            "weight.ratio_min and weight.ratio_max must satisfy 0 <= ratio_min <= ratio_max, got -1.0 and inf",
        ),
        (Every, {"k": 0}, "weight.k must be at least 1, got 0"),
    ],
)
def test_refuses_settings(weight, settings, message):
    with pytest.raises(InputError, match=message):
        weight(**settings)


def test_refuses_a_peak(unchecked):
    with pytest.raises(InputError, match="unknown weight.peak 'last'"):
        Sine(peak="last")


def test_refuses_a_product_of_nothing():
    with pytest.raises(InputError):
        Product([])


@pytest.mark.parametrize("weight", [Transition(), Transition(rising=False), Signal()], ids=str)
def test_of_a_pair_of_levels_the_weight_is_the_same_at_heuns_second_stage(weight):
    """Where the level is the one that the step goes to, so that there is no pair of its own."""
    seen = {}

    class Recorded:
        needs_denoiser, active = False, weight.active

        def __call__(self, step, *arguments):
            seen[step.index, step.stage] = float(weight(step, *arguments))
            return torch.ones(())

    weights(Recorded(), sampler=Heun(), injection=NoisePrediction())
    levels = VP.cosine().levels(7)
    x = torch.zeros(1, *SHAPE, dtype=F64)
    for index, (level, next) in enumerate(pairwise(levels)):
        whole = Step(index, 7, 0, 0, level, next, torch.zeros(()), torch.zeros(()), levels)
        assert seen[index, 0] == pytest.approx(float(weight(whole, x, None, x)), rel=1e-12)
    assert [seen[index, 1] for index in range(6)] == [seen[index, 0] for index in range(6)]


def test_sine_has_the_samples_dtype():
    """Its maximum is on the samples' device, where float64 may not be known."""
    found = Sine()(step_in(torch.float32), torch.zeros(1, *SHAPE), None, torch.zeros(1, *SHAPE))
    assert found.dtype == torch.float32


def step_in(dtype):
    level, next = VP.cosine().levels(7)[2:4]
    return Step(2, 7, 0, 0, level, next, torch.tensor(0.1, dtype=F64), torch.tensor(0.2, dtype=dtype))


@pytest.mark.parametrize("rising", [True, False])
def test_transition_is_the_share_of_the_signal_that_a_step_keeps_or_loses_with_a_mean_of_one(rising):
    """``a_t = alpha_bar_t / alpha_bar_s`` or ``1 - a_t``, over the mean of all steps (TFG's "increase", "decrease")."""
    levels = VP.cosine().levels(7)
    kept = [float((now.alpha / to.alpha) ** 2) for now, to in pairwise(levels)]
    shares = torch.tensor(kept if rising else [1 - each for each in kept], dtype=F64)
    found = weights(Transition(rising=rising), Fixed(), DDIM(eta=1.0))
    expected = shares / shares.mean()
    torch.testing.assert_close(torch.stack([each.flatten()[0] for each in found]), expected)
    assert expected.mean() == pytest.approx(1)
    assert bool((expected.diff() > 0).all()) == rising
