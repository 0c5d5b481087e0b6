import math

import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import (
    ClassProbability,
    Cone,
    Constant,
    Denoised,
    Guide,
    NoisePrediction,
    Noisy,
    Step,
    Sum,
    Switch,
    TargetLogit,
    Toward,
    Translated,
)
from steersman.guidance.target import check_targets
from steersman.mixture import Mixture
from steersman.sampling import DDIM, DDPM, sample
from steersman.schedule import VP

F64 = torch.float64
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
"""Float64's, through one classifier of a few operations."""

LEVEL = VP.cosine().at_time(600.0)
TARGET = torch.tensor([2, 0, 1, 1])


def gradient(objective, x, target=TARGET, level=LEVEL):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(objective(x, target, level).sum(), x)[0]


@pytest.fixture
def exact(posterior):
    return ClassProbability(classifier=posterior)


@pytest.fixture
def one():
    """A single Gaussian."""
    return gaussian([0.3, -0.1])


def gaussian(mean):
    return Mixture(
        weights=torch.ones(1, dtype=F64),
        means=torch.tensor([mean], dtype=F64),
        covariances=torch.tensor([[[0.2, 0.05], [0.05, 0.1]]], dtype=F64),
    )


def tilt(*slope):
    """A log-likelihood that is no class: it rises evenly in one direction."""
    return lambda image, target, level: (image * torch.tensor(slope, dtype=F64).reshape(2, 1, 1)).sum((1, 2, 3))


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), DDIM(eta=0.5)], ids=repr)
@pytest.mark.parametrize(
    ("objective", "slope"),
    [(tilt(1.0, -2.0), (1.0, -2.0)), (Sum([(2.0, tilt(1.0, 0.0)), (-0.5, tilt(1.0, 3.0))]), (1.5, -1.5))],
    ids=["callable", "sum"],
)
def test_a_tilted_gaussian_is_reached_exactly(one, objective, slope, sampler):
    """``N(mu, S) exp(a . x) ~ N(mu + S a, S)``: guided through the denoiser, the walk is that of the tilted one.

    ``x0_hat`` moves by ``(sigma^2 / alpha) J^T a``, J its Jacobian, which for a Gaussian is the posterior's covariance
    times a: the exact ``x0_hat`` of the tilted law.
    """
    settings = {"seeds": range(6), "steps": 15, "clip": False, "dtype": F64}
    choices = {"input": Denoised(clip=False), "weight": Constant(), "injection": NoisePrediction()}
    guide = Guide(objective=objective, wrt="x_t", **choices)
    tilted = gaussian((one.means[0] + one.covariances[0] @ torch.tensor(slope, dtype=F64)).tolist())
    # 15 steps, the first from alpha = 5e-5, where x0_hat is divided by alpha: 1e-16 / 5e-5 = 2e-12
    close = {"rtol": 0, "atol": 1e-10}
    guided = sample(one, sampler, guides=[guide], target=0, **settings)
    torch.testing.assert_close(guided, sample(tilted, sampler, **settings), **close)
    assert (guided - sample(one, sampler, **settings)).abs().min() > 1e-2


def test_a_sum_is_a_product_of_experts(mixture, exact, draw):
    """Proposition 4.2's directions add up by their weights; without a denominator, two of them leave the joint ones."""
    x_t = draw(4, 2, 1, 1)
    blend = Sum([(1.0, Toward(objective=exact, target=2)), (-0.5, Toward(objective=exact, target=0))])
    conditional = [mixture.conditional_direction(x_t, LEVEL, j) for j in range(3)]
    torch.testing.assert_close(gradient(blend, x_t), conditional[2] - 0.5 * conditional[0], **ROUNDING)
    ratio = Sum([(1.0, Toward(objective=exact, target=2)), (-1.0, Toward(objective=exact, target=0))])
    joint = [mixture.joint_direction(x_t, LEVEL, j) for j in range(3)]
    torch.testing.assert_close(gradient(ratio, x_t), joint[2] - joint[0], **ROUNDING)


def test_a_sums_parts_have_classifiers_and_vocabularies_of_their_own(exact, draw):
    """Each image's own target under the one, the class of the same name under another, a fixed one away from."""
    x, weights = draw(4, 2, 1, 1), draw(5, 2)
    other = TargetLogit(classifier=lambda image, level=None: image.flatten(1) @ weights.T)
    named = Translated(objective=other, classes={0: 4, 2: 1})
    target = torch.tensor([2, 0, 2, 0])
    blend = Sum([(1.0, exact), (0.3, named), (-2.0, Toward(objective=other, target=3))])
    expected = exact(x, target, LEVEL)
    expected = expected + 0.3 * (x.flatten(1) * weights[[1, 4, 1, 4]]).sum(1) - 2 * x.flatten(1) @ weights[3]
    torch.testing.assert_close(blend(x, target, LEVEL), expected, **ROUNDING)


def test_a_translation_refuses_a_target_that_it_does_not_have(exact, draw):
    named = Translated(objective=exact, classes={0: 1})
    for wrong in (1, 2):
        with pytest.raises(InputError, match=rf"target must be one of \[0\], .* got {wrong}"):
            named(draw(2, 2, 1, 1), torch.tensor([0, wrong]), LEVEL)
        with pytest.raises(InputError, match=rf"target must be one of \[0\], .* got {wrong}"):
            check_targets(Sum([(1.0, exact), (0.5, named)]), [0, wrong])
    check_targets(Sum([(1.0, Toward(objective=named, target=0))]), [9])


def test_a_switch_asks_the_one_whose_level_it_is(mixture, exact):
    asked = {"above": [], "below": []}

    def asking(name):
        def objective(image, target, level):
            asked[name].append(level)
            return exact(image, target, level)

        return objective

    levels = mixture.schedule.levels(10)[:-1]
    at = float(levels[6].sigma / levels[6].alpha)
    switch = Switch(above=asking("above"), below=asking("below"), at=at)
    settings = {"target": 1, "steps": 10, "clip": False, "dtype": F64}
    choices = {"input": Noisy(), "weight": Constant(), "injection": NoisePrediction()}
    walk = sample(mixture, DDPM(), guides=[Guide(objective=switch, **choices)], **settings)
    assert asked == {"above": list(levels[:6]), "below": list(levels[6:])}
    assert torch.equal(walk, sample(mixture, DDPM(), guides=[Guide(objective=exact, **choices)], **settings))


def slopes(*rows):
    """A log-likelihood that rises evenly, in each image in another direction."""
    return lambda image, target, level: (image * torch.tensor(rows, dtype=F64)[:, :, None, None]).sum((1, 2, 3))


def test_a_gradient_outside_a_cone_goes_to_its_nearest_point():
    """Of 30 degrees around the first axis: across it, beside it, opposite to it, inside, and of no length."""
    root = math.sqrt(3)
    within = slopes([0.0, 4.0], [1.0, 1.0], [-4.0, 0.1], [2.0, -1.0], [0.0, 0.0])
    cone = Cone(around=slopes(*[[0.5, 0.0]] * 5), within=within, angle=30.0)
    side = (root + 1) / 4
    expected = [[root, 1.0], [side * root, side], [0.0, 0.0], [2.0, -1.0], [0.0, 0.0]]
    found = gradient(cone, torch.zeros(5, 2, 1, 1, dtype=F64), None)[:, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), **ROUNDING)


@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
def test_a_cone_guides_by_its_projection_and_weighs_by_its_axis(mixture, exact, draw, wrt):
    x, target = draw(4, 2, 1, 1), TARGET
    other = Translated(objective=exact, classes={0: 1, 1: 2, 2: 0})
    cone = Cone(around=exact, within=other, angle=20.0)
    guides = [Guide(objective=each, wrt=wrt, input=Denoised(clip=False)) for each in (exact, other, cone)]
    step = Step.at(mixture.schedule.levels(10), 5)
    found = []
    for guide in guides:
        x_t = x.clone().requires_grad_()
        with torch.enable_grad():
            prediction = mixture(x_t, step.level)
        found.append((prediction, x_t, *guide.gradient(x_t, prediction, step, target, mixture, retain_graph=True)))
    assert torch.equal(found[2][3], found[0][3])
    image = found[0][0].x0_hat.detach()
    v, w, u = (gradient(each, image, level=step.level) for each in (exact, other, cone))
    cos = math.cos(math.radians(20)) * v.norm(dim=1)
    assert ((v * w).sum(1) < cos * w.norm(dim=1)).any()
    assert ((v * u).sum(1) >= cos * u.norm(dim=1) - 1e-12).all() and (u != 0).any()
    leaf = found[0][1]
    (through,) = torch.autograd.grad(found[0][0].x0_hat, leaf, u) if wrt == "x_t" else (u,)
    torch.testing.assert_close(found[2][2], through, **ROUNDING)


def test_an_image_does_not_depend_on_its_neighbours(exact, draw):
    x = draw(4, 2, 1, 1)
    turned = Translated(objective=exact, classes={0: 1, 1: 2, 2: 0})
    blend = Sum([(1.0, turned), (-0.5, Toward(objective=exact, target=0))])
    both = gradient(blend, x)
    for row in range(4):
        alone = gradient(blend, x[row : row + 1], TARGET[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone, **ROUNDING)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda exact: Sum([]), "objective.terms must hold at least one, got none"),
        (lambda exact: Sum([(float("nan"), exact)]), "Sum.terms must be a finite number, got nan"),
        (
            lambda exact: Cone(around=exact, within=exact, angle=91.0),
            "ensemble.angle must be between 0 and 90",
        ),
        (lambda exact: Switch(above=exact, below=exact, at=-1.0), "objective.at must be at least 0, got -1.0"),
        (lambda exact: Switch(above=exact, below=exact, at=float("nan")), "Switch.at must be a finite number, got nan"),
        (lambda exact: Toward(objective=exact, target=-1), "objective.target must be at least 0, got -1"),
    ],
)
def test_refuses_settings(exact, wrong, message):
    with pytest.raises(InputError, match=message):
        wrong(exact)
