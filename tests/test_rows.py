"""Sums over each row of a batch: exact, and the same to the bit whatever rows are beside it."""

import math

import pytest
import torch
from torch import nn

from steersman.batching import cosine, logsumexp, norm, rms, total
from steersman.denoise import Prediction
from steersman.guidance import (
    Adam,
    Augmented,
    BinaryProbability,
    ClassProbability,
    Log,
    MonteCarlo,
    Rescaled,
    Root,
    Spherical,
    Sum,
    TargetLogit,
)
from steersman.models.classifiers import RAW, Classifier, Preprocess, TextClassifier
from steersman.recipes import load_recipe, recipe_names
from steersman.recipes.schema import PAIRS
from steersman.sampling import sample
from steersman.schedule import VP

WIDE = 3 * 112 * 112  # values of a row, more than a CPU leaves to one thread
LEVEL = VP.cosine().at_time(500.0)


@pytest.fixture(params=[1, 2])
def threads(request):
    """Threads that share out a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def alike(function, x, *others, layouts=False):
    """Whether each row's values and gradient are the same alone, beside others, and, if asked, in another layout."""

    def asked(*rows):
        rows = [each.clone().requires_grad_(each.is_floating_point()) for each in rows]
        values = function(*rows)
        return values, *torch.autograd.grad((values * torch.arange(1, 1 + values.shape[1])).sum(), rows[0])

    whole = asked(x, *others)
    for layout in [x, x.to(memory_format=torch.channels_last)] if layouts else [x]:
        for first, last in ((0, 1), (2, 3), (len(x) - 1, len(x)), (1, len(x))):
            part = asked(layout[first:last], *(each[first:last] for each in others))
            if not all(torch.equal(some, every[first:last]) for some, every in zip(part, whole, strict=True)):
                return False
    return True


@pytest.mark.few(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [norm, rms, total])
@pytest.mark.parametrize("shape", [(4, 3, 112, 112), (4, 3, 7, 11), (4, 1, 1, 1), (9, 101), (4, WIDE + 1)])
def test_a_row_has_the_same_sum_whatever_is_beside_it(function, shape, dtype, threads):
    assert alike(lambda x: function(x).reshape(len(x), 1), normal(*shape, dtype=dtype), layouts=len(shape) == 4)


@pytest.mark.parametrize("classes", [1, 2, 7, 1000, 1001, 40_001])
def test_so_have_logarithms_of_summed_exponentials_and_cosines(classes, threads):
    assert alike(lambda x: logsumexp(x)[:, None], 5 * normal(5, classes))
    texts = normal(3, classes, seed=1)
    assert alike(lambda x: cosine(x, texts), normal(5, classes))


def test_a_row_is_the_same_on_any_number_of_threads():
    x = normal(2, WIDE)
    before = torch.get_num_threads()
    found = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        found.append((norm(x), rms(x), total(x)))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))


def test_they_are_what_their_names_say():
    """In float32, by halves of 37,632 values, 16 additions deep: 16 halves of 2^-23 at most."""
    x = normal(3, WIDE)
    exact = x.double()
    near = {"rtol": 16 * 2**-24, "atol": 0.0}
    torch.testing.assert_close(norm(x).double(), exact.square().sum(1, keepdim=True).sqrt(), **near)
    torch.testing.assert_close(rms(x).double(), exact.square().mean(1, keepdim=True).sqrt(), **near)
    torch.testing.assert_close(total(x.abs()).double(), exact.abs().sum(1), **near)
    torch.testing.assert_close(logsumexp(x).double(), exact.logsumexp(1), rtol=1e-6, atol=0)
    y = normal(4, WIDE, seed=1)
    exact = torch.nn.functional.cosine_similarity(x.double()[:, None], y.double(), dim=-1)
    torch.testing.assert_close(cosine(x, y).double(), exact, rtol=0, atol=1e-7)
    assert torch.equal(total(torch.arange(7.0)[:, None].expand(7, 5)), 5 * torch.arange(7.0))
    assert torch.equal(cosine(torch.zeros(1, 3), torch.ones(2, 3)), torch.zeros(1, 2))


@pytest.mark.parametrize("function", [norm, rms, total])
def test_their_gradients_are_exact(function):
    x = normal(2, 3, 1, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


def test_the_gradients_of_exponentials_and_cosines_too():
    assert torch.autograd.gradcheck(logsumexp, (normal(2, 5, dtype=torch.float64).requires_grad_(),))
    y = normal(3, 5, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: cosine(x, y), (normal(2, 5, dtype=torch.float64).requires_grad_(),))


@pytest.mark.parametrize(
    ("dtype", "powers"), [(torch.float32, (-126, -80, 0, 64, 120)), (torch.float64, (-900, 0, 1000))]
)
def test_lengths_neither_overflow_nor_vanish(dtype, powers):
    """A power of two rounds nothing, so the length of a scaled row is the scaled length, to the bit."""
    x = normal(1, 3, 4, 4, dtype=dtype)
    for power in powers:
        scaled = torch.ldexp(x, torch.tensor(power)) if dtype is torch.float64 else (x.double() * 2.0**power).float()
        rounding = 1e-6 if power <= -120 else 0  # the smallest numbers have fewer digits
        for function in (norm, rms):
            expected = function(x).double() * 2.0**power
            torch.testing.assert_close(function(scaled).double(), expected, rtol=rounding, atol=0)
    assert norm(torch.zeros(1, 3)) == 0 and norm(torch.full((1, 3), math.inf)) == math.inf
    assert norm(torch.full((1, 3), math.nan)).isnan()


def test_a_logarithm_of_exponentials_keeps_infinite_logits_apart():
    x = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf], [1000.0, 1000.0]])
    assert torch.equal(logsumexp(x), torch.tensor([0.0, -math.inf, 1000.0 + math.log(2)]))


def logits(count, side=24):
    """A classifier whose network sees one image at a time, as one in blocks does."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.SiLU(), nn.Flatten(), nn.Linear(side**2 // 16, count))
    classifier = Classifier(network, preprocess=RAW, names=map(str, range(max(count, 2))), binary=count == 1)
    classifier.block = 1
    return classifier


def texts():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 37))
    encode = {each: normal(37, seed=seed) for seed, each in enumerate("abc")}.__getitem__
    found = TextClassifier(network, encode=encode, sharpness=10.0, preprocess=Preprocess(), names="abc")
    found.block = 1
    return found


CLASS = ClassProbability(classifier=logits(1001), marginal=0.7)
OBJECTIVES = {
    "class": CLASS,
    "logit": TargetLogit(classifier=logits(5)),
    "binary": BinaryProbability(classifier=logits(1)),
    "texts": ClassProbability(classifier=texts()),
    "augmented": Augmented(objective=CLASS, copies=7),
    "montecarlo": MonteCarlo(objective=CLASS, copies=7),
    "sum": Sum([(weight / 7, CLASS) for weight in range(1, 8)]),
    "root": Root(objective=CLASS),
    "log": Log(objective=CLASS),
}


@pytest.mark.few(6)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_image_has_the_same_objective_and_gradient_whatever_is_beside_it(name, threads):
    target = torch.tensor([1, 0, 1, 0, 1, 0, 1, 1, 1])
    assert alike(lambda x, y: OBJECTIVES[name](x, y, LEVEL)[:, None], normal(9, 3, 24, 24), target)


def test_so_has_the_rescaled_view_whose_length_is_differentiated(threads, mixture):
    input = Rescaled()
    assert alike(lambda x: input(x, Prediction(x), LEVEL, mixture).flatten(1)[:, :7], 3 * normal(5, 3, 112, 112))


def test_so_have_adams_corrected_averages_however_many_gradients_each_image_has_had(threads):
    g, adam = normal(9, 3, 5, 5), Adam(corrected=True)
    state = (normal(9, 3, 5, 5, seed=1), normal(9, 3, 5, 5, seed=2).square(), torch.arange(9.0).reshape(9, 1, 1, 1))
    among = adam.update(g, state)[0]
    for k in range(9):
        assert torch.equal(adam.update(g[k : k + 1], tuple(each[k : k + 1] for each in state))[0][0], among[k])


def test_so_has_a_step_on_the_sphere(threads):
    d, p = normal(5, 3, 112, 112), normal(5, 3, 112, 112, seed=1) * torch.arange(5.0).reshape(5, 1, 1, 1)
    among = Spherical().deviation(d, p, torch.tensor(0.5))
    for k in range(5):
        assert torch.equal(Spherical().deviation(d[k : k + 1], p[k : k + 1], torch.tensor(0.5))[0], among[k])


class Elementwise:
    """A denoiser whose every value depends on that of the noisy image alone, so that no batch can matter to it."""

    classes, schedule, shape = (), VP.linear(), (3, 112, 112)

    def __call__(self, x_t, level, label=None, cfg_scale=1.0):
        x0_hat = 0.9 * x_t.sin() + 0.2 * x_t.cos()
        return Prediction(x0_hat, x0_hat.detach().abs().clamp(max=1), 0.8 * x0_hat)

    def decode(self, x0):
        return x0


SAMPLERS = ["ddpm", {"kind": "ddim", "eta": 0.5}, "heun", "dpmpp"] + [
    {"kind": "diffusers", "scheduler": each} for each in ("DDPM", "EulerAncestralDiscrete", "UniPCMultistep")
]


CHOICES = [*((name, None) for name in recipe_names(variants=False)), *(("nrcg", sampler) for sampler in SAMPLERS)]


@pytest.mark.few(24)
@pytest.mark.parametrize(("name", "sampler"), CHOICES)
def test_an_image_is_the_same_to_the_bit_whatever_its_batch_by_every_recipe_and_sampler(name, sampler):
    """What networks make of a batch is left out: here one is elementwise, the other sees one image at a time."""
    chosen = load_recipe(name, ["sampling.steps=3"])
    changes = {"sampling.steps": 3, "recurrence.times": min(chosen.resolved()["recurrence"]["times"], 2)}
    changes |= {"sampler": sampler, "recurrence.times": 1, "stabilizer": "rms"} if sampler else {}
    chosen = chosen.changed(changes)
    classifier = logits(5, side=112)
    others = [(classifier, {0: 0})] * (chosen.resolved()["ensemble"]["kind"] in PAIRS)

    def drawn(*seeds):
        return sample(
            Elementwise(),
            chosen.sampler(),
            guides=chosen.bind_prepared(classifier, *others),
            target=0,
            seeds=seeds,
            **chosen.sampling(),
        )

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    among, alone = drawn(0, 1), drawn(1)
    torch.set_num_threads(before)
    assert among.isfinite().all() and torch.equal(among[1], alone[0])
