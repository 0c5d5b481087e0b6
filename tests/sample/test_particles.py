import math

import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import ClassProbability, Constant, Ema, Guide, NoisePrediction, Noisy
from steersman.sample import DDIM, DDPM, DPMpp, Heun, Particles, Recurrence, sample
from steersman.sample.particles import WORST, Swarm
from steersman.schedule import CLEAN, Level

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
    return Guide(objective=objective, view=Noisy(), scale=0)


def walk(mixture, sampler, guides, particles, seeds=SEEDS, target=TARGETS, **settings):
    settings = {"steps": 8, "clip": False, "dtype": F64} | settings
    return sample(mixture, sampler, guides=guides, target=target, seeds=seeds, particles=particles, **settings)


# --- the swarm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [0.0, 0.3, 0.999])
def test_candidates_are_drawn_in_proportion_to_their_weights(mark):
    shares = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.75, 0.25]], dtype=F64)
    swarm = Swarm(Particles(count=4), 2, "cpu")
    rows = swarm.choose(shares.log().flatten(), at(1.0), torch.full((2,), mark, dtype=F64))
    assert rows.tolist() == [0, 0, 1, 2, 6, 6, 6, 7]
    assert swarm.count == 4
    assert torch.equal(swarm.weights, torch.zeros(2, 4, dtype=F64))


def test_the_expected_number_of_copies_is_the_weight_times_the_count():
    shares = torch.tensor([0.13, 0.29, 0.07, 0.51], dtype=F64)
    copies = torch.zeros(4, dtype=F64)
    for place in range(1000):
        swarm = Swarm(Particles(count=4), 1, "cpu")
        copies += swarm.choose(shares.log(), at(1.0), torch.tensor([(place + 0.5) / 1000], dtype=F64)).bincount(
            minlength=4
        )
    torch.testing.assert_close(copies / 1000, 4 * shares, rtol=0, atol=2e-3)


def test_potentials_add_up_over_a_walk_without_resampling():
    said = [torch.tensor(row, dtype=F64) for row in ([-3.0, -1.0], [-2.0, -4.0], [-5.0, -0.5])]
    sums = {"sum": [-10.0, -5.5], "difference": [-5.0, -0.5], "max": [-7.0, -2.5]}
    for potential, expected in sums.items():
        swarm = Swarm(Particles(count=2, potential=potential, fraction=0, temperature=0.5), 1, "cpu")
        for each in said:
            assert swarm.choose(each, at(1.0), torch.rand(1, dtype=F64)).tolist() == [0, 1]
        torch.testing.assert_close(swarm.weights, 2 * torch.tensor([expected], dtype=F64))


def test_the_past_goes_with_its_candidate():
    swarm = Swarm(Particles(count=2, potential="difference"), 1, "cpu")
    assert swarm.choose(torch.tensor([0.0, -50.0]), at(1.0), torch.tensor([0.5], dtype=F64)).tolist() == [0, 0]
    swarm.choose(torch.tensor([1.0, 1.0]), at(1.0), torch.tensor([0.5], dtype=F64))
    assert torch.equal(swarm.past, torch.ones(1, 2, dtype=F64))


def test_an_image_is_drawn_anew_only_where_its_own_candidates_degenerate():
    swarm = Swarm(Particles(count=2, fraction=0.75), 2, "cpu")
    rows = swarm.choose(torch.tensor([0.0, 0.1, 0.0, 9.0]), at(1.0), torch.full((2,), 0.5, dtype=F64))
    assert rows.tolist() == [0, 1, 3, 3]
    assert torch.equal(swarm.weights, torch.tensor([[0.0, 0.1], [0.0, 0.0]]).double())


def test_the_likeliest_goes_on_alone_whatever_the_weights():
    swarm = Swarm(Particles(count=3, low=1.0), 1, "cpu")
    swarm.weights = torch.tensor([[9.0, 0.0, 0.0]], dtype=F64)
    assert swarm.choose(torch.tensor([-2.0, -1.0, -3.0]), at(0.9), torch.tensor([0.1], dtype=F64)).tolist() == [1]
    assert swarm.count == 1
    assert not swarm.weighs(at(0.5), 0)


def test_candidates_without_a_likelihood_do_not_go_on_while_another_has_one():
    said = torch.tensor([math.nan, -80.0, -math.inf, math.inf])
    for choice in ("likeliest", "draw"):
        for low, expected in ((0.0, [1, 1, 1, 1]), (2.0, [1])):
            swarm = Swarm(Particles(count=4, low=low, choice=choice), 1, "cpu")
            assert swarm.choose(said, at(1.0), torch.tensor([0.9], dtype=F64)).tolist() == expected
    swarm = Swarm(Particles(count=4), 1, "cpu")
    assert swarm.choose(said.new_full((4,), math.nan), at(1.0), torch.rand(1).double()).tolist() == [0, 1, 2, 3]
    assert WORST < -1e9


def test_when_candidates_are_weighed():
    swarm = Swarm(Particles(count=2, low=1.0, high=5.0, every=2), 1, "cpu")
    assert [swarm.weighs(at(ratio), index) for index, ratio in enumerate([6.0, 5.0, 4.0, 3.0, 2.0, 0.9])] == [
        False, False, True, False, True, True,
    ]  # fmt: skip
    assert not Swarm(Particles(), 1, "cpu").weighs(at(1.0), 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": 0}, "particles.count, every: 0, 1 given; allowed: 1 and more"),
        ({"every": 0}, "particles.count, every: 1, 0 given"),
        ({"low": -1.0}, "particles.low, high: -1.0, inf given; allowed: 0 and more"),
        ({"temperature": 0.0}, "particles.temperature: 0.0 given; allowed: above 0"),
        ({"fraction": 1.5}, "particles.fraction: 1.5 given; allowed: 0 to 1"),
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
    together = walk(mixture, SAMPLERS[name], [indifferent], Particles(count=3, high=0))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_best_of_n_is_the_likeliest_of_its_candidates(mixture, weigher, posterior):
    best = walk(mixture, DDPM(), [weigher], Particles(count=6, high=0))
    alone = walk(mixture, DDPM(), [weigher], None)
    said = [posterior(x, CLEAN).gather(1, torch.tensor(TARGETS)[:, None])[:, 0] for x in (best, alone)]
    assert (said[0] >= said[1]).all()
    assert (said[0] > said[1]).any()
    assert said[0].exp().mean() > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": DDPM()},
        {"sampler": Heun(churn=4.0)},
        {"sampler": DPMpp()},
        {"sampler": DDIM(eta=0.5), "recurrence": Recurrence(times=2, low=0.2, high=3.0)},
    ],
    ids=["ddpm", "heun", "dpmpp", "recurrence"],
)
def test_an_image_does_not_depend_on_its_neighbours(mixture, objective, settings):
    guides = [
        Guide(objective=objective, view=Noisy(), scale=0),
        Guide(objective=objective, route="through", scale=0.5, stabilizer=Ema(beta=0.9)),
    ]
    particles = Particles(count=3, low=0.3, every=2, fraction=0.9)
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
    particles = Particles(count=4, low=(ratio[2] + ratio[3]) / 2)
    for guide in (Guide(objective=objective, scale=0), Guide(objective=objective)):
        denoiser = Counting(mixture)
        asked.clear()
        walk(denoiser, DDPM(), [guide], particles, steps=6)
        assert denoiser.asked == [20] * 4 + [5] * 2
        assert asked == [20] * 4 + ([5] if guide.scale else [])  # the last step has no variance, so takes no gradient
    denoiser = Counting(mixture)
    walk(denoiser, DDPM(), [Guide(objective=objective, scale=0)], Particles(count=4, high=0), steps=6)
    assert denoiser.asked == [20] * 6


def test_a_churned_step_begins_elsewhere_and_the_averages_move_once(mixture, objective):
    seen = []

    class Watched(Ema):
        def update(self, g, state):
            stable, moved = super().update(g, state)
            seen.append((state[0], moved[0]))
            return stable, moved

    guide = Guide(objective=objective, stabilizer=Watched(beta=0.5), strength=Constant(), injection=NoisePrediction())
    walk(mixture, Heun(churn=0.5), [guide], Particles(count=2, fraction=0), steps=2)
    # the first step: weighed, its first evaluation from the same average, its second likewise; then one step more
    assert [torch.equal(each[0], seen[0][0]) for each in seen[:3]] == [True] * 3
    assert torch.equal(seen[3][0], seen[1][1])
    assert torch.equal(seen[4][0], seen[1][1])


def test_callbacks_are_shown_each_image_once(mixture, weigher):
    shown = []
    walk(mixture, DDPM(), [weigher], Particles(count=4, low=1.0), callbacks=[lambda report: shown.append(report)])
    assert {len(report.x) for report in shown} == {len(SEEDS)}
    assert {len(report.x0) for report in shown} == {len(SEEDS)}


def test_conditions_go_with_their_images(mixture, weigher):
    labels = torch.tensor(TARGETS)
    own = walk(mixture, DDPM(), [weigher], Particles(count=3, high=0), condition={"label": labels}, steps=40)
    # each class's own law lies within four deviations of 0.25 of its mean
    assert ((own[:, :, 0, 0] - mixture.means[labels]).norm(dim=1) < 1.0).all()


def test_refuses_particles_that_nothing_weighs(mixture):
    with pytest.raises(InputError, match="particles.count: 3 given, but there is no guide to weigh them; allowed: 1"):
        walk(mixture, DDPM(), [], Particles(count=3))


# --- the oracle ------------------------------------------------------------------------------------------------------

STEPS = 20


@pytest.fixture(scope="module")
def weighted(mixture, posterior):
    """Mean and covariance of unguided walks weighted by ``p(y | x_0)``: what infinitely many particles draw from.

    20,000 of them, of which a fifth count: the mean's standard error is 0.005.
    """
    x = sample(mixture, DDPM(), seeds=range(20_000), steps=STEPS, clip=False, dtype=F64)
    return moments(x[:, :, 0, 0], posterior(x, CLEAN)[:, 2].exp())


def moments(x, weights):
    share = weights / weights.sum()
    mean = share @ x
    return mean, (x - mean).T @ (share[:, None] * (x - mean))


def test_particles_near_the_weighted_law_as_they_grow_in_number(mixture, weighted, objective):
    """Differences of the exact ``log p(y | x_t)``: the error falls as 1 / count, 0.10 at 4 and 0.02 at 16.

    1,000 images: the mean's standard error is 0.009.
    """
    noisy = Guide(objective=objective, view=Noisy(), scale=0)

    def error(images=1000, **settings):
        settings = {"potential": "difference", "choice": "draw"} | settings
        x = walk(mixture, DDPM(), [noisy], Particles(**settings), range(images), 2, steps=STEPS)[:, :, 0, 0]
        mean, covariance = moments(x, torch.ones(len(x), dtype=F64))
        return float((mean - weighted[0]).norm() + (covariance - weighted[1]).norm())

    assert error(count=4) > 0.06
    assert error(count=16) < 0.04
    for wrong in ({"potential": "sum"}, {"potential": "max"}, {"choice": "likeliest"}, {"temperature": 0.5}):
        assert error(count=16, images=500, **wrong) > 0.06
