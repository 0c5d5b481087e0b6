"""EDM's preconditioning: from a network that answers exactly, the exact denoiser."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steersman.errors import InputError
from steersman.guidance import ClassProbability, Guide, Noisy
from steersman.models.denoisers import EDMDenoiser
from steersman.sampling import DDIM, Heun, sample
from steersman.schedule import EDM, Level

F64 = torch.float64
DATA = 0.7


class Answering(nn.Module):
    """The F that makes the mixture of EDM's preconditioning, written with ``sigma = exp(4 c_noise)``."""

    def __init__(self, mixture):
        super().__init__()
        self.mixture, self.asked = mixture, []

    def forward(self, x, noise, class_labels=None):
        self.asked.append((x, noise, class_labels))
        sigma = (4 * noise).exp()[:, None, None, None]
        x_t = x * (sigma**2 + DATA**2).sqrt()
        level = Level(torch.ones_like(noise), sigma.flatten(), noise)
        x0 = self.mixture(x_t, level).x0_hat
        if class_labels is not None:
            labelled = class_labels < 3
            conditional = self.mixture(x_t, level, label=class_labels.clamp(max=2)).x0_hat
            x0 = torch.where(labelled[:, None, None, None], conditional, x0)
        answer = (x0 - DATA**2 / (DATA**2 + sigma**2) * x_t) * (sigma**2 + DATA**2).sqrt() / (sigma * DATA)
        return SimpleNamespace(sample=answer)


@pytest.fixture
def exact(mixture):
    return replace(mixture, schedule=EDM())


@pytest.fixture
def edm(exact):
    return lambda **settings: EDMDenoiser(Answering(exact), shape=(2, 1, 1), sigma_data=DATA, **settings)


def test_an_exact_network_is_the_exact_denoiser(edm, exact, draw):
    sigmas = torch.tensor([80.0, 5.0, 0.6, 0.01], dtype=F64)
    x_t = draw(4, 2, 1, 1) * sigmas[:, None, None, None]
    each = exact.schedule.at_ratio(sigmas)
    # c_out divides and multiplies: 1e-16 of c_skip x_t and of F's own digits
    assert (edm()(x_t, each).x0_hat - exact(x_t, each).x0_hat).abs().max() < 1e-13
    for row, sigma in enumerate(sigmas):
        level, x = exact.schedule.at_ratio(sigma), x_t[row : row + 1]
        assert (edm()(x, level).x0_hat - exact(x, level).x0_hat).abs().max() < 1e-13


def test_what_the_network_is_shown_has_unit_variance(edm, draw):
    x0, eps = DATA * draw(20000, 2, 1, 1), draw(20000, 2, 1, 1)
    for sigma in (0.05, 1.0, 40.0):
        denoiser = edm()
        denoiser(x0 + sigma * eps, EDM().at_ratio(sigma))
        (x, noise, labels) = denoiser.network.asked[0]
        assert abs(float(x.std()) - 1) < 0.02  # 1 / sqrt(2 * 40000), four times
        assert torch.allclose(noise.exp() ** 4, torch.tensor(sigma, dtype=F64))
        assert labels is None


def test_a_network_that_says_nothing_shrinks_towards_zero(draw):
    """Data that are N(0, s^2) have ``x0_hat = c_skip x_t``."""

    class Silent(nn.Module):
        def forward(self, x, noise):
            return SimpleNamespace(sample=torch.zeros_like(x))

    x_t = draw(3, 3, 4, 4)
    x0_hat = EDMDenoiser(Silent(), shape=(3, 4, 4))(x_t, EDM().at_ratio(2.0)).x0_hat
    assert torch.allclose(x0_hat, x_t * 0.25 / 4.25)


def test_labels_and_their_absence(edm, exact, draw):
    level, x_t, label = EDM().at_ratio(0.4), draw(3, 2, 1, 1), torch.tensor([2, 0, 1])
    names = ("a", "b", "c")
    plain, conditional = exact(x_t, level).x0_hat, exact(x_t, level, label=label).x0_hat
    denoiser = edm(classes=names, unconditional=True)
    assert torch.allclose(denoiser(x_t, level, label=label).x0_hat, conditional)
    assert len(denoiser.network.asked) == 1
    assert torch.allclose(denoiser(x_t, level).x0_hat, plain)
    guided = denoiser(x_t, level, label=label, cfg_scale=3.0)
    assert torch.allclose(guided.x0_hat, plain + 3 * (conditional - plain))
    assert torch.allclose(guided.unconditional, plain)
    with pytest.raises(InputError, match="label must be given, .*got none; known: a, b, c"):
        edm(classes=names)(x_t, level)
    with pytest.raises(InputError, match="cfg_scale must be 1.*, got 3.0"):
        edm(classes=names)(x_t, level, label=label, cfg_scale=3.0)
    with pytest.raises(InputError, match="label must be left out"):
        edm()(x_t, level, label=label)
    with pytest.raises(InputError, match="sigma_data must be above 0 and finite, got 0.0"):
        EDMDenoiser(Answering(exact), shape=(2, 1, 1), sigma_data=0.0)


@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
def test_walks_as_the_mixture_does(wrt, edm, exact, posterior):
    guide = Guide(objective=ClassProbability(classifier=posterior), input=Noisy(), wrt=wrt, scale=0.5)
    settings = {"seeds": range(4), "steps": 6, "spacing": "karras", "clip": False, "dtype": F64}
    for sampler, guides in ((Heun(), []), (DDIM(), [guide])):
        x, y = (sample(each, sampler, guides=guides, target=1, **settings) for each in (edm(), exact))
        assert (x - y).abs().max() < 1e-12


def test_blocks_and_precision(draw):
    torch.manual_seed(0)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, noise):
            seen.append((len(x), x.dtype))
            return SimpleNamespace(sample=self.layer(x) + noise[:, None, None, None])

    seen, x_t, level = [], draw(5, 3, 4, 4).float(), EDM().at_ratio(1.0)
    denoiser = EDMDenoiser(Network(), shape=(3, 4, 4))
    expected = denoiser(x_t, level).x0_hat
    denoiser.block = 2
    assert torch.allclose(denoiser(x_t, level).x0_hat, expected, atol=1e-6)
    half = denoiser.to(dtype=torch.bfloat16)(x_t, level).x0_hat
    assert half.dtype == torch.float32 and (half - expected).abs().max() < 0.03
    assert seen == [(5, torch.float32)] + [(2, torch.float32)] * 3 + [(2, torch.bfloat16)] * 3
    assert not any(weight.requires_grad for weight in denoiser.network.parameters())
