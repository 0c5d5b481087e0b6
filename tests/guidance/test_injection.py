import math

import pytest
import torch
from diffusers import DDIMScheduler

from steersman.denoise import output_for
from steersman.errors import InputError
from steersman.guidance import (
    ClassProbability,
    Constant,
    Denoised,
    DenoisedImage,
    Deviation,
    Ema,
    Estimate,
    Guide,
    Mean,
    NoisePrediction,
    Noisy,
    Polyak,
    Relative,
    Rescaled,
    Rms,
    Sample,
    Spherical,
    Taper,
)
from steersman.guidance.step import posterior_mean, reverse_variance, transition
from steersman.sampling import DDIM, DDPM, DiffusersSampler, DPMpp, Heun, sample
from steersman.schedule import VP, Level

F64 = torch.float64
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
"""Float64's, enlarged at most by ``sigma / alpha`` (10) and by what is lost in ``beta`` (a hundredfold)."""

LEVELS = {
    "VP": VP.linear().at_time(400.0),
    "EDM": Level(*(torch.tensor(value, dtype=F64) for value in (1.0, 3.0, 0.0))),
    "flow": Level(*(torch.tensor(value, dtype=F64) for value in (0.3, 0.7, 0.0))),
}
at_every_level = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)


@pytest.fixture
def found(draw):
    return Estimate(draw(2, 3, 4, 4), draw(2, 3, 4, 4), torch.tensor(0.1, dtype=F64))


@pytest.fixture
def update(draw):
    return draw(2, 3, 4, 4)


@at_every_level
def test_noise_prediction_adds_the_push_to_the_score(found, update, level):
    """``score = -eps / sigma``; and ``x_t = alpha x0 + sigma eps`` still holds."""
    moved = NoisePrediction().estimate(found, update, level)
    torch.testing.assert_close(-moved.eps / level.sigma, -found.eps / level.sigma + update, **ROUNDING)
    before, after = (level.alpha * each.x0 + level.sigma * each.eps for each in (found, moved))
    torch.testing.assert_close(after, before, **ROUNDING)
    assert moved.variance is found.variance
    assert NoisePrediction().mean(found.x0, update) is found.x0


def test_noise_prediction_in_terms_of_flow(found, update):
    """``v <- v - (sigma / alpha) p``."""
    level = LEVELS["flow"]
    moved = NoisePrediction().estimate(found, update, level)
    v, v_moved = (output_for("flow_prediction", each.x0, each.eps, level) for each in (found, moved))
    torch.testing.assert_close(v_moved, v - level.sigma / level.alpha * update, **ROUNDING)


@pytest.mark.parametrize("times", [(500.0, 499.0), (900.0, 600.0)])
def test_a_push_of_the_score_moves_ddpms_mean_by_beta_over_root_a(found, update, times):
    level, next = (VP.linear().at_time(time) for time in times)
    moved = NoisePrediction().estimate(found, update, level)
    x_t = level.alpha * found.x0 + level.sigma * found.eps
    before, after = (posterior_mean(x_t, each.x0, level, next) for each in (found, moved))
    a = (level.alpha / next.alpha) ** 2
    torch.testing.assert_close(after - before, (1 - a) / a.sqrt() * update, **ROUNDING)


def test_mean_moves_the_mean_alone(found, update):
    assert Mean().estimate(found, update, LEVELS["VP"]) is found
    assert torch.equal(Mean().mean(found.x0, update), found.x0 + update)


def test_denoised_image_keeps_the_noise(found, update):
    """MPGD."""
    moved = DenoisedImage().estimate(found, update, LEVELS["VP"])
    assert torch.equal(moved.x0, found.x0 + update) and moved.eps is found.eps
    assert DenoisedImage().mean(found.x0, update) is found.x0


@at_every_level
def test_denoised_image_may_keep_the_sample(found, update, level):
    """``x_t = alpha x0 + sigma eps`` holds as before: the noise prediction's injection of ``(alpha / sigma^2) p``."""
    moved = DenoisedImage(keeps="sample").estimate(found, update, level)
    torch.testing.assert_close(moved.x0, found.x0 + update, **ROUNDING)
    torch.testing.assert_close(moved.eps, found.eps - level.alpha / level.sigma * update, **ROUNDING)
    same = NoisePrediction().estimate(found, level.alpha / level.sigma**2 * update, level)
    torch.testing.assert_close(moved.x0, same.x0, **ROUNDING)
    torch.testing.assert_close(moved.eps, same.eps, **ROUNDING)


def test_denoised_image_keeps_nothing_else(unchecked):
    with pytest.raises(InputError, match="unknown injection.keeps 'smple'; did you mean 'sample'"):
        DenoisedImage(keeps="smple")


class Converted:
    """``sqrt(a_t) Sigma_t / beta_t``: the weight of a noise injection that equals the mean injection of ``Sigma_t``."""

    needs_denoiser = False

    def active(self, step):
        return True

    def __call__(self, step, x_t, prediction, g):
        ratio, beta = transition(step.level, step.next)
        return ratio * step.variance / beta


@pytest.mark.parametrize("fixed", ["small", "large"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_on_ddpm_the_mean_injection_is_a_noise_injection(mixture, posterior, fixed, scale):
    """``mu <- mu + s Sigma_t g`` equals ``eps <- eps - (sqrt(a_t) Sigma_t / beta_t) sigma_t s g`` (methods.md)."""

    def walk(**choices):
        guide = Guide(objective=ClassProbability(classifier=posterior), scale=scale, input=Noisy(), **choices)
        settings = {"target": 2, "seeds": range(20), "steps": 25, "clip": False, "dtype": F64}
        return sample(mixture, DDPM(fixed=fixed), guides=[guide], **settings)

    by_mean, by_noise = walk(), walk(injection=NoisePrediction(), weight=Converted())
    # 25 steps, the first from alpha = 5e-5, where x0_hat is divided by alpha: 1e-16 / 5e-5 = 2e-12
    torch.testing.assert_close(by_mean, by_noise, rtol=0, atol=1e-10)
    assert (by_mean - walk(injection=NoisePrediction(), weight=Constant())).abs().max() > 1e-3


def test_on_ddim_a_pushed_image_reaches_the_sample_through_alpha(mixture):
    """One step: the image is pushed by p and the noise stays, so ``x_s`` moves by ``alpha_s p``."""
    after = {}

    def walk(scale):
        guide = Guide(
            objective=lambda image, target, level: image.sum((1, 2, 3)),
            scale=scale,
            weight=Constant(),
            injection=DenoisedImage(),
        )
        after[scale] = []
        settings = {"target": 0, "steps": 5, "clip": False, "dtype": F64, "callbacks": [after[scale].append]}
        sample(mixture, DDIM(), guides=[guide], **settings)
        return after[scale][0]

    still, pushed = walk(0.0), walk(0.25)
    torch.testing.assert_close(pushed.x - still.x, 0.25 * still.step.next.alpha.expand(1, 2, 1, 1), **ROUNDING)
    torch.testing.assert_close(pushed.x0 - still.x0, torch.full((1, 2, 1, 1), 0.25, dtype=F64), **ROUNDING)


class Recording:
    """The mixture, and where it was asked."""

    def __init__(self, mixture):
        self.mixture, self.schedule, self.shape, self.classes = mixture, mixture.schedule, mixture.shape, ()
        self.decode, self.asked = mixture.decode, []

    def __call__(self, x_t, level, **_):
        self.asked.append(x_t.detach().clone())
        return self.mixture(x_t, level)


@pytest.fixture
def recording(mixture):
    return Recording(mixture)


def walk(denoiser, sampler, guides, *, steps=6, target=2, seeds=range(3), **settings):
    """The reports of a walk, its draws, and the samples that its steps began with."""
    generator, reports = torch.Generator().manual_seed(0), []
    shape = (len(seeds), *denoiser.shape)
    draws = [torch.randn(shape, generator=generator, dtype=F64) for _ in range(steps)]
    settings = {"clip": False, "dtype": F64, "noise": iter(draws), "callbacks": [reports.append]} | settings
    sample(denoiser, sampler, guides=guides, target=target, seeds=seeds, steps=steps, **settings)
    return reports, draws, [draws[0], *(report.x for report in reports[:-1])]


def test_a_pushed_sample_is_what_the_denoiser_is_asked_about_and_what_is_stepped_from(recording, posterior):
    """DDIM written out from ``x_t + p``; a view of the noisy sample costs no evaluation."""
    guide = Guide(
        objective=ClassProbability(classifier=posterior),
        scale=0.1,
        input=Noisy(),
        weight=Constant(),
        injection=Sample(),
    )
    reports, _, starts = walk(recording, DDIM(), [guide])
    assert len(recording.asked) == 6
    for report, x_t, asked in zip(reports, starts, recording.asked, strict=True):
        (level, next), (update,) = (report.step.level, report.step.next), report.updates
        g = recording.mixture.conditional_direction(x_t, level, 2)
        torch.testing.assert_close(update.value, 0.1 * g, **ROUNDING)
        torch.testing.assert_close(asked, x_t + update.value, **ROUNDING)
        x0 = recording.mixture(asked, level).x0_hat
        expected = next.alpha * x0 + next.sigma * (asked - level.alpha * x0) / level.sigma
        torch.testing.assert_close(report.x, expected, **ROUNDING)


@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
def test_a_push_of_the_sample_that_depends_on_the_denoiser_asks_it_once_more(recording, posterior, wrt):
    objective = ClassProbability(classifier=posterior)
    settings = {"scale": 0.1, "wrt": wrt, "weight": Constant(), "injection": Sample()}
    guide = Guide(objective=objective, input=Denoised(clip=False), **settings)
    reports, _, starts = walk(recording, DDPM(), [guide])
    assert len(recording.asked) == 12
    for report, x_t, first, second in zip(reports, starts, recording.asked[::2], recording.asked[1::2], strict=True):
        leaf = x_t.clone().requires_grad_()
        input = recording.mixture(leaf, report.step.level).x0_hat
        value = objective(input, torch.full((3,), 2), report.step.level).sum()
        (g,) = torch.autograd.grad(value, leaf if wrt == "x_t" else input)
        assert torch.equal(first, x_t)
        torch.testing.assert_close(second, x_t + 0.1 * g, **ROUNDING)


@pytest.mark.parametrize("weight", [Relative(), Polyak()])
def test_so_does_one_whose_strength_does(recording, posterior, weight):
    objective = ClassProbability(classifier=posterior)
    guide = Guide(objective=objective, scale=0.1, input=Noisy(), weight=weight, injection=Sample())
    walk(recording, DDIM(), [guide])
    assert len(recording.asked) == 12


@pytest.mark.parametrize(("sampler", "evaluations"), [(DDIM(), 1), (Heun(), 2)], ids=repr)
def test_elucds_algorithm_2_before_the_denoiser(recording, posterior, sampler, evaluations):
    """``x + s [(N + 1 - i) / (N + 1) + gamma sin(pi i / N)] rms(x) g / rms(g)``, ``g = grad_z log p(y | z)``.

    Heun's second evaluation has no push of its own.
    """
    guide = Guide(
        objective=ClassProbability(classifier=posterior, marginal=0.0),
        scale=0.05,
        input=Rescaled(),
        stabilizer=Rms(by="rms"),
        weight=Taper(gamma=0.3),
        injection=Sample(),
    )
    reports, _, starts = walk(recording, sampler, [guide])

    def rms(x):
        return x.square().mean((1, 2, 3), keepdim=True).sqrt()

    firsts = recording.asked[::evaluations]
    for i, (report, x, asked) in enumerate(zip(reports, starts, firsts, strict=True)):
        z = (x / rms(x).clamp(min=1)).requires_grad_()
        (g,) = torch.autograd.grad(posterior(z, report.step.level)[:, 2].sum(), z)
        weight = 0.05 * (7 - i) / 7 + math.sin(math.pi * i / 6) * 0.05 * 0.3
        torch.testing.assert_close(asked, x + weight * rms(x) * g / rms(g), **ROUNDING)


def length(x):
    return x.square().sum((1, 2, 3), keepdim=True).sqrt()


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_spherical_is_dsgs_mix_on_the_sphere(draw, rate):
    """Yang et al. 2024, of a loss's gradient: ``d* = -r g_L / |g_L|``, ``m = d + w (d* - d)``, ``r m / |m|``."""
    variance, g_loss, eps = torch.tensor(0.3, dtype=F64), draw(4, 3, 5, 5), draw(4, 3, 5, 5)
    d, radius = variance.sqrt() * eps, math.sqrt(3 * 5 * 5) * variance.sqrt()
    star = -radius * g_loss / length(g_loss)
    mixed = d + rate * (star - d)
    update = rate * variance.sqrt() * -g_loss / g_loss.square().mean((1, 2, 3), keepdim=True).sqrt()
    turned = Spherical().deviation(d, update, variance)
    torch.testing.assert_close(turned, radius * mixed / length(mixed), **ROUNDING)
    torch.testing.assert_close(length(turned), radius.expand(4, 1, 1, 1), **ROUNDING)


def test_a_push_longer_than_the_noise_turns_it_all_the_way_and_no_further(draw):
    d, update, variance = 0.5 * draw(2, 3, 4, 4), 100 * draw(2, 3, 4, 4), torch.tensor(0.25, dtype=F64)
    turned = Spherical().deviation(d, update, variance)
    torch.testing.assert_close(turned, math.sqrt(48) * 0.5 * update / length(update), **ROUNDING)


def test_a_learned_variances_sphere_has_the_summed_variance_for_its_radius(draw):
    variance = draw(2, 3, 4, 4).square()
    turned = Spherical().deviation(variance.sqrt() * draw(2, 3, 4, 4), 0.1 * draw(2, 3, 4, 4), variance)
    torch.testing.assert_close(turned.square().sum((1, 2, 3)), variance.sum((1, 2, 3)), **ROUNDING)


@pytest.mark.parametrize(("sampler", "eta"), [(DDPM(), 1.0), (DDIM(eta=1.0), 1.0), (DDIM(eta=0.5), 0.5)], ids=repr)
def test_a_walk_on_the_sphere(mixture, posterior, sampler, eta):
    """The scale is the rate w for DSG's normalised gradient, and the radius that of the sampler's noise."""
    guide = Guide(
        objective=ClassProbability(classifier=posterior),
        scale=0.2 * eta,
        input=Noisy(),
        stabilizer=Rms(by="rms"),
        weight=Deviation(),
        injection=Spherical(),
    )
    reports, draws, starts = walk(mixture, sampler, [guide])
    for report, x_t, eps in zip(reports[:-1], starts, draws[1:], strict=False):
        level, next = report.step.level, report.step.next
        x0 = mixture(x_t, level).x0_hat
        variance = eta**2 * reverse_variance(level, next)
        mean = next.alpha * x0 + (next.sigma**2 - variance).sqrt() * (x_t - level.alpha * x0) / level.sigma
        g = mixture.conditional_direction(x_t, level, 2)
        d, radius = variance.sqrt() * eps, (2 * variance).sqrt()
        mixed = d + 0.2 * (radius * g / length(g) - d)
        # DDPM's mean is DDIM's at eta = 1; at the first level beta and alpha = 5e-5 leave eleven digits
        torch.testing.assert_close(report.x, mean + radius * mixed / length(mixed), rtol=0, atol=1e-10)
    assert reports[-1].updates == (None,)


def test_spherical_refuses_a_sampler_without_noise(mixture, posterior):
    guide = Guide(objective=ClassProbability(classifier=posterior), weight=Constant(), injection=Spherical())
    asked, message = Recording(mixture), "injection must not be spherical with a sampler whose steps end without noise"
    for sampler in (DDIM(), Heun(churn=1.0), DPMpp()):
        with pytest.raises(InputError, match=message):
            walk(asked, sampler, [guide])
    assert asked.asked == []  # before the walk begins
    scheduler = DiffusersSampler(DDIMScheduler(beta_schedule="squaredcos_cap_v2"))  # which only a step tells
    with pytest.raises(InputError, match=message):
        walk(asked, scheduler, [guide])
    reports, _, _ = walk(mixture, DDPM(), [guide])  # but the last step, into the clean image, has none anywhere
    assert torch.equal(reports[-1].x, reports[-1].x0)


@pytest.mark.few(2)
@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
def test_all_injections_together_leave_each_image_to_itself(mixture, posterior, wrt):
    settings = {"objective": ClassProbability(classifier=posterior), "wrt": wrt, "stabilizer": Ema(beta=0.5)}
    guides = [
        Guide(scale=0.05, injection=injection, weight=weight, **settings)
        for injection in (Sample(), Spherical(), NoisePrediction(), DenoisedImage(), Mean())
        for weight in (Constant(), Relative())
    ]
    (*_, together), draws, _ = walk(mixture, DDPM(), guides, target=[0, 1, 2])
    assert all(update is not None for update in together.updates) and together.x.isfinite().all()
    for row in range(3):
        alone, *_ = walk(
            mixture, DDPM(), guides, target=row, seeds=[row], noise=[each[row : row + 1] for each in draws]
        )
        torch.testing.assert_close(alone[-1].x, together.x[row : row + 1], rtol=0, atol=1e-10)
