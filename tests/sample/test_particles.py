import math
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
)
from torch.distributions import Normal

from steersman.errors import InputError
from steersman.guidance import (
    ClassProbability,
    Constant,
    Denoised,
    DenoisedImage,
    Ema,
    Guide,
    Mean,
    NoisePrediction,
    Noisy,
    Sample,
    Sine,
    Spherical,
    Variance,
    posterior_mean,
    reverse_variance,
)
from steersman.sampling import DDIM, DDPM, DiffusersSampler, DPMpp, Heun, Particles, Recurrence, loop, sample
from steersman.sampling.particles import WORST, ParticleFilter
from steersman.schedule import CLEAN, VP, Level

F64 = torch.float64
SEEDS = [11, 3, 8, 0, 5]
TARGETS = [2, 0, 1, 1, 2]


def at(ratio):
    return Level(*(torch.tensor(value, dtype=F64) for value in (1.0, ratio, 0.5)))


@pytest.fixture
def objective(posterior):
    return ClassProbability(classifier=posterior)


@pytest.fixture
def weigher(objective):
    """A guide that weighs and does not push."""
    return Guide(objective=objective, input=Noisy(), scale=0)


def walk(mixture, sampler, guides, particles, seeds=SEEDS, target=TARGETS, **settings):
    settings = {"steps": 8, "clip": False, "dtype": F64} | settings
    return sample(mixture, sampler, guides=guides, target=target, seeds=seeds, particles=particles, **settings)


# --- the weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [0.0, 0.3, 0.999])
def test_candidates_are_drawn_in_proportion_to_their_weights(mark):
    shares = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.75, 0.25]], dtype=F64)
    particles = ParticleFilter(Particles(count=4), 2, "cpu")
    rows = particles.choose(shares.log().flatten(), at(1.0), torch.full((2,), mark, dtype=F64))
    assert rows.tolist() == [0, 0, 1, 2, 6, 6, 6, 7]
    assert particles.count == 4
    assert torch.equal(particles.weights, torch.zeros(2, 4, dtype=F64))


def test_the_expected_number_of_copies_is_the_weight_times_the_count():
    shares = torch.tensor([0.13, 0.29, 0.07, 0.51], dtype=F64)
    copies = torch.zeros(4, dtype=F64)
    for place in range(1000):
        particles = ParticleFilter(Particles(count=4), 1, "cpu")
        copies += particles.choose(shares.log(), at(1.0), torch.tensor([(place + 0.5) / 1000], dtype=F64)).bincount(
            minlength=4
        )
    torch.testing.assert_close(copies / 1000, 4 * shares, rtol=0, atol=2e-3)


def test_potentials_add_up_over_a_walk_without_resampling():
    said = [torch.tensor(row, dtype=F64) for row in ([-3.0, -1.0], [-2.0, -4.0], [-5.0, -0.5])]
    sums = {"sum": [-10.0, -5.5], "difference": [-5.0, -0.5], "max": [-7.0, -2.5]}
    for potential, expected in sums.items():
        particles = ParticleFilter(Particles(count=2, potential=potential, fraction=0, temperature=0.5), 1, "cpu")
        for each in said:
            assert particles.choose(each, at(1.0), torch.rand(1, dtype=F64)).tolist() == [0, 1]
        grown = 2 * torch.tensor([expected], dtype=F64)
        torch.testing.assert_close(particles.weights, grown - grown.max())


def test_the_temperature_falls_evenly_in_the_logarithm_of_the_ratio():
    particles = Particles(ratio_min=0.1, ratio_max=10.0, temperature=4.0, temperature_end=0.25)
    assert [particles.temperature_at(ratio) for ratio in (50.0, 10.0, 1.0, 0.1, 0.0)] == pytest.approx(
        [4, 4, 1, 0.25, 0.25]
    )
    assert Particles(temperature=3.0).temperature_at(0.7) == 3


def test_potentials_have_the_temperature_of_their_level():
    said = {10.0: [-3.0, -1.0], 1.0: [-2.0, -4.0], 0.4: [-5.0, -0.5]}
    inverse = {10.0: 0.5, 1.0: 1.0, 0.4: 2.5**0.30102999566}  # 1 / lambda falls from 2 to 1/2 over two decades
    expected = {
        "sum": sum(inverse[ratio] * torch.tensor(r, dtype=F64) for ratio, r in said.items()),
        "difference": inverse[0.4] * torch.tensor(said[0.4], dtype=F64),
        "max": sum(
            inverse[ratio] * torch.tensor(r, dtype=F64)
            for ratio, r in zip(said, ([-3.0, -1.0], [-2.0, -1.0], [-2.0, -0.5]), strict=True)
        ),
    }
    cooling = {"ratio_min": 0.1, "ratio_max": 10.0, "temperature": 2.0, "temperature_end": 0.5}
    for potential, weights in expected.items():
        particles = ParticleFilter(Particles(count=2, potential=potential, fraction=0, **cooling), 1, "cpu")
        for ratio, r in said.items():
            particles.choose(torch.tensor(r, dtype=F64), at(ratio), torch.rand(1, dtype=F64))
        torch.testing.assert_close(particles.weights[0], weights - weights.max(), rtol=1e-6, atol=1e-6)


def test_the_past_goes_with_its_candidate():
    particles = ParticleFilter(Particles(count=2, potential="difference"), 1, "cpu")
    assert particles.choose(torch.tensor([0.0, -50.0]), at(1.0), torch.tensor([0.5], dtype=F64)).tolist() == [0, 0]
    particles.choose(torch.tensor([1.0, 1.0]), at(1.0), torch.tensor([0.5], dtype=F64))
    assert torch.equal(particles.past, torch.ones(1, 2, dtype=F64))


def test_an_image_is_drawn_anew_only_where_its_own_candidates_degenerate():
    particles = ParticleFilter(Particles(count=2, fraction=0.75), 2, "cpu")
    rows = particles.choose(torch.tensor([0.0, 0.1, 0.0, 9.0]), at(1.0), torch.full((2,), 0.5, dtype=F64))
    assert rows.tolist() == [0, 1, 3, 3]
    torch.testing.assert_close(particles.weights, torch.tensor([[-0.1, 0.0], [0.0, 0.0]], dtype=F64), rtol=1e-6, atol=0)


def test_an_effective_sample_size_of_just_that_fraction_is_drawn_anew():
    """Weights of 1/2, 1/2, 0, 0 are worth two candidates, half of four: exact in floats."""
    said = torch.tensor([0.0, 0.0, -1e6, -1e6])
    for fraction, rows in ((0.5, [0, 0, 1, 1]), (0.49, [0, 1, 2, 3])):
        particles = ParticleFilter(Particles(count=4, fraction=fraction), 1, "cpu")
        assert particles.choose(said, at(1.0), torch.tensor([0.5], dtype=F64)).tolist() == rows


def test_the_likeliest_goes_on_alone_whatever_the_weights():
    particles = ParticleFilter(Particles(count=3, ratio_min=1.0), 1, "cpu")
    particles.weights = torch.tensor([[9.0, 0.0, 0.0]], dtype=F64)
    assert particles.choose(torch.tensor([-2.0, -1.0, -3.0]), at(0.9), torch.tensor([0.1], dtype=F64)).tolist() == [1]
    assert particles.count == 1
    assert not particles.weighs(at(0.5), 0)


def test_candidates_without_a_likelihood_do_not_go_on_while_another_has_one():
    said = torch.tensor([math.nan, -80.0, -math.inf, math.inf])
    for choice in ("likeliest", "draw"):
        for ratio_min, expected in ((0.0, [1, 1, 1, 1]), (2.0, [1])):
            particles = ParticleFilter(Particles(count=4, ratio_min=ratio_min, choice=choice), 1, "cpu")
            assert particles.choose(said, at(1.0), torch.tensor([0.9], dtype=F64)).tolist() == expected
    particles = ParticleFilter(Particles(count=4), 1, "cpu")
    assert particles.choose(said.new_full((4,), math.nan), at(1.0), torch.rand(1).double()).tolist() == [0, 1, 2, 3]
    assert WORST < -1e9


@pytest.mark.parametrize("potential", ["sum", "difference", "max"])
def test_a_time_at_which_no_candidate_has_a_likelihood_leaves_the_weights_as_they_are(potential):
    said = torch.tensor([[-1.0, -2.0], [math.nan, math.nan], [-3.0, -2.5]], dtype=F64)
    filters = [ParticleFilter(Particles(count=2, fraction=0, potential=potential), 1, "cpu") for _ in range(2)]
    for particles, rows in zip(filters, (said, said[[0, 2]]), strict=True):
        for each in rows:
            particles.choose(each, at(1.0), torch.tensor([0.5], dtype=F64))
    assert torch.equal(filters[0].weights, filters[1].weights)


def test_when_candidates_are_weighed():
    particles = ParticleFilter(Particles(count=2, ratio_min=1.0, ratio_max=5.0, every=2), 1, "cpu")
    assert [particles.weighs(at(ratio), index) for index, ratio in enumerate([6.0, 5.0, 4.0, 3.0, 2.0, 0.9])] == [
        False, False, True, False, True, True,
    ]  # fmt: skip
    assert particles.weighs(at(5.0), 2) and particles.weighs(at(1.0), 1)  # both ends included
    assert particles.choose(torch.tensor([0.0, 1.0]), at(1.0), torch.tensor([0.5], dtype=F64)).tolist() == [1]
    assert particles.count == 1
    assert not ParticleFilter(Particles(), 1, "cpu").weighs(at(1.0), 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": 0}, "particles.count and particles.every must be at least 1, got 0 and 1"),
        ({"every": 0}, "particles.count and particles.every must be at least 1, got 1 and 0"),
        ({"ratio_min": -1.0}, "particles.ratio_min and particles.ratio_max must be at least 0, got -1.0 and inf"),
        ({"temperature": 0.0}, "particles.temperature must be above 0 and finite, got 0.0"),
        ({"temperature_end": -1.0}, "particles.temperature_end must be above 0 and finite, got -1.0"),
        ({"temperature_end": 0.5}, "particles.temperature_end must be left out unless 0 < ratio_min < ratio_max, both"),
        ({"fraction": 1.5}, "particles.fraction must be between 0 and 1, got 1.5"),
        ({"potential": "mean"}, "unknown particles.potential 'mean'"),
        ({"choice": "worst"}, "unknown particles.choice 'worst'"),
    ],
)
def test_refuses_settings_out_of_range(given, said, unchecked):
    with pytest.raises(InputError, match=said):
        Particles(**given)


# --- in the loop -----------------------------------------------------------------------------------------------------


SAMPLERS = {"ddpm": DDPM(), "ddim": DDIM(), "dpmpp": DPMpp(), "heun": Heun(churn=4.0)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_first_candidate_walks_as_the_image_would_alone(mixture, name):
    alone = sample(mixture, SAMPLERS[name], seeds=SEEDS, steps=8, clip=False, dtype=F64)
    indifferent = Guide(objective=lambda image, target, level: image.new_zeros(len(image)), scale=0)
    together = walk(mixture, SAMPLERS[name], [indifferent], Particles(count=3, ratio_max=0))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_best_of_n_is_the_likeliest_of_its_candidates(mixture, weigher, posterior):
    best = walk(mixture, DDPM(), [weigher], Particles(count=6, ratio_max=0))
    alone = walk(mixture, DDPM(), [weigher], None)
    said = [posterior(x, CLEAN).gather(1, torch.tensor(TARGETS)[:, None])[:, 0] for x in (best, alone)]
    assert (said[0] >= said[1]).all()
    assert (said[0] > said[1]).any()
    assert said[0].exp().mean() > 0.9


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": DDPM()},
        {"sampler": Heun(churn=4.0)},
        {"sampler": DPMpp()},
        {"sampler": DDIM(eta=0.5), "recurrence": Recurrence(times=2, ratio_min=0.2, ratio_max=3.0)},
        {"sampler": DPMpp(), "retries": 2, "recurrence": Recurrence(times=2, ratio_max=1.0)},
    ],
    ids=["ddpm", "heun", "dpmpp", "recurrence", "retries"],
)
def test_an_image_does_not_depend_on_its_neighbours(mixture, objective, settings):
    retries = settings.pop("retries", 0)
    guides = [
        Guide(objective=objective, input=Noisy(), scale=0),
        Guide(objective=objective, wrt="x_t", scale=0.5, stabilizer=Ema(beta=0.9)),
    ]
    particles = Particles(count=3, ratio_min=0.3, every=2, fraction=0.9, retries=retries, retry_below=-0.6)
    together = walk(mixture, guides=guides, particles=particles, **settings)
    alone = [
        walk(mixture, guides=guides, particles=particles, seeds=[seed], target=[target], **settings)
        for seed, target in zip(SEEDS, TARGETS, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-10)


class Counting:
    """The mixture, and how many images it was asked about."""

    def __init__(self, mixture):
        self.mixture, self.schedule, self.shape, self.classes = mixture, mixture.schedule, mixture.shape, ()
        self.decode, self.asked = mixture.decode, []

    def __call__(self, x_t, level, **condition):
        self.asked.append(len(x_t))
        return self.mixture(x_t, level, **condition)


def test_no_network_is_asked_more_than_the_method_needs(mixture, posterior):
    asked = []

    def counted(image, level=None):
        asked.append(len(image))
        return posterior(image, level)

    objective = ClassProbability(classifier=counted)
    ratio = [float(level.sigma / level.alpha) for level in mixture.schedule.levels(6)]
    particles = Particles(count=4, ratio_min=(ratio[2] + ratio[3]) / 2)
    for guide in (Guide(objective=objective, scale=0), Guide(objective=objective)):
        denoiser = Counting(mixture)
        asked.clear()
        walk(denoiser, DDPM(), [guide], particles, steps=6)
        assert denoiser.asked == [20] * 4 + [5] * 2
        assert asked == [20] * 4 + ([5] if guide.scale else [])  # the last step has no variance, so takes no gradient
    denoiser = Counting(mixture)
    walk(denoiser, DDPM(), [Guide(objective=objective, scale=0)], Particles(count=4, ratio_max=0), steps=6)
    assert denoiser.asked == [20] * 6


def test_a_churned_step_begins_elsewhere_and_the_averages_move_once(mixture, objective):
    seen = []

    class Watched(Ema):
        def update(self, g, state):
            stable, moved = super().update(g, state)
            seen.append((state[0], moved[0]))
            return stable, moved

    guide = Guide(objective=objective, stabilizer=Watched(beta=0.5), weight=Constant(), injection=NoisePrediction())
    walk(mixture, Heun(churn=0.5), [guide], Particles(count=2, fraction=0), steps=2)
    # the first step: weighed, its first evaluation from the same average, its second likewise; then one step more
    assert [torch.equal(each[0], seen[0][0]) for each in seen[:3]] == [True] * 3
    assert torch.equal(seen[3][0], seen[1][1])
    assert torch.equal(seen[4][0], seen[1][1])


def test_callbacks_are_shown_each_image_once(mixture, weigher):
    shown = []
    walk(mixture, DDPM(), [weigher], Particles(count=4, ratio_min=1.0), callbacks=[lambda report: shown.append(report)])
    assert {len(report.x) for report in shown} == {len(SEEDS)}
    assert {len(report.x0) for report in shown} == {len(SEEDS)}


def test_conditions_go_with_their_images(mixture, weigher):
    labels = torch.tensor(TARGETS)
    own = walk(mixture, DDPM(), [weigher], Particles(count=3, ratio_max=0), condition={"label": labels}, steps=40)
    # each class's own law lies within four deviations of 0.25 of its mean
    assert ((own[:, :, 0, 0] - mixture.means[labels]).norm(dim=1) < 1.0).all()


def test_one_guide_weighs_what_another_guides(mixture, objective, posterior):
    """Best of n: each candidate is guided as it would be by the first guide alone, the second picks its likeliest."""
    pulls = Guide(objective=objective, input=Noisy(), weight=Variance(), scale=2.0, weighs=False)
    disagrees = ClassProbability(classifier=lambda image, level=None: posterior(image, level).roll(1, 1))
    picks = [Guide(objective=each, scale=0, input=Noisy()) for each in (disagrees, objective)]
    settings = {"particles": Particles(count=4, ratio_max=0), "target": 1}
    by_other, by_own = (walk(mixture, DDPM(), [pulls, pick], **settings) for pick in picks)
    indifferent = Guide(objective=lambda image, target, level: image.new_zeros(len(image)), scale=0)
    candidates = []
    for rank in range(4):
        kept = replace(indifferent, objective=_Kept(rank))
        candidates.append(walk(mixture, DDPM(), [pulls, kept], **settings))
    candidates = torch.stack(candidates)
    for picked, place in ((by_other, 0), (by_own, 1)):
        said = posterior(candidates.flatten(0, 1), CLEAN)[:, place].reshape(4, -1)
        best = candidates[said.argmax(0), torch.arange(len(SEEDS))]
        torch.testing.assert_close(picked, best, rtol=0, atol=1e-12)
    assert (by_other - by_own).abs().max() > 0.1


@dataclass(frozen=True)
class _Kept:
    """Likes the candidate of one number best."""

    rank: int

    def __call__(self, image, target, level):
        return -((torch.arange(len(image)) % 4 - self.rank) % 4).to(image.dtype)


@pytest.mark.parametrize("guides", [[], [Guide(objective=_Kept(0), weighs=False)]], ids=["none", "one that guides"])
def test_refuses_particles_that_nothing_weighs(mixture, guides):
    with pytest.raises(InputError, match="particles.count must be 1 without a guide that weighs them, got 3"):
        walk(mixture, DDPM(), guides, Particles(count=3))


# --- retries ---------------------------------------------------------------------------------------------------------


def likely(posterior, x, target):
    return posterior(x, CLEAN).gather(1, torch.tensor(target).expand(len(x))[:, None])[:, 0]


@pytest.mark.parametrize("few", [{}, {"count": 2, "ratio_min": 0.5, "retry_at": 0.0}], ids=["one", "of two"])
def test_unlikely_images_are_drawn_again_until_one_is_likely_enough(mixture, weigher, posterior, few):
    """From the first level, which holds no signal, tries are independent: k retries accept ``1 - (1 - a)^(k + 1)``.

    Of 4,000 images a is known to 0.005, and so are the shares: four standard errors of both are 0.035.
    """
    settings = {"seeds": range(4000), "target": 2}
    once, *more = (
        walk(mixture, DDPM(), [weigher], Particles(retries=retries, retry_below=-0.5, **few), **settings)
        for retries in (0, 1, 3)
    )
    first = likely(posterior, once, 2)
    accepted = float((first >= -0.5).double().mean())
    assert 0.1 < accepted < 0.6
    for x, retries in zip(more, (1, 3), strict=True):
        said = likely(posterior, x, 2)
        assert torch.equal(x[first >= -0.5], once[first >= -0.5])
        assert (said >= first).all()
        share = float((said >= -0.5).double().mean())
        assert share == pytest.approx(1 - (1 - accepted) ** (retries + 1), abs=0.035)


@pytest.mark.parametrize("sampler", [DDPM(), Heun(churn=4.0)], ids=["ddpm", "heun"])
def test_where_none_is_unlikely_nothing_changes(mixture, objective, sampler):
    guide = Guide(objective=objective, wrt="x_t", scale=0.5, stabilizer=Ema(beta=0.9), weight=Sine())
    few = {"count": 3, "ratio_min": 0.3, "ratio_max": 4.0}
    plain, ready = (
        walk(mixture, sampler, [guide], Particles(**few, **more)) for more in ({}, {"retries": 2, "retry_below": -1e9})
    )
    torch.testing.assert_close(ready, plain, rtol=0, atol=1e-12)


def test_an_image_may_be_judged_at_less_noise_than_its_particles_are(mixture, weigher):
    """Its kept particle goes on alone to ``retry_at``; from there all particles are drawn anew."""
    few = {"count": 3, "ratio_min": 1.0, "ratio_max": 4.0, "retries": 1, "retry_below": 1.0}  # which none reaches
    ratios = [float(level.sigma / level.alpha) for level in mixture.schedule.levels(8)[:-1]]
    first, last, end = (sum(ratio > limit for ratio in ratios) for limit in (4.0, 1.0, 0.3))
    denoiser = Counting(mixture)
    walk(denoiser, DDPM(), [weigher], Particles(**few, retry_at=0.3))
    assert 0 < first < last < end < 8
    alone = [5] * (end - last)
    assert denoiser.asked == [15] * (last + 1) + alone + [15] * (last - first + 1) + alone + [5] * (8 - end)


@pytest.mark.parametrize("begins", [None, 12.0], ids=["where they are weighed", "above"])
def test_only_what_is_tried_again_costs_more(mixture, weigher, posterior, begins):
    """Each step asks once; where one particle is kept, it is asked to weigh them, and again for the step."""
    particles = Particles(count=3, ratio_min=0.3, ratio_max=4.0, retries=1, retry_below=-0.3, retry_from=begins)
    ratios = [float(level.sigma / level.alpha) for level in mixture.schedule.levels(8)[:-1]]
    first, last = (sum(ratio > limit for ratio in ratios) for limit in (begins or 4.0, 0.3))
    assert begins is None or first < sum(ratio > 4.0 for ratio in ratios)
    denoiser = Counting(mixture)
    walk(denoiser, DDPM(), [weigher], particles)
    (bad,) = {count // 3 for count in denoiser.asked[last + 1 : -(8 - last)]}
    assert 0 < bad < 5 and 0 < first < last < 8
    assert denoiser.asked == [15] * (last + 1) + [3 * bad] * (last - first + 1) + [5] * (8 - last)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retries": -1}, "particles.retries must be at least 0, got -1"),
        ({"retries": 1, "count": 2, "corrected": True}, "particles.retries must be 0 with particles.corrected, whose"),
        (
            {"ratio_min": 0.5, "retry_at": 0.6},
            "particles.retry_at must be between 0 and particles.ratio_min 0.5, got 0.6",
        ),
        ({"ratio_max": 5.0, "retry_from": 4.0}, "particles.retry_from must be at least particles.ratio_max 5.0, got 4"),
    ],
)
def test_refuses_retries_that_cannot_be(given, said):
    with pytest.raises(InputError, match=said):
        Particles(**given)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guides": []}, "particles.retries must be 0 without a guide that weighs them, got 1"),
        ({"noise": []}, "noise must be left out with particles.retries 1, got draws"),
        ({"particles": Particles(retries=1, ratio_max=0.0)}, "particles.retries must be 0 unless a level lies between"),
    ],
)
def test_refuses_retries_in_the_loop(mixture, weigher, settings, said):
    with pytest.raises(InputError, match=said):
        walk(mixture, DDPM(), **{"guides": [weigher], "particles": Particles(retries=1)} | settings)


# --- in the loop, corrected ------------------------------------------------------------------------------------------


class Watched(ParticleFilter):
    """A filter that keeps what the steps were corrected by."""

    seen = None

    def correct(self, delta, deviation, variance):
        before = self.weights
        super().correct(delta, deviation, variance)
        self.seen.append((self.weights - before).flatten())


@pytest.fixture
def corrections(monkeypatch):
    """Each step's, one a row."""
    Watched.seen = []
    monkeypatch.setattr(loop, "ParticleFilter", Watched)
    return Watched.seen


def pushing(objective, **choices):
    return Guide(**{"objective": objective, "input": Noisy(), "weight": Constant()} | choices)


PUSHES = {
    "mean": {"injection": Mean(), "weight": Variance(), "scale": 3.0},
    "noise": {"injection": NoisePrediction()},
    "denoised": {"injection": DenoisedImage(), "scale": 0.2},
}


@pytest.mark.parametrize("fixed", ["small", "large"])
@pytest.mark.parametrize("name", PUSHES)
def test_a_correction_is_the_ratio_of_the_steps_densities(mixture, objective, corrections, name, fixed):
    """DDPM written out, by `torch.distributions`; with the sampler's own mean, pushed through the formula it enters."""
    guide, reports = pushing(objective, **PUSHES[name]), []
    generator = torch.Generator().manual_seed(0)
    start, *draws = (torch.randn(10, 2, 1, 1, generator=generator, dtype=F64) for _ in range(6))
    settings = {"seeds": range(5), "callbacks": [reports.append], "steps": 6, "target": 2}
    settings |= {"noise": [start, *draws], "clip": False}
    particles = Particles(count=2, ratio_max=0.0, corrected=True)
    settings["noise"].append(torch.full((5,), 0.5, dtype=F64))  # the last choice's
    walk(mixture, DDPM(fixed=fixed), [guide], particles, **settings)
    assert len(corrections) == 5
    x_t = start
    for step, log_ratio, eps in zip((report.step for report in reports), corrections, draws, strict=False):
        level, next = step.level, step.next
        variance = reverse_variance(level, next, fixed=fixed)
        x0, g = mixture(x_t, level).x0_hat, mixture.conditional_direction(x_t, level, 2)
        mu = posterior_mean(x_t, x0, level, next)
        pushed = {
            "mean": mu + 3.0 * variance * g,
            "noise": posterior_mean(x_t, x0 + level.sigma**2 / level.alpha * g, level, next),
            "denoised": posterior_mean(x_t, x0 + 0.2 * g, level, next),
        }[name]
        x_s = pushed + variance.sqrt() * eps
        plain, guided = (Normal(mean, variance.sqrt()).log_prob(x_s).sum((1, 2, 3)) for mean in (mu, pushed))
        # float64's rounding, in means divided by the first level's alpha of 5e-5, over the smallest deviation of 6e-3
        torch.testing.assert_close(log_ratio, plain - guided, rtol=1e-8, atol=1e-8)
        x_t = x_s


def test_a_step_without_noise_is_not_pushed(mixture, objective, corrections):
    """The last one, into the clean image: there the guides rest, and nothing is corrected."""
    reports, settings = [], {"target": 2, "callbacks": []}
    settings["callbacks"].append(reports.append)
    guide = pushing(objective, injection=NoisePrediction())
    walk(mixture, DDPM(), [guide], Particles(count=2, corrected=True), **settings)
    assert [report.updates[0] is None for report in reports] == [False] * 7 + [True]
    assert len(corrections) == 7
    for report in reports[-1:]:
        assert torch.equal(report.x, report.x0)


def test_without_a_push_there_is_nothing_to_correct(mixture, weigher, corrections):
    settings = {"potential": "difference", "choice": "draw"}
    plain, corrected = (
        walk(mixture, DDPM(), [weigher], Particles(count=3, corrected=which, **settings)) for which in (False, True)
    )
    assert torch.equal(plain, corrected)
    assert torch.equal(torch.stack(corrections), torch.zeros(7, 15, dtype=F64))


def test_one_that_goes_on_alone_is_pushed_as_ever(mixture, objective, corrections):
    """Below ``ratio_min`` there is nobody to be weighed against; down to the image."""
    reports = []
    particles = Particles(count=2, ratio_min=1.0, corrected=True)
    guide = pushing(objective, injection=NoisePrediction(), scale=0.5)
    walk(mixture, DDPM(), [guide], particles, callbacks=[reports.append])
    above = sum(float(report.step.level.sigma / report.step.level.alpha) > 1 for report in reports)
    assert len(corrections) == above < 7
    assert reports[-1].updates[0] is not None


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["DDPM", "DDIM", "EulerAncestral", "SDE-DPM++"])
def test_a_correction_knows_any_samplers_step(mixture, objective, corrections, name):
    """Of mean 1, as every ratio of densities is, if the variance is that of what was drawn.

    5,000 ratios a step, of deviation at most 0.7: five standard errors are 0.05.
    """
    betas = {"beta_schedule": "squaredcos_cap_v2"}
    samplers = {
        "DDPM": DiffusersSampler(DDPMScheduler(clip_sample=False, variance_type="fixed_large", **betas)),
        "DDIM": DDIM(eta=0.5),
        "EulerAncestral": DiffusersSampler(EulerAncestralDiscreteScheduler(**betas)),
        "SDE-DPM++": DiffusersSampler(DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **betas)),
    }
    guide = pushing(objective, injection=Mean(), weight=Variance(), scale=0.5)
    particles = Particles(count=2, ratio_max=0.0, corrected=True)
    walk(mixture, samplers[name], [guide], particles, range(2500), 2, steps=6)
    ratios = torch.stack(corrections).exp()
    assert len(ratios) == 5 and float(ratios.std(1).max()) < 0.7
    torch.testing.assert_close(ratios.mean(1), torch.ones(5, dtype=F64), rtol=0, atol=0.05)


def test_a_diffusers_schedulers_steps_are_corrected_alike(mixture, objective):
    """DDPM's, pushed through its noise prediction: the same candidates go on, so the same images come of them."""
    mixture, scheduler = replace(mixture, schedule=VP.linear()), DDPMScheduler(clip_sample=False)
    guide, particles = pushing(objective, injection=NoisePrediction()), Particles(count=4, corrected=True)
    ours = walk(mixture, DDPM(), [guide], particles, spacing="leading")
    theirs = walk(mixture, DiffusersSampler(scheduler), [guide], particles)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # its levels are float32
    assert (ours - walk(mixture, DDPM(), [guide], replace(particles, corrected=False))).abs().max() > 0.1


BETAS = {"beta_start": 1e-4, "beta_end": 0.02}


@pytest.mark.parametrize(
    "sampler",
    [DDIM(), DPMpp(), Heun(churn=4.0), DiffusersSampler(DDIMScheduler())],
    ids=lambda sampler: type(sampler).__name__,
)
def test_refuses_to_correct_steps_without_noise(mixture, objective, sampler):
    mixture = replace(mixture, schedule=VP.linear())
    with pytest.raises(
        InputError, match="particles.corrected must be false with a sampler whose steps end without noise"
    ):
        walk(mixture, sampler, [pushing(objective)], Particles(count=2, corrected=True))


def test_refuses_to_correct_a_sampler_of_two_evaluations(mixture, objective):
    mixture, sampler = (
        replace(mixture, schedule=VP.linear()),
        DiffusersSampler(KDPM2AncestralDiscreteScheduler(**BETAS)),
    )
    with pytest.raises(
        InputError, match="particles.corrected must be false .* evaluates the denoiser more than once a step"
    ):
        walk(mixture, sampler, [pushing(objective)], Particles(count=2, corrected=True))


@pytest.mark.parametrize("injection", [Sample(), Spherical()], ids=["sample", "deviation"])
def test_refuses_to_correct_other_pushes_before_the_walk(mixture, objective, injection):
    denoiser, particles = Counting(mixture), Particles(count=2, corrected=True)
    guide = pushing(objective, injection=injection)
    with pytest.raises(
        InputError, match="particles.corrected must be false with a guidance update of the .*; use the injec"
    ):
        walk(denoiser, DDPM(), [guide], particles)
    assert denoiser.asked == []
    walk(denoiser, DDPM(), [replace(guide, scale=0.0)], particles)  # what does not push only weighs


# --- the oracle ------------------------------------------------------------------------------------------------------

STEPS = 10
CLASS = 2


def draws(images, count, seed=0):
    """What a walk of DDPM draws, in its order; with more than one candidate, a number an image between the steps."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):  # the last step draws no noise
        yield torch.randn(images * count, 2, 1, 1, generator=generator, dtype=F64)
        if count > 1:
            yield torch.rand(images, generator=generator, dtype=F64)
    if count > 1:
        yield torch.rand(images, generator=generator, dtype=F64)


def moments(x, weights):
    share = weights / weights.sum()
    mean = share @ x
    return mean, (x - mean).T @ (share[:, None] * (x - mean))


@pytest.fixture(scope="module")
def weighted(mixture, posterior):
    """By sampler, mean and covariance of unguided walks weighted by ``p(y | x_0)``: infinitely many particles' law.

    100,000 of them, of which a fifth count: the mean's standard error is 0.002.
    """

    def measure(sampler):
        settings = {"steps": STEPS, "clip": False, "dtype": F64}
        x = sample(mixture, sampler, seeds=range(100_000), noise=draws(100_000, 1), **settings)
        return moments(x[:, :, 0, 0], posterior(x, CLEAN)[:, CLASS].exp())

    return {fixed: measure(DDPM(fixed=fixed)) for fixed in ("small", "large")}


@pytest.fixture
def error(mixture, weighted):
    """How far particles end from that law: the distance of the means plus that of the covariances.

    Of 8,000 images at 4 candidates, and so many fewer at more; the mean's standard errors are 0.003, 0.006 and 0.012 at
    4, 16 and 64. What is far off is seen as such in a quarter of them.
    """

    def measure(guide, count, fixed="small", rows=32_000, **settings):
        images = rows // count
        particles = Particles(count=count, **{"potential": "difference", "choice": "draw"} | settings)
        noise = draws(images, count)
        x = walk(mixture, DDPM(fixed=fixed), [guide], particles, range(images), CLASS, steps=STEPS, noise=noise)
        mean, covariance = moments(x[:, :, 0, 0], torch.ones(images, dtype=F64))
        exact = weighted[fixed]
        return float((mean - exact[0]).norm() + (covariance - exact[1]).norm())

    return measure


def test_particles_near_the_weighted_law_as_they_grow_in_number(weigher, error):
    """Differences of the exact ``log p(y | x_t)``, T = 10: the error falls as 1 / count; measured .113, .018, .005."""
    assert error(weigher, 4) > 0.09
    assert error(weigher, 16) < 0.035
    assert error(weigher, 64) < 0.035
    for wrong in ({"potential": "sum"}, {"potential": "max"}, {"choice": "likeliest"}, {"temperature": 0.5}):
        assert error(weigher, 16, rows=8_000, **wrong) > 0.06


@pytest.fixture
def crude(mixture):
    """A classifier that knows clean images alone."""
    return ClassProbability(classifier=lambda image, level=None: mixture.log_posterior(image, CLEAN))


@pytest.mark.long
def test_corrected_and_pushed_too_hard_they_near_the_same_law(objective, error):
    """At scale 3, where guidance alone is 0.19 away at any count; T = 10: measured .022, .013, .003."""
    guide = pushing(objective, injection=Mean(), weight=Variance(), scale=3.0)
    assert error(guide, 4, corrected=True) < 0.035
    assert error(guide, 16, corrected=True) < 0.035
    assert error(guide, 64, corrected=True) < 0.035
    assert error(guide, 4, rows=8_000) > 0.15
    assert error(guide, 64, rows=8_000) > 0.15


def test_a_good_push_makes_fewer_particles_do(objective, weigher, error):
    """The exact classifier's, at scale 1: four are 0.048 away, where as many that are only weighed are 0.114."""
    assert error(pushing(objective, weight=Variance()), 4, corrected=True) < 0.07 < error(weigher, 4, rows=8_000)


TWISTS = {
    "a crude classifier's, back through the denoiser": (
        "small",
        {"input": Denoised(clip=False), "wrt": "x_t", "weight": Variance(), "scale": 2.0},
    ),
    "a crude classifier's, into the denoised image": (
        "large",
        {"input": Denoised(clip=False), "injection": DenoisedImage(), "scale": 0.05},
    ),
    "the exact classifier's, twice, into the noise": ("large", {"injection": NoisePrediction(), "scale": 2.0}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", TWISTS)
def test_so_do_other_pushes(objective, crude, error, name):
    """T = 10: measured .11, .06, .04; .11, .08, .04; and .10, .04, .02. Not corrected, it is .21 and more at each.

    The larger variance, where a push goes by ``beta``: by the smaller one, it would be beyond the noise of late steps.
    """
    fixed, choices = TWISTS[name]
    guide = pushing(objective if name.startswith("the exact") else crude, **choices)
    few, many = error(guide, 4, fixed, corrected=True), error(guide, 64, fixed, corrected=True)
    assert few < 0.13 and many < 0.07
    assert error(guide, 64, fixed, rows=8_000) > 0.15
