"""Whatever a trajectory remembers of an image goes with it when particles are resampled.

Rows are put in another order on the way, which is what resampling does, and so is the noise that is drawn from then on.
So every row must end where it would have without that: exactly, as no row knows of another.
"""

from itertools import cycle

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler

from steersman.denoise import Prediction
from steersman.guidance import (
    Adam,
    Chain,
    ClassProbability,
    Clip,
    Constant,
    Denoised,
    Ema,
    Guide,
    Mean,
    NoisePrediction,
    Noisy,
    Sample,
    Sine,
    Variance,
)
from steersman.sampling import DDIM, DDPM, DiffusersSampler, DPMpp, Heun, Particles, Recurrence, loop, sample
from steersman.sampling.particles import ParticleFilter
from steersman.sampling.samplers import SeededNoise

F64 = torch.float64
ORDERS = {2: [2, 0, 3, 1, 5, 4], 4: [5, 4, 0, 1, 3, 2]}
"""By step, the rows that go on from there; there are two images with three candidates each."""


class Orders:
    """Puts rows and noise in other orders, or leaves them as they are; keeps the corrections of the weights by row."""

    def __init__(self, monkeypatch, *, shuffled):
        self.order, self.corrections = torch.arange(6), []
        orders, coming = self, cycle(ORDERS.values())

        class Rows(ParticleFilter):
            def weighs(self, level, index):
                return index in ORDERS and self.count > 1

            def choose(self, log_likelihood, level, uniform):
                rows = torch.tensor(next(coming)) if shuffled else torch.arange(6)
                orders.order = orders.order[rows]
                return rows

            def correct(self, delta, deviation, variance):
                before = self.weights
                super().correct(delta, deviation, variance)
                orders.corrections.append((self.weights - before).flatten()[orders.order.argsort()])

        class Draws(SeededNoise):
            def __call__(self, purpose, particles=1):
                return super().__call__(purpose, particles)[orders.order]

        monkeypatch.setattr(loop, "ParticleFilter", Rows)
        monkeypatch.setattr(loop, "SeededNoise", Draws)


class Learned:
    """The mixture with a learned variance that depends on the sample: large in one step, small in the next."""

    def __init__(self, mixture):
        self.mixture, self.schedule, self.shape, self.classes = mixture, mixture.schedule, mixture.shape, ()
        self.decode, self.asked = mixture.decode, 0

    def __call__(self, x_t, level, **condition):
        self.asked += 1
        fraction = x_t.sigmoid() * (1.0 if self.asked < 4 else 0.2)
        return Prediction(self.mixture(x_t, level, **condition).x0_hat, variance_fraction=fraction)


BETAS = {"beta_schedule": "squaredcos_cap_v2"}
SDE = DiffusersSampler(DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **BETAS))
WAYS = {
    "peak": {"sampler": DDPM(), "learned": True, "guide": {"weight": Sine(gamma=0.9)}},
    "corrected": {"sampler": SDE, "corrected": True, "guide": {"injection": NoisePrediction()}},
    "corrected, learned": {"sampler": DDPM(), "learned": True, "corrected": True, "guide": {"weight": Variance()}},
    "multistep": {"sampler": DPMpp(), "guide": {"injection": NoisePrediction()}},
    "ancestral": {"sampler": DiffusersSampler(EulerAncestralDiscreteScheduler(**BETAS)), "guide": {}},
    "stages": {"sampler": Heun(churn=2.0), "guide": {"injection": NoisePrediction(), "stabilizer": Ema(beta=0.5)}},
    "stages, learned": {
        "sampler": Heun(),
        "learned": True,
        "guide": {"injection": NoisePrediction(), "weight": Variance()},
    },
    "before": {"sampler": Heun(), "guide": {"injection": Sample(), "input": Denoised(), "stabilizer": Adam()}},
    "states": {
        "sampler": DDIM(eta=0.5),
        "guide": {"stabilizer": Chain([Adam(beta2=0.5, corrected=True), Clip(norm=0.2), Ema(beta=0.8)])},
    },
    "repeats": {"sampler": DDPM(), "recurrence": Recurrence(times=2), "guide": {"stabilizer": Ema(beta=0.5)}},
    "label": {"sampler": DDPM(), "condition": {"label": torch.tensor([1, 2]), "cfg_scale": 1.5}, "guide": {}},
}


@pytest.mark.parametrize("name", WAYS)
def test_everything_goes_with_its_row(mixture, posterior, monkeypatch, name):
    plain, shuffled = (drawn(monkeypatch, mixture, posterior, shuffled, **WAYS[name]) for shuffled in (False, True))
    assert plain[2].tolist() != shuffled[2].tolist()
    torch.testing.assert_close(shuffled[0], plain[0][shuffled[2]], rtol=0, atol=1e-12)
    torch.testing.assert_close(shuffled[1], plain[1], rtol=0, atol=1e-10)


def drawn(monkeypatch, mixture, posterior, shuffled, *, sampler, guide, learned=False, corrected=False, **settings):
    """The rows at the end, what each step's weights were corrected by, and the order of the rows."""
    orders = Orders(monkeypatch, shuffled=shuffled)
    choices = {"input": Noisy(), "weight": Constant(), "injection": Mean(), "scale": 0.05} | guide
    x = sample(
        Learned(mixture) if learned else mixture,
        sampler,
        guides=[Guide(objective=ClassProbability(classifier=posterior), **choices)],
        particles=Particles(count=3, corrected=corrected),
        seeds=[0, 1],
        target=[2, 0],
        steps=7,
        clip=False,
        dtype=F64,
        **settings,
    )
    return x, orders.corrections, orders.order
