"""`elucd-ddpm` and `elucd-edm` are EluCD's Algorithms 1 and 2 with what its code adds, written out beside them."""

import math

import pytest
import torch
from torch import nn

from steersman.denoise import Prediction
from steersman.models.classifiers import RAW, Classifier
from steersman.recipes import load_recipe
from steersman.sampling import sample
from steersman.schedule import EDM, VP

F64 = torch.float64
SHAPE, CLASSES, TARGET = (3, 8, 8), 5, torch.tensor([3, 0])
BARS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
ROUNDING = {"rtol": 0, "atol": 1e-10}  # float64's, through steps that enlarge it


def layers(outputs, seed, *between):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *between, nn.Conv2d(16, outputs, 3, padding=1))
    return made.double().requires_grad_(False)


UNET, INNER = layers(6, 0, nn.Tanh()), layers(3, 1, nn.Tanh())
JUDGE = nn.Sequential(layers(CLASSES, 2, nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def rms(x):
    return x.square().mean((1, 2, 3), keepdim=True).sqrt()


def gradient(image, beta, joint, marginal):
    """Of ``log(exp(tau1 f_y) / sum_i exp(tau2 f_i))``, the ReLU being ``log(1 + exp(beta a)) / beta``."""
    image = image.detach().requires_grad_()
    first, _, last = JUDGE[0]
    logits = 30 * last((beta * first(image)).exp().log1p() / beta).mean((2, 3))
    chosen = (joint * logits).exp()[range(2), TARGET] / (marginal * logits).exp().sum(1)
    return torch.autograd.grad(chosen.log().sum(), image)[0]


class Louder(nn.Module):
    """The classifier with larger logits."""

    def __init__(self):
        super().__init__()
        self.network = JUDGE

    def forward(self, x):
        return 30 * self.network(x)


def run(denoiser, draws, made):
    settings = made.classifier_settings()
    assert settings["preprocess"] == "raw" and settings["size"] is None
    guide = Classifier(Louder(), preprocess=RAW, names="abcde").smooth(settings["softplus"])
    walk = {"target": TARGET, "seeds": range(2), "noise": iter(draws), "dtype": F64, **made.sampling()}
    return sample(denoiser, made.sampler(), guides=made.bind_prepared(guide), **walk)


def predict(x):
    """The noise, and the fraction of the variance, which differs much among the values."""
    eps, v = UNET(x).chunk(2, 1)
    return eps, (3 * v).tanh()


class Adm:
    schedule, shape, classes = VP(alpha_bar=BARS), SHAPE, ()

    def __call__(self, x_t, level, **_):
        eps, v = predict(x_t)
        return Prediction((x_t - level.sigma * eps) / level.alpha, (v + 1) / 2)

    def decode(self, x0):
        return x0


def algorithm_1(draws, steps, scale, *, joint=1.0, marginal=0.5, gamma=0.3, released):
    """``x_{t-1} ~ N(mu + s (Sigma_t + gamma sin(pi t / T) max Sigma) g, Sigma_t)``, ``g = grad log p(y | x0_hat)``.

    Released: the maximum is the first value's, and ``beta_tilde`` of the last step is that of the step before. Else it
    is each value's, and the last step has no variance.
    """
    times = [round(999 * i / (steps - 1)) for i in range(steps)]
    bars = BARS[times]
    before = torch.cat([torch.ones(1, dtype=F64), bars[:-1]])
    betas = 1 - bars / before
    tilde = betas * (1 - before) / (1 - bars)
    if released:
        tilde[0] = tilde[1]
    x, *rest = draws
    peak = torch.zeros(1, dtype=F64)
    for t in reversed(range(steps)):
        eps, v = predict(x)
        x0 = ((x - (1 - bars[t]).sqrt() * eps) / bars[t].sqrt()).clamp(-1, 1)
        mean = (before[t].sqrt() * betas[t] * x0 + (1 - betas[t]).sqrt() * (1 - before[t]) * x) / (1 - bars[t])
        variance = betas[t] ** ((v + 1) / 2) * tilde[t] ** ((1 - v) / 2)
        peak = torch.maximum(peak, variance[0, 0, 0, 0] if released else variance)
        weight = variance + gamma * math.sin(math.pi * t / steps) * peak
        x = mean + scale * weight * gradient(x0, 3.0, joint, marginal)
        x = x + variance.sqrt() * rest.pop(0) if t else x
    return x


@pytest.mark.parametrize("variant", ["raw", "released"])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("marginal", [0.0, 0.5])
def test_ddpm_is_algorithm_1(draw, variant, gamma, marginal):
    draws = [draw(2, *SHAPE) for _ in range(10)]
    changes = [f"weight.gamma={gamma}", f"objective.marginal={marginal}", "sampling.steps=10", "scale=5"]
    ours = run(Adm(), draws, load_recipe(f"elucd-ddpm/{variant}", changes))
    expected = algorithm_1(draws, 10, 5.0, marginal=marginal, gamma=gamma, released=variant == "released")
    torch.testing.assert_close(ours, expected, **ROUNDING)


def test_ddpm_as_published_is_algorithm_1(draw):
    """Table 7's settings; the number of steps, 250 there, is what the others are independent of."""
    draws, published = [draw(2, *SHAPE) for _ in range(40)], load_recipe("elucd-ddpm/released")
    assert published.sampling()["steps"] == 250
    ours = run(Adm(), draws, published.changed({"sampling.steps": 40}))
    torch.testing.assert_close(ours, algorithm_1(draws, 40, 1.0, released=True), **ROUNDING)


@pytest.mark.parametrize(
    "change",
    [
        "weight.peak=own",
        "sampler.fixed=small",
        "weight.gamma=0.2",
        "objective.marginal=1",
        "objective.joint=0.9",
        "smoothing.beta=8",
        "input.clip=false",
        "wrt=x_t",
    ],
)
def test_any_other_choice_on_ddpm_is_noticed(draw, change):
    draws = [draw(2, *SHAPE) for _ in range(10)]
    ours = run(Adm(), draws, load_recipe("elucd-ddpm/released", ["sampling.steps=10", "scale=5", change]))
    assert (ours - algorithm_1(draws, 10, 5.0, released=True)).abs().max() > 1e-5


class Preconditioned:
    """``D(x; sigma) = c_skip x + c_out F(c_in x)`` with data of deviation 0.5 (EDM, table 1)."""

    schedule, shape, classes = EDM(), SHAPE, ()

    def __call__(self, x_t, level, **_):
        return Prediction(denoised(x_t, level.sigma))

    def decode(self, x0):
        return x0


def denoised(x, sigma):
    total = sigma**2 + 0.25
    return 0.25 / total * x + sigma * 0.5 / total.sqrt() * INNER(x / total.sqrt())


def algorithm_2(draws, steps, scale, *, gamma=0.3, churn=0.0, ratio_min=0.0, ratio_max=math.inf, noise=1.0):
    """EDM's own, from ``x + w_i rms(x) g / rms(g)``, ``g = grad log p(y | x / max(1, rms(x)))`` before the churn."""
    i = torch.arange(steps, dtype=F64)
    sigmas = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=F64)])
    x, rest = sigmas[0] * draws[0], list(draws[1:])
    for i in range(steps):
        sigma, next = sigmas[i], sigmas[i + 1]
        g = gradient(x / rms(x).clamp(min=1), 5.0, 1.0, 0.0)
        weight = max(scale * (steps + 1 - i) / (steps + 1), 1e-5) + math.sin(math.pi * i / steps) * scale * gamma
        x = x + weight * rms(x) * g / rms(g)
        if churn and ratio_min <= sigma <= ratio_max:
            hat = sigma * (1 + min(churn / steps, math.sqrt(2) - 1))
            x = x + noise * (hat**2 - sigma**2).sqrt() * rest.pop(0)
            sigma = hat
        slope = (x - denoised(x, sigma)) / sigma
        euler = x + (next - sigma) * slope
        if next > 0:
            slope = (slope + (euler - denoised(euler, next)) / next) / 2
        x = x + (next - sigma) * slope
    return x


CHURN = {"churn": 40.0, "ratio_min": 0.05, "ratio_max": 50.0, "noise": 1.003}


@pytest.mark.parametrize(
    ("recipe", "steps", "scale", "churn"),
    [
        ("elucd-edm/10", 10, 0.004, {}),
        ("elucd-edm", 18, 0.004, {}),
        ("elucd-edm/36", 36, 0.0018, {}),
        pytest.param("elucd-edm/250", 250, 0.001, CHURN, marks=pytest.mark.long),
    ],
)
def test_edm_as_published_is_algorithm_2(draw, recipe, steps, scale, churn):
    draws = [draw(2, *SHAPE) for _ in range(steps + 1)]
    ours = run(Preconditioned(), draws, load_recipe(recipe))
    torch.testing.assert_close(ours, algorithm_2(draws, steps, scale, **churn), **ROUNDING)


def test_edm_with_churn_and_a_floor_is_algorithm_2(draw):
    """At this scale the falling line meets 1e-5 in the last four of 40 steps; as published, in the last of 250."""
    published = load_recipe("elucd-edm/250").resolved()
    assert published["weight"]["floor"] * published["scale"]["value"] == pytest.approx(1e-5)
    draws, settings = [draw(2, *SHAPE) for _ in range(41)], ["sampling.steps=40", "scale=1e-4"]
    ours = {
        floor: run(Preconditioned(), draws, load_recipe("elucd-edm/250", [*settings, f"weight.floor={floor}"]))
        for floor in (0.0, 0.1)
    }
    expected = algorithm_2(draws, 40, 1e-4, **CHURN)
    torch.testing.assert_close(ours[0.1], expected, **ROUNDING)
    assert (ours[0.0] - expected).abs().max() > 1e-6


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "change",
    [
        "weight.gamma=0.2",
        "weight=constant",
        "stabilizer.by=norm",
        "input=denoised",
        "input=noisy",
        "objective.marginal=1",
        "smoothing.beta=8",
        "injection=mean",
        "sampler.noise=1",
        "sampler.ratio_max=80",
        "sampler.ratio_min=0",
        "sampling.clip=true",
    ],
)
def test_any_other_choice_on_edm_is_noticed(draw, change):
    draws = [draw(2, *SHAPE) for _ in range(19)]
    changes = ["sampling.steps=18", "scale=0.004", "weight.floor=0", change]
    ours = run(Preconditioned(), draws, load_recipe("elucd-edm/250", changes))
    assert (ours - algorithm_2(draws, 18, 0.004, **CHURN)).abs().max() > 1e-5
