"""`adm-cg` is Dhariwal & Nichol's two algorithms, on a network that learned a variance and a classifier told the time.

Beside it stand the algorithms as the paper writes them, on numbers of its own: respaced betas, posterior, steps.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from steersman.denoise import Prediction
from steersman.models.classifiers import RAW, Classifier
from steersman.recipes import load_recipe
from steersman.sampling import sample
from steersman.schedule import VP

F64 = torch.float64
SHAPE, CLASSES, TARGET = (3, 8, 8), 5, torch.tensor([3, 0])
BARS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
ROUNDING = {"rtol": 0, "atol": 1e-10}  # float64's, through ten steps that enlarge it


class Network(nn.Module):
    """An image and its time to so many channels; a classifier where they are averaged."""

    def __init__(self, channels, seed, gain, *, classifies=False):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, channels, 3, padding=1)
        self.time, self.gain, self.classifies = nn.Linear(1, 16), gain, classifies
        self.double().requires_grad_(False)

    def forward(self, x, time):
        hidden = torch.tanh(self.first(x) + self.time(time[:, None].double() / 500 - 1)[..., None, None])
        out = self.gain * self.last(hidden)
        return out.mean((2, 3)) if self.classifies else out


UNET, JUDGE = Network(6, 0, 3.0), Network(CLASSES, 1, 60.0, classifies=True)
GUIDE = Classifier(JUDGE, preprocess=RAW, names="abcde", noise_aware=True)


class Adm:
    """The network as a denoiser: its second half is the fraction, from -1 to 1."""

    schedule, shape, classes = VP(alpha_bar=BARS), SHAPE, ()

    def __call__(self, x_t, level, **_):
        eps, fraction = UNET(x_t, level.time.expand(len(x_t))).split(3, 1)
        return Prediction((x_t - level.sigma * eps) / level.alpha, (fraction + 1) / 2)

    def decode(self, x0):
        return x0


@pytest.fixture
def draws(draw):
    return [draw(2, *SHAPE) for _ in range(11)]


def run(draws, recipe, *changes):
    made = load_recipe(recipe, changes)
    walk = {"target": TARGET, "seeds": range(2), "noise": iter(draws), "dtype": F64, **made.sampling()}
    return sample(Adm(), made.sampler(), guides=made.bind_prepared(GUIDE), **walk)


def gradient(x, time):
    x = x.detach().requires_grad_()
    chosen = functional.log_softmax(JUDGE(x, time), 1)[range(2), TARGET]
    return torch.autograd.grad(chosen.sum(), x)[0]


def respaced(times):
    """``alpha_bar``, the one before it, and ``beta`` of a process of these times alone; the cleanest first."""
    bars = BARS[times]
    before = torch.cat([torch.ones(1, dtype=F64), bars[:-1]])
    return bars, before, 1 - bars / before


def linspace(steps):
    return [round(999 * i / (steps - 1)) for i in range(steps)]


def algorithm_1(draws, times, scale):
    """``x_{t-1} ~ N(mu + s Sigma grad log p(y | x_t), Sigma)``, the mean alone at the last step.

    ``log Sigma = f log beta + (1 - f) log beta_tilde``; at the last step ``beta_tilde`` is the one of the step before.
    """
    bars, before, betas = respaced(times)
    tilde = betas * (1 - before) / (1 - bars)
    tilde[0] = tilde[1]
    x, *rest = draws
    for i in reversed(range(len(times))):
        time = torch.full((2,), times[i])
        eps, v = UNET(x, time).chunk(2, 1)
        x0 = ((x - (1 - bars[i]).sqrt() * eps) / bars[i].sqrt()).clamp(-1, 1)
        mean = (before[i].sqrt() * betas[i] * x0 + (1 - betas[i]).sqrt() * (1 - before[i]) * x) / (1 - bars[i])
        variance = betas[i] ** ((v + 1) / 2) * tilde[i] ** ((1 - v) / 2)
        x = mean + scale * variance * gradient(x, time)
        x = x + variance.sqrt() * rest.pop(0) if i else x
    return x


def algorithm_2(draws, times, scale, eta):
    """DDIM with ``eps - sqrt(1 - alpha_bar) s grad log p(y | x_t)``, eps from the clipped image, not clipped again."""
    bars, before, betas = respaced(times)
    x, *rest = draws
    for i in reversed(range(len(times))):
        time = torch.full((2,), times[i])
        eps = UNET(x, time).chunk(2, 1)[0]
        x0 = ((x - (1 - bars[i]).sqrt() * eps) / bars[i].sqrt()).clamp(-1, 1)
        eps = (x - bars[i].sqrt() * x0) / (1 - bars[i]).sqrt() - (1 - bars[i]).sqrt() * scale * gradient(x, time)
        x0 = (x - (1 - bars[i]).sqrt() * eps) / bars[i].sqrt()
        variance = eta**2 * betas[i] * (1 - before[i]) / (1 - bars[i])
        x = before[i].sqrt() * x0 + (1 - before[i] - variance).sqrt() * eps
        x = x + variance.sqrt() * rest.pop(0) if i and eta else x
    return x


@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize("scale", [0.0, 0.5, 20.0])
def test_ddpm_is_algorithm_1(draws, scale, steps):
    ours = run(draws, "adm-cg", f"sampling.steps={steps}", f"scale={scale}")
    torch.testing.assert_close(ours, algorithm_1(draws, linspace(steps), scale), **ROUNDING)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0])
@pytest.mark.parametrize(("spacing", "times"), [("leading", range(0, 1000, 100)), ("linspace", linspace(10))])
def test_ddim_is_algorithm_2(draws, spacing, times, scale, eta):
    settings = ["sampling.steps=10", f"sampling.spacing={spacing}", f"scale={scale}", f"sampler.eta={eta}"]
    ours = run(draws, "adm-cg/ddim", *settings)
    torch.testing.assert_close(ours, algorithm_2(draws, list(times), scale, eta), **ROUNDING)


@pytest.mark.parametrize(
    "change",
    [
        "sampler.fixed=small",
        "sampling.spacing=leading",
        "sampling.clip=false",
        "weight=constant",
        "input=denoised",
        "scale=0",
    ],
)
def test_any_other_choice_on_ddpm_is_noticed(draws, change):
    expected = algorithm_1(draws, linspace(10), 20.0)
    ours = run(draws, "adm-cg", "sampling.steps=10", "scale=20", change)
    assert (ours - expected).abs().max() > 1e-5


@pytest.mark.parametrize(
    "change",
    [
        "sampling.spacing=linspace",
        "sampling.keeps=noise",
        "sampling.clip=false",
        "injection=denoised",
        "input=denoised",
    ],
)
def test_any_other_choice_on_ddim_is_noticed(draws, change):
    expected = algorithm_2(draws, list(range(0, 1000, 100)), 1.0, 0.0)
    ours = run(draws, "adm-cg/ddim", "sampling.steps=10", change)
    assert (ours - expected).abs().max() > 1e-5


def test_the_ddim_variant_keeps_the_released_scale_and_spacing():
    made = load_recipe("adm-cg/ddim").resolved()
    assert (made["scale"]["value"], made["sampling"]["steps"], made["sampling"]["spacing"]) == (1.0, 25, "leading")
